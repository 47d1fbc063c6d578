"""From the queue entry to the start of the job, on idle worker processes.

Both sides say when they begin through the same Redis: ours by the run's first event, which is written after the
claim is committed in PostgreSQL; stock arq's function by a key. Ours does more before it may begin.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from benchmarks import stock
from benchmarks.measure import Figure, Row, percentile
from benchmarks.runs import store_three_steps
from benchmarks.servers import Servers, Stores
from synapse_worker.queueing import keys
from tests.support.workers import WorkerProcess

SAMPLES = 40
STOCK_POLL_DELAY = 0.5
"""arq's default."""
Q = keys.queue("default")
STOCK_Q = keys.queue("stock")
_GAP = (0.5, 0.9)
"""Seconds between two jobs: long enough for both sides to fall back to their idle pace."""
_PERIOD = 0.005
_PATIENCE = 10.0


async def first_event(stores: Stores, run_id: str) -> float | None:
    entries = await stores.client.xrange(keys.run_events(run_id), count=1)
    return int(entries[0][0].split(b"-")[0]) / 1000 if entries else None


async def _noted(stores: Stores, run_id: str) -> float | None:
    value = await stores.client.get(stock.STARTED + run_id)
    return None if value is None else float(value)


async def delays(
    stores: Stores, queue: str, label: int, started: Callable[[Stores, str], Awaitable[float | None]]
) -> list[float]:
    """Enqueue jobs one by one; returns milliseconds from the queue entry to the start of each."""
    found: list[float] = []
    for number in range(SAMPLES):
        job_id = f"run_{label:06x}{number:06x}_0"
        await stock.write_jobs(stores.client, [job_id], {"orch_id": "three", "initial_input": "x"})
        await asyncio.sleep(random.uniform(*_GAP))
        began = time.time()
        await stock.queue_jobs(stores.client, queue, [job_id])
        while (at := await started(stores, job_id)) is None:
            assert time.time() - began < _PATIENCE, "the job does not start"
            await asyncio.sleep(_PERIOD)
        found.append((at - began) * 1000)
    return found


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    async with servers.empty() as stores:
        await store_three_steps(stores)
        worker = WorkerProcess(servers.redis.url, stores.postgres_url, LOG_LEVEL="warning")
        try:
            await asyncio.to_thread(worker.start().wait_ready)
            with stock.process(servers.redis.port, STOCK_Q, slots=10, poll_delay=STOCK_POLL_DELAY, note_start=True):
                for number in range(rounds):
                    mine, stocks = await asyncio.gather(
                        delays(stores, Q, 2 * number, first_event),
                        delays(stores, STOCK_Q, 2 * number + 1, _noted),
                    )
                    ours.append(mine)
                    theirs.append(stocks)
        finally:
            worker.close()
    against = f"stock arq, poll_delay {STOCK_POLL_DELAY:g} s (its default)"
    return [
        Row(
            f"enqueue to start, {name}",
            "ms",
            [percentile(values, share) for values in ours],
            [percentile(values, share) for values in theirs],
            against,
            goal,
        )
        for name, share, goal in (("p50", 0.5, ""), ("p99", 0.99, "< 120 ms"))
    ]


FIGURE = Figure(
    title="From enqueue to start on an idle worker",
    method=(
        f"{SAMPLES} single runs a round, {_GAP[0]:g} to {_GAP[1]:g} s apart, each from its queue entry to its first "
        "event, which comes after the claim is committed; a stock worker notes when its function begins, meanwhile."
    ),
    limits=(
        "It is the idle poll: every 75 to 100 ms in ours, every 500 ms in stock arq. The claim's two scripts, the "
        "payload, one PostgreSQL statement and the definition's read add a few milliseconds."
    ),
    measure=_measure,
)
