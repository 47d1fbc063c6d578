"""Runs in the API process itself, where scale mode is off: enqueued like any other, then claimed here by their ids.

The engine is imported with the first of them. A run has the lease, ledger and fence that it would have at a worker; if
this process dies over it, its lease runs out, and one worker comes back for it. On a stop the runs go back to their
queues at the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from dataclasses import replace

from redis.asyncio import Redis

from synapse_worker.connections import open_blobs
from synapse_worker.errors import StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.by_id import ChosenJobs
from synapse_worker.queueing.loop import ClaimLoop
from synapse_worker.queueing.served import Served
from synapse_worker.settings import Settings
from synapse_worker.store import ledger, tenants
from synapse_worker.store.database import Database
from synapse_worker.telemetry import Metrics

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_SLOWEST_POLL_SECONDS = 1.0
_INTERRUPT_SECONDS = 3.0
"""How long jobs that are interrupted may take to give their runs back."""


class Inline:
    """The jobs that this process runs itself."""

    def __init__(self, database: Database, client: Redis, gate: StoreGate, *, worker_id: str) -> None:
        self._database = database
        self._client = client
        self._gate = gate
        self._worker_id = worker_id
        self._queues: dict[str, ChosenJobs] = {}
        self._served = Served([])
        self._stack = AsyncExitStack()
        self._starting = asyncio.Lock()
        self._loop: ClaimLoop | None = None
        self._claiming: asyncio.Task[None] | None = None
        self._beside: Sequence[asyncio.Task[None]] = ()
        self._settings: Settings | None = None

    async def run(self, settings: Settings, job_id: str, stopping: asyncio.Event) -> bool:
        """Run a job that was just enqueued; returns whether it has ended (or waits for a human).

        A worker that still serves the queue may take it first; then its end is waited for all the same.

        Args:
            stopping: set when this process ends; then a job that has not ended is left to others.

        Raises:
            StoreUnavailable, StoreRefused: what becomes of the job is not known; it is not lost.
        """
        queue_key = await ledger.queue_of(self._database, job_id)
        if queue_key is None:
            return False
        await self._start(settings)
        queue = self._queue(settings, queue_key)
        queue.choose(job_id)
        pause = _POLL_SECONDS
        try:
            while await ledger.outcome_of(self._database, job_id) is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await stopping.wait()
                        return False
                pause = min(_SLOWEST_POLL_SECONDS, pause * 1.5)
            return True
        finally:
            queue.forget(job_id)

    async def close(self) -> None:
        """Give back what runs, at a step boundary if one comes in time."""
        if self._loop is None or self._claiming is None or self._settings is None:
            return
        self._loop.stop(hand_over=True)
        await asyncio.wait({self._claiming}, timeout=self._settings.drain_seconds)
        if not self._claiming.done():
            self._loop.interrupt()
            await asyncio.wait({self._claiming}, timeout=_INTERRUPT_SECONDS)
        self._claiming.cancel()
        await asyncio.wait({self._claiming})
        await self._stack.aclose()

    async def _start(self, settings: Settings) -> None:
        async with self._starting:
            if self._claiming is not None and any(task.done() for task in (self._claiming, *self._beside)):
                raise StoreUnavailable("this process", "cannot run jobs any more; its log says why")
            if self._loop is not None:
                return
            # What runs for all jobs from here on is no part of the request, and of the trace, that came first.
            await asyncio.create_task(self._open(settings), context=Context())

    async def _open(self, settings: Settings) -> None:
        # Seconds and megabytes that only an API without workers pays for.
        from synapse_worker.hosting import hosting

        own = replace(settings, worker_id=self._worker_id)
        known = await tenants.read_all(self._database)
        async with AsyncExitStack() as stack:
            blobs = open_blobs(own.s3, own.data_dir)
            stack.push_async_callback(blobs.close)
            host = await stack.enter_async_context(
                hosting(self._database, self._client, self._gate, blobs, self._served, own, known, Metrics())
            )
            self._stack = stack.pop_all()
        self._beside = host.beside
        self._settings = own
        self._loop = ClaimLoop(
            self._served, host.jobs, self._gate, slots=own.concurrency, lease_seconds=own.lease_seconds
        )
        self._claiming = asyncio.create_task(self._loop.run())
        log.info("scale mode is off: this process runs jobs itself")

    def _queue(self, settings: Settings, queue_key: str) -> ChosenJobs:
        queue = self._queues.get(queue_key)
        if queue is None:
            queue = self._queues[queue_key] = ChosenJobs(
                self._client, queue_key, worker_id=self._worker_id, lease_seconds=settings.lease_seconds
            )
            self._served.add(queue)
        return queue
