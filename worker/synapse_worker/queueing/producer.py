"""A process that enqueues, as the operator sees it: it says by which epoch of the topology its jobs go.

A queue that the topology does not name any more is drained for good only once nobody can enqueue to it: every live
producer has reported the new epoch (`store.topology.producers_behind`). What one job costs and where it goes is
`client`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from redis.asyncio import Redis

from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing.client import (
    NewRun,
    NewTurn,
    Seen,
    answer_run,
    enqueue_run,
    enqueue_turn,
    resume_run,
    retry_letter,
)
from synapse_worker.routing import Topology
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from synapse_worker.store.dead_letters import Letter
from synapse_worker.store.topology import Role

log = logging.getLogger(__name__)

REPORT_SECONDS = 3.0
"""How often the epoch is looked at and reported; a producer that is silent for 90 s counts as gone."""


class Producer:
    """Enqueues runs while its `async with` block lasts. Safe to share between tasks of one loop."""

    def __init__(self, database: Database, client: Redis, without_row: Topology, *, role: Role) -> None:
        """Make a producer.

        Args:
            without_row: the topology where no row of `scale_topology` says otherwise.
        """
        self._database = database
        self._client = client
        self._without_row = without_row
        self._role = role
        self.id = f"{role}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._epoch = 0
        self._under_way: set[asyncio.Future[None]] = set()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Report for the first time: nothing is enqueued before the operator can know.

        Raises:
            StoreUnavailable, StoreRefused: PostgreSQL does not take it.
        """
        await self.report()
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        try:
            await topology.leave(self._database, self.id)
        except (StoreUnavailable, StoreRefused) as away:
            log.warning("producer %s counts as alive for a while: %s", self.id, away)

    async def enqueue(self, run: NewRun, *, run_id: str, now_ms: int, seen: Seen | None = None) -> str:
        """As `client.enqueue_run`.

        What was seen before this call may be older than what was reported: nothing is written by it then.
        """
        with self._writing():
            return await enqueue_run(
                self._database,
                self._client,
                run,
                run_id=run_id,
                now_ms=now_ms,
                without_row=self._without_row,
                seen=seen,
            )

    async def enqueue_turn(self, turn: NewTurn, *, job_id: str, now_ms: int, seen: Seen | None = None) -> None:
        """As `client.enqueue_turn`; `seen` as for `enqueue`."""
        with self._writing():
            await enqueue_turn(
                self._database,
                self._client,
                turn,
                job_id=job_id,
                now_ms=now_ms,
                without_row=self._without_row,
                seen=seen,
            )

    async def retry_letter(self, letter: Letter, *, now_ms: int) -> str | None:
        """As `client.retry_letter`."""
        with self._writing():
            return await retry_letter(
                self._database, self._client, letter, now_ms=now_ms, without_row=self._without_row
            )

    async def resume_run(self, run_id: str, *, now_ms: int) -> tuple[str, str]:
        """As `client.resume_run`."""
        with self._writing():
            return await resume_run(self._database, self._client, run_id, now_ms=now_ms, without_row=self._without_row)

    async def answer_run(self, run_id: str, response: object, *, now_ms: int) -> tuple[str, str]:
        """As `client.answer_run`."""
        with self._writing():
            return await answer_run(
                self._database, self._client, run_id, response, now_ms=now_ms, without_row=self._without_row
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Note that a job is being written, by the topology of now or of a moment ago."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(ended)
        try:
            yield
        finally:
            self._under_way.discard(ended)
            ended.set_result(None)

    async def report(self) -> None:
        """Report the epoch of now, or the one before while calls go on that may have begun by it."""
        row = await topology.read(self._database)
        epoch = 0 if row is None else row.epoch
        if epoch != self._epoch and self._under_way:
            # What began before the row was read may go by the row before; what begins from here on cannot.
            _, older = await asyncio.wait(set(self._under_way), timeout=REPORT_SECONDS)
            epoch = self._epoch if older else epoch
        self._epoch = epoch
        await topology.report(
            self._database, self.id, hostname=socket.gethostname(), role=self._role, epoch=self._epoch
        )

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            try:
                await self.report()
            except (StoreUnavailable, StoreRefused) as error:
                log.warning("the epoch was not reported: %s", error)
