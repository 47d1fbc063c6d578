"""No-op jobs per second of one process with 100 slots: the claim loop alone, and with claim numbers and outcomes.

Ours reads and checks every payload and sets arq's in-progress keys, as in production. What a run does between
its claim and its end is the figure `runs`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from benchmarks import stock
from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers, Stores
from synapse_worker.connections import read_each
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.loop import ClaimLoop, Control, Ending, Job
from synapse_worker.queueing.payload import decode
from synapse_worker.queueing.served import Served
from synapse_worker.store import claims
from synapse_worker.store.claims import ClaimRequest, OwnedRun
from synapse_worker.store.runs import Folded, RunStatus, RunWriter

SLOTS = 100
LEASE_SECONDS = 30
Q = keys.queue("default")
STOCK_JOBS = 1_500
OUR_JOBS = 20_000
LEDGER_JOBS = 3_000
STOCK_POLL_DELAY = 0.01
_WORKER = "bench"


class _NoOp:
    """A job that ends at once; with a ledger, its outcome is committed first."""

    def __init__(self, lease: Lease, ended: Callable[[], None], ledger: RunWriter | None, run: OwnedRun | None) -> None:
        self.lease = lease
        self._ended = ended
        self._ledger = ledger
        self._run = run

    async def run(self, control: Control) -> Ending:
        if self._ledger is not None and self._run is not None:
            nothing = Folded({}, [], 0)
            await self._ledger.finish(self._run, RunStatus.COMPLETED, folded=nothing, active_seconds=0.0)
        self._ended()
        return Release(self.lease, b"")


class _NoOps:
    """Reads payloads as `Jobs` does and, with a ledger, owns the runs as it does."""

    def __init__(self, stores: Stores, ended: Callable[[], None], *, ledger: bool) -> None:
        self._stores = stores
        self._ended = ended
        self._ledger = RunWriter(stores.database) if ledger else None

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        found = await read_each(self._stores.client, [keys.job(lease.job_id) for lease in leases])
        raws = [raw for raw in found if raw is not None]
        payloads = {lease.job_id: decode(raw) for lease, raw in zip(leases, raws, strict=True)}
        owned: dict[str, OwnedRun | None] = {}
        if self._ledger is not None:
            requests = [
                ClaimRequest(
                    job_id=lease.job_id,
                    run_id=str(payloads[lease.job_id].arguments["run_id"]),
                    queue=lease.queue_key,
                    envelope=raw,
                    enqueued_ms=payloads[lease.job_id].enqueued_ms,
                    orchestration_id="noop",
                    session_id=None,
                    tenant_id="default",
                    webhook_url=None,
                    webhook_secret=None,
                )
                for lease, raw in zip(leases, raws, strict=True)
            ]
            taken = await claims.take(self._stores.database, _WORKER, requests)
            owned = {answer.request.job_id: answer.run for answer in taken}
        return [_NoOp(lease, self._ended, self._ledger, owned.get(lease.job_id)) for lease in leases]


async def _ours(servers: Servers, jobs: int, *, ledger: bool) -> float:
    async with servers.empty() as stores:
        ids = [f"run_{number:012x}_0" for number in range(jobs)]
        await stock.write_jobs(stores.client, ids, {"orch_id": "noop"})
        await stock.queue_jobs(stores.client, Q, ids)
        gate = StoreGate(stores.database, stores.client)
        watching = asyncio.create_task(gate.watch())
        assert await gate.wait(10)
        left = jobs

        def ended() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                loop.stop(hand_over=False)

        queue = LeaseQueue(stores.client, Q, worker_id=_WORKER, lease_seconds=LEASE_SECONDS)
        handler = _NoOps(stores, ended, ledger=ledger)
        loop = ClaimLoop(Served([queue]), handler, gate, slots=SLOTS, lease_seconds=LEASE_SECONDS)
        began = time.perf_counter()
        await loop.run()
        seconds = time.perf_counter() - began
        watching.cancel()
        assert left == 0
        assert await stores.client.zcard(keys.leases(Q)) == 0
        return jobs / seconds


async def _stock(servers: Servers) -> float:
    async with servers.empty() as stores:
        ids = [f"run_{number:012x}_0" for number in range(STOCK_JOBS)]
        await stock.write_jobs(stores.client, ids, {"orch_id": "noop"})
        await stock.queue_jobs(stores.client, Q, ids)
        pool = await stock.pool_of(servers.redis.port, Q)
        left = STOCK_JOBS
        done = asyncio.Event()

        async def no_op(ctx: dict[str, object], **arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        worker = stock.worker_of(pool, no_op, Q, slots=SLOTS, poll_delay=STOCK_POLL_DELAY)
        began = time.perf_counter()
        running = asyncio.create_task(worker.async_run())
        await done.wait()
        seconds = time.perf_counter() - began
        await stock.stop(worker, running)
        return STOCK_JOBS / seconds


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    values = await alternate(
        {
            "stock": lambda: _stock(servers),
            "queue": lambda: _ours(servers, OUR_JOBS, ledger=False),
            "ledger": lambda: _ours(servers, LEDGER_JOBS, ledger=True),
        },
        rounds,
    )
    against = f"stock arq, max_jobs {SLOTS}"
    return [
        Row("queue alone", "no-op jobs/s", values["queue"], values["stock"], against, ">= 20x"),
        Row(
            "with claim number, run row and outcome",
            "no-op jobs/s",
            values["ledger"],
            values["stock"],
            against,
            ">= 10x",
        ),
    ]


async def _profiled(servers: Servers) -> None:
    print(f"{await _ours(servers, OUR_JOBS, ledger=False):,.0f} jobs/s under the profiler")


FIGURE = Figure(
    title="No-op jobs per second, one process, 100 slots",
    method=(
        "Jobs that do nothing are queued, then one process empties the queue. Ours reads and checks every payload and "
        "keeps arq's in-progress keys in both rows (there is no switch for them); the second row also gives each job "
        "its ledger row, claim number and run row and commits its outcome, as a run does. Stock arq "
        "keeps no results; other poll delays and read limits gave the same."
    ),
    limits=(
        "Alone, the queue costs about 50 µs of Python a job (over a quarter of it redis-py writing twelve script "
        "arguments, a seventh reading the pickle safely, the rest tasks and sockets) and 35 µs of Redis, which "
        "overlap only in part. With the ledger PostgreSQL costs 160 µs a job more, for two rows inserted and "
        "updated with upstream's four indexes, and our side 90 µs."
    ),
    measure=_measure,
    profiled=_profiled,
)
