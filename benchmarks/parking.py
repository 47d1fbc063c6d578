"""A tenant with 100,000 jobs over its limit: how fast they are out of the way, and what others notice of them."""

from __future__ import annotations

import asyncio
import time

from benchmarks import stock
from benchmarks.measure import Figure, Row, percentile
from benchmarks.runs import store_three_steps
from benchmarks.servers import Servers, Stores
from benchmarks.start import SAMPLES, delays, first_event
from synapse_worker.queueing import keys
from tests.support.workers import WorkerProcess

JOBS = 100_000
TENANT = "greedy"
Q = keys.queue("default")
_CHUNK = 5_000
_PATIENCE = 300.0


async def _write(stores: Stores) -> tuple[float, list[str]]:
    """Write the tenant's jobs, not yet queued; returns the seconds that Redis and its client need for that."""
    ids = [f"run_{number:012x}_9" for number in range(JOBS)]
    began = time.perf_counter()
    for start in range(0, JOBS, _CHUNK):
        await stock.write_jobs(
            stores.client, ids[start : start + _CHUNK], {"orch_id": "three", "initial_input": "x", "tenant_id": TENANT}
        )
    return time.perf_counter() - began, ids


async def _park(stores: Stores, ids: list[str]) -> float:
    """Queue the jobs at once; returns the seconds until the last of them is parked."""
    began = time.perf_counter()
    for start in range(0, JOBS, _CHUNK):
        await stock.queue_jobs(stores.client, Q, ids[start : start + _CHUNK])
    while await stores.client.zcard(keys.parked_of(Q, TENANT)) < JOBS:
        assert time.perf_counter() - began < _PATIENCE, "the jobs are not parked"
        await asyncio.sleep(0.05)
    return time.perf_counter() - began


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    parked: list[float] = []
    written: list[float] = []
    beside: list[float] = []
    alone: list[float] = []
    for number in range(rounds):
        async with servers.empty() as stores:
            await store_three_steps(stores)
            await stores.database.execute(
                "INSERT INTO tenants (tenant_id, name, max_concurrent_runs) VALUES ($1, $1, 1)", TENANT
            )
            # Its one place is taken for the whole round.
            await stores.client.zadd(keys.running(TENANT), {"elsewhere": (time.time() + 3_600) * 1000})
            worker = WorkerProcess(servers.redis.url, stores.postgres_url, LOG_LEVEL="warning")
            try:
                await asyncio.to_thread(worker.start().wait_ready)
                alone.append(percentile(await delays(stores, Q, 2 * number, first_event), 0.99))
                seconds, ids = await _write(stores)
                written.append(seconds)
                parked.append(await _park(stores, ids))
                beside.append(percentile(await delays(stores, Q, 2 * number + 1, first_event), 0.99))
            finally:
                worker.close()
    return [
        Row(
            f"parking {JOBS:,} over-limit jobs",
            "s",
            parked,
            written,
            "writing those jobs' payloads to Redis, in pipelines",
            "",
        ),
        Row(
            "another tenant's enqueue to start, p99, beside them",
            "ms",
            beside,
            alone,
            "the same on an empty queue",
            "<= 2x",
        ),
    ]


FIGURE = Figure(
    title="100,000 jobs of a tenant that runs as many as it may",
    method=(
        f"One worker process; the tenant's limit is 1 and taken. {SAMPLES} single runs of another tenant are timed on "
        f"the empty queue, then {JOBS:,} jobs are queued at once and parked, then {SAMPLES} more runs are timed."
    ),
    limits=(
        "Parking is pages of 500 jobs, one after the other: reading and checking each payload takes most of it. "
        "Afterwards the parked jobs cost one look a second, whatever their number."
    ),
    measure=_measure,
)
