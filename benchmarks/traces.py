"""What tracing costs where it is off, which is nothing that can be measured, and for information where it is on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from functools import partial

from benchmarks.measure import Figure, Row, alternate, processor_seconds
from benchmarks.runs import RUNS, SLOTS, drained, run_all, store_three_steps
from benchmarks.servers import Servers
from tests.support.collector import Collector
from tests.support.workers import WorkerProcess

_LEAST_SPANS = 5 * RUNS
"""A run is more than that; `tests/services/test_tracing.py` says which."""


class _Untraced(WorkerProcess):
    """A worker from whose code the calls of `tracing` are cut."""

    COMMAND = (sys.executable, "-m", "benchmarks.untraced", "run")


async def _side(servers: Servers, start: type[WorkerProcess], *, collected: bool = False) -> tuple[float, float]:
    """Return three-step runs a second, and milliseconds of the worker's processor time for each."""
    collector = Collector()
    async with servers.empty() as stores:
        await store_three_steps(stores)
        with collector if collected else nullcontext():
            worker = start(
                servers.redis.url,
                stores.postgres_url,
                WORKER_CONCURRENCY=str(SLOTS),
                LOG_LEVEL="warning",
                OTLP_ENDPOINT=collector.url if collected else "",
            )
            try:
                await asyncio.to_thread(worker.start().wait_ready)
                before = processor_seconds(worker.pid)
                rate = await run_all(stores, lambda ids: drained(stores, ids))
                busy = processor_seconds(worker.pid) - before
            finally:
                worker.close()
    assert not collected or len(collector.spans) > _LEAST_SPANS, len(collector.spans)
    return rate, busy * 1000 / RUNS


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    taken: dict[str, list[tuple[float, float]]] = {"cut": [], "off": [], "on": []}

    async def one(name: str, side: Callable[[], Awaitable[tuple[float, float]]]) -> float:
        taken[name].append(await side())
        return taken[name][-1][0]

    sides = {
        "cut": partial(_side, servers, _Untraced),
        "off": partial(_side, servers, WorkerProcess),
        "on": partial(_side, servers, WorkerProcess, collected=True),
    }
    await alternate({name: partial(one, name, side) for name, side in sides.items()}, rounds)

    def row(name: str, unit: str, side: str, part: int, goal: str) -> Row:
        ours: Sequence[float] = [values[part] for values in taken[side]]
        theirs = [values[part] for values in taken["cut"]]
        return Row(f"tracing {side}: {name}", unit, ours, theirs, "the same worker, those calls cut out of it", goal)

    return [
        row("three-step runs", "runs/s", "off", 0, "1.00 within the spread"),
        row("processor time of the worker", "ms/run", "off", 1, "1.00 within the spread"),
        row("three-step runs", "runs/s", "on", 0, ""),
        row("processor time of the worker", "ms/run", "on", 1, ""),
    ]


FIGURE = Figure(
    title="Tracing, off and on",
    method=(
        f"{RUNS:,} three-step runs in one worker process with {SLOTS} slots: with OTLP_ENDPOINT empty, and with a "
        "collector on the same machine, which takes every span by OTLP over gRPC. The reference is the same worker "
        "from whose syntax trees every call of `tracing` is cut as its modules are imported (`benchmarks/untraced.py`)."
    ),
    limits=(
        "Off, a call looks at one variable of a module: 0.3 to 0.8 µs each, about twenty of them a run, less than a "
        "hundredth of its processor time. A larger difference is the machine's. On, the worker makes and sends a span "
        "for each run, step, statement and exchange with Redis, and the collector takes its share of the same two "
        "cores."
    ),
    measure=_measure,
)
