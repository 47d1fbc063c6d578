"""How many long jobs run at once when 30 workers with 10 slots each share one queue of 300 jobs.

Each side's workers are 30 objects in one process: what differs is how they choose jobs, not how fast they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks import stock
from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers, Stores
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.loop import ClaimLoop, Control, Ending, Job

WORKERS = 30
SLOTS = 10
JOBS = WORKERS * SLOTS
SECONDS = 4.0
"""How long a round waits for the jobs to start; every job lasts until the round is over."""
_LEASE_SECONDS = 30
_PERIOD = 0.05
Q = keys.queue("default")


class _Gauge:
    """Counts the jobs that run now; they run until `over`."""

    def __init__(self) -> None:
        self.running = 0
        self.over = asyncio.Event()

    async def hold(self) -> None:
        self.running += 1
        try:
            await self.over.wait()
        finally:
            self.running -= 1

    async def peak(self) -> float:
        """Watch until all run, for at most `SECONDS`; returns how many ran at once."""
        most = 0
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline and most < JOBS:
            most = max(most, self.running)
            await asyncio.sleep(_PERIOD)
        return most


class _Long:
    def __init__(self, lease: Lease, gauge: _Gauge) -> None:
        self.lease = lease
        self._gauge = gauge

    async def run(self, control: Control) -> Ending:
        await self._gauge.hold()
        return Release(self.lease, b"")


class _Longs:
    def __init__(self, gauge: _Gauge) -> None:
        self._gauge = gauge

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        return [_Long(lease, self._gauge) for lease in leases]


async def _ours(servers: Servers) -> float:
    async with _filled(servers) as stores:
        gauge = _Gauge()
        gate = StoreGate(stores.database, stores.client)
        watching = asyncio.create_task(gate.watch())
        assert await gate.wait(10)
        loops = [
            ClaimLoop(
                [LeaseQueue(stores.client, Q, worker_id=f"bench-{number}", lease_seconds=_LEASE_SECONDS)],
                _Longs(gauge),
                gate,
                slots=SLOTS,
                lease_seconds=_LEASE_SECONDS,
            )
            for number in range(WORKERS)
        ]
        running = [asyncio.create_task(loop.run()) for loop in loops]
        most = await gauge.peak()
        gauge.over.set()
        for loop in loops:
            loop.stop(hand_over=False)
        await asyncio.gather(*running)
        watching.cancel()
        return most


async def _stock(servers: Servers) -> float:
    async with _filled(servers) as stores:
        gauge = _Gauge()

        async def hold(ctx: dict[str, object], **arguments: object) -> None:
            await gauge.hold()

        pools = [await stock.pool_of(servers.redis.port, Q) for _ in range(WORKERS)]
        workers = [stock.worker_of(pool, hold, Q, slots=SLOTS, poll_delay=0.5) for pool in pools]
        running = [asyncio.create_task(worker.async_run()) for worker in workers]
        most = await gauge.peak()
        await stores.client.delete(Q)  # else they begin what is left
        gauge.over.set()
        await asyncio.gather(*(stock.stop(*pair, settle=2.0) for pair in zip(workers, running, strict=True)))
        return most


@asynccontextmanager
async def _filled(servers: Servers) -> AsyncIterator[Stores]:
    async with servers.empty() as stores:
        ids = [f"run_{number:012x}_0" for number in range(JOBS)]
        await stock.write_jobs(stores.client, ids, {})
        await stock.queue_jobs(stores.client, Q, ids)
        yield stores


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    values = await alternate({"stock": lambda: _stock(servers), "ours": lambda: _ours(servers)}, rounds)
    return [
        Row(
            f"jobs in flight of {JOBS}",
            "jobs",
            values["ours"],
            values["stock"],
            f"stock arq, {WORKERS} workers, max_jobs {SLOTS}",
            f"{JOBS} of {JOBS}",
        )
    ]


FIGURE = Figure(
    title="Jobs in flight, 30 workers with 10 slots on one queue",
    method=(
        f"{JOBS} long jobs are queued for {WORKERS} workers, all in one process; what counts is the most that run at "
        f"the same moment within {SECONDS:g} s."
    ),
    limits=(
        "Ours is limited by the slots. Stock arq's workers all read the first 100 ids of the queue, and running jobs "
        "stay in it."
    ),
    measure=_measure,
)
