"""What a step of a long loop costs, in time and in bytes, against a step of a short one: that runs are linear.

The runs of a side hold 4,000 iterations together, as sixteen runs of 250, eight of 500 or four of 1,000, one after
another. A second pass has steps that are due to be written into the run's row whole, as those are that take seconds, an
agent's for one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks import stock
from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers, Stores
from synapse_worker import run_walk, settings
from synapse_worker.lifecycle import Worker
from synapse_worker.queueing import keys
from synapse_worker.store import definitions
from tests.support.servers import free_port
from tests.support.workers import environment

ITERATIONS = 4_000
SIZES = (250, 500, 1_000)
GOAL = "<= 1.3x"
Q = keys.queue("default")
_PERIOD = 0.05
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What the iterations of a side cost: milliseconds and bytes, per step.

    `processor` is this process's time, which what else the machine does changes less.
    """

    time: float
    processor: float
    wal: float
    stored: float
    stream: float


@contextmanager
def _slow_steps() -> Iterator[None]:
    """Have every step take as long as it takes until a run's row may be written whole again."""
    pace = run_walk.FOLD_SECONDS
    run_walk.FOLD_SECONDS = 0.0
    try:
        yield
    finally:
        run_walk.FOLD_SECONDS = pace


@contextmanager
def _quick_steps() -> Iterator[None]:
    """Leave it as it is: these steps take a few milliseconds."""
    yield


def _orchestration(iterations: int) -> definitions.Document:
    content: dict[str, object] = {
        "id": f"loop-{iterations}",
        "name": f"A loop of {iterations}",
        "entry_step_id": "again",
        "max_total_turns": 2 * ITERATIONS,
        "steps": [
            {"id": "again", "type": "loop", "loop_count": iterations, "loop_step_ids": ["say"]},
            {"id": "say", "type": "print", "print_content": "it says {state.user_input}", "output_key": "said"},
        ],
    }
    return definitions.Document("orchestrations", f"loop-{iterations}", f"A loop of {iterations}", "", content)


async def _written(stores: Stores) -> tuple[int, int]:
    """Return how many bytes of WAL the server has written so far, and how many the database occupies."""
    row = await stores.database.fetchrow(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint AS wal,"
        " pg_database_size(current_database()) AS size"
    )
    assert row is not None
    return int(row["wal"]), int(row["size"])


async def _run_all(stores: Stores, iterations: int) -> Cost:
    """Have the runs of one side done; returns what they cost."""
    await definitions.upsert(stores.database, [_orchestration(iterations)], tenant_id="default")
    ids = [f"run_{number:012x}_0" for number in range(ITERATIONS // iterations)]
    arguments = {"orch_id": f"loop-{iterations}", "initial_input": "x" * 100, "tenant_id": "default"}
    await stock.write_jobs(stores.client, ids, arguments)
    wal, size = await _written(stores)
    await stock.queue_jobs(stores.client, Q, ids)
    began, busy = time.perf_counter(), time.process_time()
    ended = "SELECT count(*) AS runs FROM orchestration_runs WHERE status = 'completed'"
    while (await stores.database.fetch(ended))[0]["runs"] < len(ids):
        assert time.perf_counter() - began < _PATIENCE, "the runs do not end"
        await asyncio.sleep(_PERIOD)
    busy = time.process_time() - busy
    wal_after, size_after = await _written(stores)
    # From the first step's start: what a run costs besides is not what this is about.
    row = await stores.database.fetchrow(
        "SELECT sum(steps) AS steps, sum(extract(epoch FROM ended_at - first))::float8 AS seconds"
        "  FROM orchestration_runs JOIN (SELECT run_id, count(*) AS steps, min(started_at) AS first FROM run_steps"
        "  WHERE step_id = 'say' GROUP BY run_id) s USING (run_id)"
    )
    assert row is not None
    assert row["steps"] == ITERATIONS
    streams = [await stores.client.memory_usage(keys.run_events(run_id), samples=0) or 0 for run_id in ids]
    costs = (row["seconds"] * 1000, busy * 1000, wal_after - wal, size_after - size, sum(streams))
    return Cost(*(cost / ITERATIONS for cost in costs))


async def _side(servers: Servers, iterations: int) -> Cost:
    async with servers.empty() as stores:
        worker = Worker(
            settings.load(
                environment(
                    servers.redis.url,
                    stores.postgres_url,
                    WORKER_HEALTH_PORT=str(free_port()),
                    WORKER_CONCURRENCY="1",
                    LOG_LEVEL="warning",
                )
            )
        )
        running = asyncio.create_task(worker.run())
        try:
            return await _run_all(stores, iterations)
        finally:
            worker.stop()
            await running


async def _pass(servers: Servers, rounds: int) -> dict[int, list[Cost]]:
    costs: dict[int, list[Cost]] = {size: [] for size in SIZES}

    async def one(size: int) -> float:
        costs[size].append(await _side(servers, size))
        return costs[size][-1].time

    await alternate({str(size): partial(one, size) for size in SIZES}, rounds)
    return costs


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    with _quick_steps():
        quick = await _pass(servers, rounds)
    with _slow_steps():
        slow = await _pass(servers, rounds)
    short = SIZES[0]
    against = f"a step of runs of {short}"
    rows: list[Row] = []
    for size in SIZES[1:]:
        goal = GOAL if size == SIZES[-1] else ""
        for name, unit, costs, part in (
            ("time", "ms/step", quick, "time"),
            ("the worker's processor time", "ms/step", quick, "processor"),
            ("PostgreSQL's log (WAL)", "bytes/step", quick, "wal"),
            ("PostgreSQL's tables", "bytes/step", quick, "stored"),
            ("Redis' stream", "bytes/step", quick, "stream"),
            ("WAL, steps that take seconds", "bytes/step", slow, "wal"),
            ("tables, steps that take seconds", "bytes/step", slow, "stored"),
        ):
            ours, reference = ([float(getattr(cost, part)) for cost in costs[each]] for each in (size, short))
            rows.append(Row(f"{size:,} iterations: {name}", unit, ours, reference, against, goal))
    return rows


async def _profiled(servers: Servers) -> None:
    print(await _side(servers, ITERATIONS))


FIGURE = Figure(
    title="A step of a long loop, against one of a short loop",
    method=(
        f"{ITERATIONS:,} iterations of a loop whose body prints a sentence, as sixteen runs, eight or four, one after "
        "another in one worker. Time is from a run's first step to its end; WAL and tables are all that PostgreSQL "
        "wrote and occupies, dead versions of rows included. For steps that take seconds, the time until a run's row "
        "may be written whole again is set to none, since a thousand of them would take an hour."
    ),
    limits=(
        "A step is a checkpoint, one round trip and commit after the other, and four events; its row in run_steps and "
        "the new version of the run's row are what is stored. A run's row is written whole only when a sixteenth of "
        "the run's steps is new: with each slow step, as it was, a step of the long run cost 13 KB of WAL, 2.7x one of "
        "the short run."
    ),
    measure=_measure,
    profiled=_profiled,
)
