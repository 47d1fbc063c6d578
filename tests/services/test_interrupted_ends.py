"""A run that is interrupted while its end is being written: it ends, and looks like no crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.hosting import hosting
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import LeaseQueue
from synapse_worker.queueing.loop import ClaimLoop
from synapse_worker.queueing.served import Served
from synapse_worker.settings import load
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.database import Database
from synapse_worker.store.local_blobs import LocalBlobs
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter
from synapse_worker.telemetry import Metrics
from tests.support.runs import enqueue, said_done, store, view
from tests.support.servers import RedisServer
from tests.support.workers import chain, environment

STEPS = {
    "completed": {"id": "s", "type": "print", "print_content": "hi"},
    "failed": {"id": "s", "type": "transform", "transform_code": "result = 1 // 0"},
}


@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_an_interrupted_end_is_written(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    ending, go_on = asyncio.Event(), asyncio.Event()
    finish = RunWriter.finish

    async def slow_finish(
        writer: RunWriter,
        run: OwnedRun,
        status: RunStatus,
        *,
        folded: Folded,
        active_seconds: float,
        error: str | None = None,
        dead_letter: DeadLetter | None = None,
    ) -> bool:
        ending.set()
        await go_on.wait()
        return await finish(
            writer, run, status, folded=folded, active_seconds=active_seconds, error=error, dead_letter=dead_letter
        )

    monkeypatch.setattr(RunWriter, "finish", slow_finish)
    await store(database, chain("o", [STEPS[status]]))
    run_id = await enqueue(database, redis_client, "o")
    settings = load(environment(redis_server.url, postgres_url))
    gate = StoreGate(database, redis_client)
    queue = LeaseQueue(redis_client, keys.queue("default"), worker_id=settings.worker_id, lease_seconds=30)
    served = Served([queue])
    watching = asyncio.create_task(gate.watch())
    try:
        async with hosting(database, redis_client, gate, LocalBlobs(tmp_path), served, settings, {}, Metrics()) as host:
            loop = ClaimLoop(served, host.jobs, gate, slots=1, lease_seconds=30)
            claiming = asyncio.create_task(loop.run())
            await asyncio.wait_for(ending.wait(), 30)
            loop.stop(hand_over=True)
            loop.interrupt()
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.wait_for(claiming, 30)
    finally:
        watching.cancel()
    assert (await view(database, run_id)).status == status
    row = await database.fetchrow("SELECT owner, outcome FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    assert tuple(row) == (None, status)
    last = "final" if status == "completed" else "orchestration_error"
    assert [event["type"] for event in await said_done(redis_client, run_id)][-2:] == [last, "done"]
    assert await redis_client.zcard(keys.leases(keys.queue("default"))) == 0
