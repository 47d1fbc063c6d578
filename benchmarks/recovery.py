"""How long a run stands still when the process that runs it is killed with kill -9, at the shortest lease.

The reference is the lease itself: nobody may touch a run before it has run out. (Stock arq with its default
settings lets such a job wait for 310 s, upstream's for over an hour.)
"""

from __future__ import annotations

import asyncio
import json
import random
import time

from benchmarks import stock
from benchmarks.measure import Figure, Row
from benchmarks.servers import Servers, Stores
from synapse_worker.queueing import keys
from synapse_worker.store import definitions
from tests.support.workers import WorkerProcess, chain, slow_steps

LEASE_SECONDS = 3
KILLS_A_ROUND = 3
_STEPS = 60
_STEP_SECONDS = 0.2
_PERIOD = 0.01
_PATIENCE = 60.0
_PICKED_UP = "worker_picked_up"
Q = keys.queue("default")


async def _pick_ups(stores: Stores, run_id: str) -> list[tuple[float, str]]:
    """Return (time in s, worker id) of each time a worker has taken the run."""
    found: list[tuple[float, str]] = []
    for entry_id, fields in await stores.client.xrange(keys.run_events(run_id)):
        event = json.loads(fields[b"data"])
        if event["type"] == _PICKED_UP:
            found.append((int(entry_id.split(b"-")[0]) / 1000, event["worker_id"]))
    return found


async def _taken(stores: Stores, run_id: str, times: int) -> tuple[float, str]:
    deadline = time.monotonic() + _PATIENCE
    while len(found := await _pick_ups(stores, run_id)) < times:
        assert time.monotonic() < deadline, "nobody takes the run"
        await asyncio.sleep(_PERIOD)
    return found[times - 1]


async def _one_kill(servers: Servers) -> float:
    """Kill the owner of a run; returns the seconds until another worker has taken it."""
    async with servers.empty() as stores:
        document = chain("slow", slow_steps(_STEPS, _STEP_SECONDS))
        await definitions.upsert(
            stores.database,
            [definitions.Document("orchestrations", "slow", "Slow", "", document)],
            tenant_id="default",
        )
        workers = [
            WorkerProcess(
                servers.redis.url,
                stores.postgres_url,
                WORKER_LEASE_SECONDS=str(LEASE_SECONDS),
                LOG_LEVEL="warning",
            ).start()
            for _ in range(2)
        ]
        try:
            for worker in workers:
                await asyncio.to_thread(worker.wait_ready)
            run_id = "run_000000000000_0"
            await stock.write_jobs(stores.client, [run_id], {"orch_id": "slow", "initial_input": "x"})
            await stock.queue_jobs(stores.client, Q, [run_id])
            _, owner = await _taken(stores, run_id, 1)
            await asyncio.sleep(random.uniform(0.5, 0.5 + LEASE_SECONDS / 3))
            by_id = {json.loads(worker.get("/health")[1])["worker_id"]: worker for worker in workers}
            killed = time.time()
            by_id[owner].kill()
            at, successor = await _taken(stores, run_id, 2)
            assert successor != owner
            return at - killed
        finally:
            for worker in workers:
                worker.close()


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    waits = [await _one_kill(servers) for _ in range(KILLS_A_ROUND * rounds)]
    return [
        Row(
            "kill -9 until the run goes on",
            "s",
            waits,
            [float(LEASE_SECONDS)] * len(waits),
            f"the lease of {LEASE_SECONDS} s",
            "<= lease + 5 s",
        )
    ]


FIGURE = Figure(
    title="A killed worker's run goes on elsewhere",
    method=(
        "A worker process is killed (-9) in the middle of a run, beside an idle one; the time until the run's next "
        "`worker_picked_up` event is measured, as a share of the lease."
    ),
    limits=(
        "It is the rest of the lease, which was prolonged at most a third of its time before the kill, and one poll of "
        "the other worker. So the ratio lies between two thirds and a little over one, at any length of the lease."
    ),
    measure=_measure,
)
