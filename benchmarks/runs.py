"""Runs of three steps (print, if_else, print) per second of one worker process with 20 slots.

The reference is a stock arq worker process whose function is empty, on the same servers: a run of ours writes
three checkpoints, an end and fourteen events where the reference does nothing at all.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks import stock
from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers, Stores
from synapse_worker import settings
from synapse_worker.lifecycle import Worker
from synapse_worker.queueing import keys
from synapse_worker.store import definitions
from tests.support.servers import free_port
from tests.support.workers import PRINT_IF_PRINT, WorkerProcess, environment

SLOTS = 20
Q = keys.queue("default")
RUNS = 1_500
STOCK_JOBS = 1_500
_FOR_THE_SANDBOX = "state.user_input.strip() != ''"
_PERIOD = 0.02
_PATIENCE = 120.0


async def drained(stores: Stores, job_ids: Sequence[str]) -> float:
    """Queue jobs whose keys are written; returns how many seconds pass until none is queued or leased."""
    names = (Q, keys.again(Q), keys.leases(Q))
    began = time.perf_counter()
    await stock.queue_jobs(stores.client, Q, job_ids)
    while True:
        pipeline = stores.client.pipeline(transaction=False)
        for name in names:
            pipeline.zcard(name)
        if not any(await pipeline.execute()):
            return time.perf_counter() - began
        assert time.perf_counter() - began < _PATIENCE, "the jobs do not end"
        await asyncio.sleep(_PERIOD)


async def store_three_steps(stores: Stores, condition: str = "") -> None:
    """Store the orchestration of three steps, with another condition if one is given."""
    content = copy.deepcopy(PRINT_IF_PRINT)
    if condition:
        (step,) = [step for step in content["steps"] if "if_condition" in step]
        step["if_condition"] = condition
    document = definitions.Document("orchestrations", "three", "Three", "", content)
    await definitions.upsert(stores.database, [document], tenant_id="default")


async def run_all(stores: Stores, drain: Callable[[Sequence[str]], Awaitable[float]]) -> float:
    """Have all runs done and see that they were; returns runs per second."""
    ids = [f"run_{number:012x}_0" for number in range(RUNS)]
    await stock.write_jobs(stores.client, ids, {"orch_id": "three", "initial_input": "x", "tenant_id": "default"})
    seconds = await drain(ids)
    row = await stores.database.fetchrow(
        "SELECT (SELECT count(*) FROM orchestration_runs WHERE status = 'completed') AS runs,"
        " (SELECT count(*) FROM run_steps) AS steps"
    )
    assert row is not None
    assert (row["runs"], row["steps"]) == (RUNS, 3 * RUNS)
    return RUNS / seconds


async def _ours(servers: Servers, condition: str = "") -> float:
    async with servers.empty() as stores:
        await store_three_steps(stores, condition)
        worker = WorkerProcess(
            servers.redis.url, stores.postgres_url, WORKER_CONCURRENCY=str(SLOTS), LOG_LEVEL="warning"
        )
        try:
            await asyncio.to_thread(worker.start().wait_ready)
            return await run_all(stores, lambda ids: drained(stores, ids))
        finally:
            worker.close()


async def _stock(servers: Servers) -> float:
    async with servers.empty() as stores:
        ids = [f"run_{number:012x}_0" for number in range(STOCK_JOBS)]
        with stock.process(servers.redis.port, Q, slots=SLOTS, poll_delay=0.01):
            await stock.write_jobs(stores.client, ids[:1], {"orch_id": "three"})
            await drained(stores, ids[:1])  # it is up
            await stock.write_jobs(stores.client, ids, {"orch_id": "three", "initial_input": "x"})
            return STOCK_JOBS / await drained(stores, ids)


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    values = await alternate(
        {
            "stock": lambda: _stock(servers),
            "ours": lambda: _ours(servers),
            "sandbox": lambda: _ours(servers, _FOR_THE_SANDBOX),
        },
        rounds,
    )
    reference = f"empty jobs/s of stock arq, max_jobs {SLOTS}"
    return [
        Row("three-step runs", "runs/s", values["ours"], values["stock"], reference, ">= 400/s"),
        Row(f"with `{_FOR_THE_SANDBOX}`", "runs/s", values["sandbox"], values["stock"], reference, ""),
    ]


async def _profiled(servers: Servers) -> None:
    async with servers.empty() as stores:
        await store_three_steps(stores)
        worker = Worker(
            settings.load(
                environment(
                    servers.redis.url,
                    stores.postgres_url,
                    WORKER_HEALTH_PORT=str(free_port()),
                    WORKER_CONCURRENCY=str(SLOTS),
                )
            )
        )
        running = asyncio.create_task(worker.run())
        rate = await run_all(stores, lambda ids: drained(stores, ids))
        worker.stop()
        await running
        print(f"{rate:,.0f} runs/s under the profiler")


FIGURE = Figure(
    title="Three-step runs per second, one worker process, 20 slots",
    method=(
        "Runs of print, if_else, print are queued as an upstream producer queues them (no rows yet), then one worker "
        "process does them: definition, three checkpoints, a condition that compares a key with a text, fourteen "
        "events, outcome; in the second row the condition calls a method, so that the sandbox has to answer. The "
        "reference is a stock arq worker process whose function is empty; it touches no PostgreSQL."
    ),
    limits=(
        "One core of Python is the limit, 0.8 ms a run: asyncio's loop, timers and sockets over the round trips, "
        "redis-py, JSON. A call of the sandbox's pool costs as much again and more. PostgreSQL "
        "needs 0.8 to 1 ms a run beside it, since checkpoints and ends of many runs share a round trip and a "
        "commit. Logs of runs are written at 25 a second while all slots are taken, the rest of them afterwards."
    ),
    measure=_measure,
    profiled=_profiled,
)
