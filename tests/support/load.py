"""Runs under way while something is broken: keeps a number of them in flight, then judges what became of all.

What it goes by is written by others than those who are broken: rows in PostgreSQL, and the runs' event streams.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id
from synapse_worker.store.database import Database
from tests.support.runs import events_of, eventually


@dataclass(frozen=True, slots=True)
class Judged:
    """What became of the runs; `slowest` is the longest that one stood still between two steps (s)."""

    started: int
    finished: int
    lost: Sequence[str]
    doubled: Sequence[str]
    failures: int
    dead_letters: int
    slowest: float

    def __str__(self) -> str:
        return (
            f"started {self.started}, finished {self.finished}, lost {len(self.lost)}, doubled {len(self.doubled)},"
            f" tries burned {self.failures}, dead letters {self.dead_letters}, slowest recovery {self.slowest:.1f} s"
        )


class Load:
    """Runs of one orchestration of `steps` steps, `in_flight` at a time."""

    def __init__(self, database: Database, client: Redis, orchestration_id: str, *, steps: int, in_flight: int) -> None:
        self._database = database
        self._client = client
        self._orchestration_id = orchestration_id
        self._steps = steps
        self._in_flight = in_flight
        self.run_ids: list[str] = []

    @asynccontextmanager
    async def under_way(self) -> AsyncIterator[None]:
        """Enqueue while the body runs, which begins once the first step is done; ends when every run is queued."""
        stop = asyncio.Event()
        producing = asyncio.create_task(self._produce(stop))
        try:
            await eventually("the first step is done", self._some_step, seconds=60)
            yield
        finally:
            stop.set()
            await producing

    async def judged(self, *, seconds: float) -> Judged:
        """Wait until all runs have ended, for at most so many seconds, and judge them."""
        return await judge(self._database, self._client, self.run_ids, steps=self._steps, seconds=seconds)

    async def _produce(self, stop: asyncio.Event) -> None:
        for number in itertools.count():
            await eventually("there is room", partial(self._has_room, stop), seconds=600)
            if stop.is_set():
                return
            run_id = f"{new_run_id(int(time.time() * 1000))[:-4]}{number:04}"
            self.run_ids.append(run_id)
            await eventually("it is queued", partial(self._queued, run_id), seconds=300)

    async def _has_room(self, stop: asyncio.Event) -> bool:
        with suppress(StoreUnavailable, StoreRefused):
            return stop.is_set() or await _open(self._database, self.run_ids) < self._in_flight
        return False

    async def _queued(self, run_id: str) -> bool:
        """Enqueue; False when a store does not answer: as any producer, once more under the same id."""
        with suppress(StoreUnavailable, StoreRefused):
            await self._enqueue(run_id)
            return True
        return False

    async def _enqueue(self, run_id: str) -> None:
        now_ms = int(time.time() * 1000)
        run = NewRun(self._orchestration_id, "hi", "default")
        await enqueue_run(self._database, self._client, run, run_id=run_id, now_ms=now_ms)

    async def _some_step(self) -> bool:
        return bool(
            await self._database.fetch("SELECT 1 FROM run_steps WHERE run_id = ANY($1::text[]) LIMIT 1", self.run_ids)
        )


async def judge(database: Database, client: Redis, run_ids: Sequence[str], *, steps: int, seconds: float) -> Judged:
    """Wait until runs of `steps` steps each have ended, for at most so many seconds, and judge them."""

    async def none_open() -> bool:
        return await _open(database, run_ids) == 0

    with suppress(AssertionError):  # what has not ended is lost, and counted so
        await eventually("all runs have ended", none_open, seconds=seconds)
    rows = await database.fetch(
        """
        SELECT r.run_id, r.status, l.failures, (SELECT count(*) FROM run_steps s WHERE s.run_id = r.run_id) AS steps
          FROM orchestration_runs r LEFT JOIN job_ledger l ON l.job_id = r.run_id
         WHERE r.run_id = ANY($1::text[])
        """,
        run_ids,
    )
    whole = {row["run_id"] for row in rows if row["status"] == "completed" and row["steps"] == steps}
    letters = await database.fetchrow(
        "SELECT count(*) AS n FROM dead_letter_queue WHERE run_id = ANY($1::text[])", run_ids
    )
    assert letters is not None
    return Judged(
        started=len(run_ids),
        finished=len(whole),
        lost=sorted(set(run_ids) - whole),
        doubled=[run_id for run_id in run_ids if await _did_a_step_again(client, run_id)],
        failures=sum(row["failures"] or 0 for row in rows),
        dead_letters=letters["n"],
        slowest=max([await _longest_pause(client, run_id) for run_id in run_ids]),
    )


async def _open(database: Database, run_ids: Sequence[str]) -> int:
    row = await database.fetchrow(
        "SELECT count(*) AS n FROM orchestration_runs WHERE run_id = ANY($1::text[])"
        " AND status IN ('completed', 'failed', 'cancelled')",
        run_ids,
    )
    assert row is not None
    return len(run_ids) - int(row["n"])


async def _did_a_step_again(client: Redis, run_id: str) -> bool:
    """Whether a step began again after its checkpoint, by what the run's stream tells."""
    completed: set[tuple[object, str]] = set()
    for event in await events_of(client, run_id):
        visit = (event.get("orch_step_id"), str(event["event_id"]).rsplit(":", 1)[0])
        if event["type"] == "step_complete":
            completed.add(visit)
        elif event["type"] == "step_start" and visit in completed:
            return True
    return False


async def _longest_pause(client: Redis, run_id: str) -> float:
    entries = await client.xrange(keys.run_events(run_id))
    times = [int(entry_id.split(b"-")[0]) / 1000 for entry_id, _ in entries]
    return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)
