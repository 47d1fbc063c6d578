"""How many long jobs run at once when many workers with 10 slots each share one queue with a job for every slot.

Each side's workers are 30 objects in one process: what differs is how they choose jobs, not how fast they are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pydantic import SecretStr

from benchmarks import stock
from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers, Stores
from synapse_worker.connections import open_redis
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.loop import ClaimLoop, Control, Ending, Job
from synapse_worker.queueing.served import Served

WORKERS = 30
SLOTS = 10
MANY_WORKERS = 500
SECONDS = 4.0
"""How long a round waits for the jobs to start; every job lasts until the round is over."""
_MANY_SECONDS = 60.0
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

    async def peak(self, jobs: int, seconds: float) -> float:
        """Watch until all run, for at most so many seconds; returns how many ran at once."""
        most = 0
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and most < jobs:
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


async def _ours(servers: Servers, workers: int, seconds: float) -> float:
    async with _filled(servers, workers * SLOTS) as stores:
        gauge = _Gauge()
        gate = StoreGate(stores.database, stores.client)
        watching = asyncio.create_task(gate.watch())
        assert await gate.wait(10)
        clients = [open_redis(SecretStr(servers.redis.url)) for _ in range(workers)]
        loops = [
            ClaimLoop(
                Served([LeaseQueue(client, Q, worker_id=f"bench-{number}", lease_seconds=_LEASE_SECONDS)]),
                _Longs(gauge),
                gate,
                slots=SLOTS,
                lease_seconds=_LEASE_SECONDS,
            )
            for number, client in enumerate(clients)
        ]
        running = [asyncio.create_task(loop.run()) for loop in loops]
        most = await gauge.peak(workers * SLOTS, seconds)
        gauge.over.set()
        for loop in loops:
            loop.stop(hand_over=False)
        await asyncio.gather(*running)
        await asyncio.gather(*(client.aclose() for client in clients))
        watching.cancel()
        return most


async def _stock(servers: Servers) -> float:
    async with _filled(servers, WORKERS * SLOTS) as stores:
        gauge = _Gauge()

        async def hold(ctx: dict[str, object], **arguments: object) -> None:
            await gauge.hold()

        pools = [await stock.pool_of(servers.redis.port, Q) for _ in range(WORKERS)]
        workers = [stock.worker_of(pool, hold, Q, slots=SLOTS, poll_delay=0.5) for pool in pools]
        running = [asyncio.create_task(worker.async_run()) for worker in workers]
        most = await gauge.peak(WORKERS * SLOTS, SECONDS)
        await stores.client.delete(Q)  # else they begin what is left
        gauge.over.set()
        await asyncio.gather(*(stock.stop(*pair, settle=2.0) for pair in zip(workers, running, strict=True)))
        return most


@asynccontextmanager
async def _filled(servers: Servers, jobs: int) -> AsyncIterator[Stores]:
    async with servers.empty() as stores:
        ids = [f"run_{number:012x}_0" for number in range(jobs)]
        await stock.write_jobs(stores.client, ids, {})
        await stock.queue_jobs(stores.client, Q, ids)
        yield stores


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    values = await alternate(
        {
            "stock": lambda: _stock(servers),
            "ours": lambda: _ours(servers, WORKERS, SECONDS),
            "many": lambda: _ours(servers, MANY_WORKERS, _MANY_SECONDS),
        },
        rounds,
    )
    few, many = WORKERS * SLOTS, MANY_WORKERS * SLOTS
    return [
        Row(
            f"jobs in flight of {few}, {WORKERS} workers",
            "jobs",
            values["ours"],
            values["stock"],
            f"stock arq, {WORKERS} workers, max_jobs {SLOTS}",
            f"{few} of {few}",
        ),
        Row(
            f"jobs in flight of {many:,}, {MANY_WORKERS} workers",
            "jobs",
            values["many"],
            [float(many)] * rounds,
            f"the slots of {MANY_WORKERS} workers",
            f"{many:,} of {many:,}",
        ),
    ]


FIGURE = Figure(
    title="Jobs in flight, workers with 10 slots on one queue",
    method=(
        f"A long job is queued for every slot of {WORKERS} and of {MANY_WORKERS} workers, all in one process; what "
        f"counts is the most that run at the same moment, within {SECONDS:g} s and {_MANY_SECONDS:g} s."
    ),
    limits=(
        "Ours is limited by the slots. Stock arq's workers all read the first 100 ids of the queue, and running jobs "
        "stay in it."
    ),
    measure=_measure,
)
