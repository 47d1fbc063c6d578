"""What any worker does now and then for all of them: bring back lost queue entries, end what waits in vain.

Each batch runs under a Postgres transaction lock, so one process at a time does it, whichever it is; a process
that finds the lock taken does nothing. The sweep is what makes a run durable: whatever happens to Redis between
the ledger's commit and the queue entry, or afterwards, the entry is written again from the ledger's envelope.
Runs that nobody can run any more (their payload is gone, their time is over) fail here, with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from redis.asyncio import Redis

from synapse_worker.connections import read_each, redis_errors_as_ours
from synapse_worker.contract import BY_NAME
from synapse_worker.errors import PayloadError, StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.gate import StoreGate
from synapse_worker.job_payloads import retried_as
from synapse_worker.queueing import keys, stops
from synapse_worker.queueing.client import RUN_FUNCTION, keep_payloads, nowhere, put, waiting_sets
from synapse_worker.queueing.payload import EXPIRED, decode
from synapse_worker.retention import Retention
from synapse_worker.store import claims, ledger, pauses, runs
from synapse_worker.store.database import Database
from synapse_worker.store.runs import DeadLetter
from synapse_worker.store.workers import mark_silent
from synapse_worker.telemetry import Metrics
from synapse_worker.waiting_ends import say_ended

log = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0
OVERDUE_SECONDS = 60.0
"""How long an open job is left alone: a producer may be between its two writes, an owner between two heartbeats."""
BATCH = 200
EXPIRE_PERIOD_SECONDS = 60
"""How often one of all workers looks through the queued runs for those."""
RETENTION_PERIOD_SECONDS = 60
"""How often one of all workers removes what is old."""
_EVENT_TTL = int(BY_NAME["PUBSUB_EVENT_TTL"].default or 0)
CANCEL_PERIOD_SECONDS = 5
"""How often one of all workers looks through the paused runs for those that are to be cancelled."""
EXPIRED_SECONDS = 600.0
"""How long a run of another producer may be queued without a payload before it fails."""


class Housekeeper:
    """Run `keep` as a task."""

    def __init__(
        self,
        database: Database,
        client: Redis,
        gate: StoreGate,
        queues: Callable[[], Sequence[str]] = tuple,
        *,
        retention: Retention | None = None,
        event_ttl: int = _EVENT_TTL,
        metrics: Metrics | None = None,
    ) -> None:
        """Make a housekeeper.

        Args:
            queues: returns the keys of the queues that this worker serves now.
            retention: removes what is old; None = nobody does here.
            event_ttl: seconds that the events of a run stay.
            metrics: counts the runs that end here; None = nobody does.
        """
        self._database = database
        self._client = client
        self._gate = gate
        self._queues = queues
        self._retention = retention
        self._event_ttl = event_ttl
        self._metrics = metrics
        self._cursor = ""
        self._expire_cursor = ""
        self._paused_cursor = ""
        self._places: dict[str, int] = {}
        self.swept = 0
        """Queue entries that this process has written again."""

    async def keep(self) -> None:
        """Keep house for ever, while both stores answer."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - spreads the workers
            if not self._gate.is_open:
                continue
            try:
                await mark_silent(self._database)
                await self.sweep()
                await self.time_out()
                if await self._is_due("cancels", CANCEL_PERIOD_SECONDS):
                    await self.cancel_paused()
                if await self._is_due("expire", EXPIRE_PERIOD_SECONDS):
                    await self.expire()
                await self.keep_payloads()
                if self._retention is not None and await self._is_due("retention", RETENTION_PERIOD_SECONDS):
                    await self._retention.remove()
                await stops.forget_old_aborts(self._client, int(time.time() * 1000))
            except (StoreUnavailable, StoreRefused) as error:
                self._gate.trip(error)
            except Exception:
                log.exception("housekeeping met an unexpected error; it goes on")

    async def sweep(self, overdue_seconds: float = OVERDUE_SECONDS) -> int:
        """Write queue entries again for open jobs that have none; returns how many.

        One bounded batch, by a cursor that moves through the open jobs and starts anew behind the last. Where most of
        a batch was missing, Redis has lost its data: the next ones follow at once, so that nobody waits behind many.
        """
        added = 0
        while True:
            written = await self._sweep_batch(overdue_seconds)
            added += written
            if written < BATCH / 2:
                return added

    async def _sweep_batch(self, overdue_seconds: float) -> int:
        added = 0
        async with self._database.transaction() as transaction:
            if not await ledger.lock_sweep(transaction):
                return 0
            overdue = await ledger.overdue(transaction, overdue_seconds, after=self._cursor, limit=BATCH)
            for job in overdue:
                # Looks in the queue, among what was given back or parked, and among the leases, before it adds.
                try:
                    queued = await put(self._client, job.queue, job.job_id, job.envelope, job.tenant_id)
                except WrongKeyType:  # the claim loop of that queue says so
                    continue
                if queued:
                    added += 1
                    log.info("job %s had no queue entry any more; it is queued again", job.job_id)
        self._cursor = overdue[-1].job_id if len(overdue) == BATCH else ""
        self.swept += added
        return added

    async def time_out(self) -> int:
        """Fail waiting runs whose timeout_minutes, or the time for an answer, are over; returns how many.

        What runs is ended by its owner, and what a crashed owner leaves by the next one.
        """
        ended = 0
        for run in await runs.past_deadline(self._database, limit=BATCH):
            function, arguments = RUN_FUNCTION, dict[str, object]({"run_id": run.run_id})
            if run.envelope is not None:
                try:
                    function, given = retried_as(decode(run.envelope))
                    arguments = dict(given)
                except PayloadError:  # the letter then says less
                    pass
            sentence = f"the run took longer than the timeout_minutes of orchestration {run.orchestration_id!r}"
            if run.unanswered is not None:
                sentence = f"nobody answered step {run.unanswered!r} within its human_timeout_seconds"
            if await runs.time_out(self._database, run.run_id, DeadLetter(function, arguments, sentence, 1)):
                ended += 1
                log.warning("run %s failed: %s", run.run_id, sentence)
                await self._say_ended(run.run_id, sentence)
                await self._count(run.run_id, runs.RunStatus.FAILED)
        return ended

    async def cancel_paused(self) -> int:
        """Cancel runs that wait for a human and for which a main instance has set the cancel key; returns how many.

        One bounded batch a call, by a cursor that moves through the paused runs. Nobody runs them who would look.
        """
        waiting = await pauses.paused_runs(self._database, after=self._paused_cursor, limit=BATCH)
        self._paused_cursor = waiting[-1] if len(waiting) == BATCH else ""
        wanted = await read_each(self._client, [keys.cancel(run_id) for run_id in waiting])
        ended = 0
        for run_id, key in zip(waiting, wanted, strict=True):
            if key is not None and await runs.cancel_queued(self._database, run_id) == runs.RunStatus.PAUSED:
                ended += 1
                log.info("run %s was cancelled while it waited for a human", run_id)
                await self._say_ended(run_id, "cancelled")
                await self._count(run_id, runs.RunStatus.CANCELLED)
                with redis_errors_as_ours():
                    await self._client.delete(keys.cancel(run_id))
        return ended

    async def _say_ended(self, run_id: str, sentence: str) -> None:
        await say_ended(self._database, self._client, run_id, sentence, ttl_seconds=self._event_ttl)

    async def expire(self, waited_seconds: float = EXPIRED_SECONDS) -> int:
        """Fail queued runs of other producers whose payload is gone; returns how many.

        Ours to judge is only a run of which the ledger knows no job and Redis neither payload nor entry nor sign of
        somebody running it. A run that runs is its owner's, and one that the ledger knows is the sweep's.
        """
        ended = 0
        waiting = await ledger.unknown_queued(self._database, waited_seconds, after=self._expire_cursor, limit=BATCH)
        self._expire_cursor = waiting[-1].run_id if len(waiting) == BATCH else ""
        queues = self._queues()
        gone = await nowhere(self._client, queues, [run.job_id for run in waiting])
        for run in waiting:
            if run.job_id not in gone:
                continue
            letter = DeadLetter(RUN_FUNCTION, {"run_id": run.run_id, "orch_id": run.orchestration_id}, EXPIRED, 0)
            if await runs.reject(
                self._database,
                job_id=run.job_id,
                run_id=run.run_id,
                queue=queues[0] if queues else "",
                envelope=None,
                letter=letter,
                outcome="expired",
            ):
                ended += 1
                log.warning("run %s failed: %s", run.run_id, EXPIRED)
                await self._count(run.run_id, runs.RunStatus.FAILED)
        return ended

    async def _count(self, run_id: str, status: str) -> None:
        if self._metrics is not None:
            tenant_id = (await claims.tenants_of(self._database, [run_id])).get(run_id, "unknown")
            self._metrics.runs_completed(tenant_id, status)

    async def _is_due(self, task: str, seconds: int) -> bool:
        """Whether nobody has done a task for so many seconds; then it is ours now."""
        with redis_errors_as_ours():
            return bool(await self._client.set(keys.turn(task), "1", nx=True, ex=seconds))

    async def keep_payloads(self) -> None:
        """Prolong the payloads of waiting jobs, a batch of each queue a call: other producers' live for 24 h only."""
        for queue_key in self._queues():
            with suppress(WrongKeyType):
                for zset in await waiting_sets(self._client, queue_key):
                    place = await keep_payloads(self._client, zset, self._places.pop(zset, 0), BATCH)
                    if place:
                        self._places[zset] = place
