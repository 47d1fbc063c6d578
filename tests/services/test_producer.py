"""Producers that live long: what they report, what growing under them loses, what they do without their stores."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator

import pytest
from redis.asyncio import Redis

from synapse_worker.errors import SessionTaken
from synapse_worker.queueing import client as queue_client
from synapse_worker.queueing import keys, producer
from synapse_worker.queueing.client import NewRun, NewTurn, enqueue_turn
from synapse_worker.queueing.producer import Producer
from synapse_worker.routing import ONE_QUEUE, Topology, shard_of_job
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from synapse_worker.store.topology import Role
from tests.page.support import printing
from tests.support.runs import eventually, store
from tests.support.servers import RedisServer
from tests.support.workers import StartWorker, WorkerProcess, command

RUN = NewRun("hello", "hi", "default")


class Enqueue(WorkerProcess):
    """`synapse-worker enqueue hello` as a process of its own."""

    def __init__(self, redis_url: str, postgres_url: str, *words: str) -> None:
        super().__init__(redis_url, postgres_url)
        self.COMMAND = (sys.executable, "-m", "synapse_worker", "enqueue", "hello", *words)

    @property
    def run_ids(self) -> list[str]:
        """What it has queued so far."""
        return [line for line in self.log.splitlines() if line.startswith("run_")]


@pytest.fixture
def rate_20(redis_server: RedisServer, postgres_url: str, database: Database) -> Iterator[Enqueue]:
    """`enqueue --rate 20`, not started."""
    process = Enqueue(redis_server.url, postgres_url, "--rate", "20")
    yield process
    process.close()


async def flip(database: Database, wanted: Topology) -> int:
    """Make `wanted` the topology; returns its epoch."""
    row = await topology.write(database, await topology.read(database), wanted, enabled=True, owner_uid="u")
    assert row is not None
    return row.epoch


async def test_growing_under_a_producer_loses_no_run(
    database: Database, redis_client: Redis, rate_20: Enqueue, start_worker: StartWorker
) -> None:
    await store(database, printing("hello"))
    start_worker(WORKER_QUEUE_SHARD="default,0")
    rate_20.start()
    await eventually("some are queued", lambda: len(rate_20.run_ids) > 10)
    others = [start_worker(WORKER_QUEUE_SHARD=str(shard)) for shard in (1, 2, 3)]
    for worker in others:
        await asyncio.to_thread(worker.wait_ready)
    epoch = await flip(database, Topology(4))

    async def reported() -> bool:
        return not await topology.producers_behind(database, epoch)

    assert await topology.producers_behind(database, epoch + 1) != []
    await eventually("the producer has reported the epoch", reported)
    at_the_report = set(rate_20.run_ids)
    await eventually("more are queued", lambda: len(rate_20.run_ids) > len(at_the_report) + 20)
    rate_20.signal(signal.SIGTERM)
    assert await asyncio.to_thread(rate_20.wait) == 0, rate_20.log
    run_ids = rate_20.run_ids

    async def all_completed() -> bool:
        rows = await database.fetch("SELECT run_id FROM orchestration_runs WHERE status = 'completed'")
        return {row["run_id"] for row in rows} == set(run_ids)

    await eventually("all runs are completed", all_completed)
    placed = {row["run_id"]: row["queue"] for row in await database.fetch("SELECT run_id, queue FROM job_ledger")}
    assert set(placed.values()) == {keys.queue(shard) for shard in ("default", "0", "1", "2", "3")}
    for run_id in set(run_ids) - at_the_report:
        assert placed[run_id] == keys.queue(shard_of_job(Topology(4), key=run_id, tenant_id="default"))
    assert await topology.producers_behind(database, 1_000) == []  # it has left


async def test_a_rate_is_kept_and_ends_at_the_count(
    redis_server: RedisServer, postgres_url: str, database: Database
) -> None:
    began = asyncio.get_running_loop().time()
    words = ("enqueue", "hello", "--rate", "50", "--count", "40")
    done = await asyncio.to_thread(command, redis_server.url, postgres_url, *words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 40
    assert asyncio.get_running_loop().time() - began > 39 / 50
    span = await database.fetchrow("SELECT max(enqueued_at) - min(enqueued_at) AS span FROM job_ledger")
    assert span is not None
    assert span["span"].total_seconds() > 0.7


async def test_a_store_that_is_away_is_waited_for(
    redis_server: RedisServer, redis_client: Redis, database: Database, rate_20: Enqueue
) -> None:
    rate_20.start()
    await eventually("some are queued", lambda: len(rate_20.run_ids) > 3)
    redis_server.stop()
    try:
        await eventually("it says so", lambda: "waiting: Redis" in rate_20.log)
    finally:
        redis_server.start()
    before = len(rate_20.run_ids)
    await eventually("it goes on", lambda: len(rate_20.run_ids) > before + 3)
    rate_20.signal(signal.SIGTERM)
    assert await asyncio.to_thread(rate_20.wait) == 0
    row = await database.fetchrow("SELECT count(*) AS n FROM orchestration_runs")
    assert row is not None
    assert row["n"] == len(rate_20.run_ids)


async def test_an_epoch_is_reported_once_what_began_before_it_has_ended(
    database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "REPORT_SECONDS", 0.05)
    reached, go_on = asyncio.Event(), asyncio.Event()
    put = queue_client.put

    async def slow_put(client: Redis, queue_key: str, job_id: str, envelope: bytes) -> bool:
        reached.set()
        await go_on.wait()
        return await put(client, queue_key, job_id, envelope)

    monkeypatch.setattr(queue_client, "put", slow_put)
    await flip(database, ONE_QUEUE)
    async with Producer(database, redis_client, ONE_QUEUE, role=Role.API) as api:
        late = asyncio.create_task(api.enqueue(RUN, run_id="run_1_1", now_ms=1))
        await reached.wait()
        epoch = await flip(database, Topology(4))
        for _ in range(3):
            await api.report()
            assert await topology.producers_behind(database, epoch) == [api.id]
        go_on.set()
        await late

        async def reported() -> bool:
            return not await topology.producers_behind(database, epoch)

        await eventually("the epoch is reported", reported)
    assert await redis_client.zscore(keys.queue("default"), "run_1_1") is not None
    assert await database.fetch("SELECT 1 FROM workers") == []


async def test_of_two_tenants_one_gets_a_chat_session_and_the_other_writes_nothing(
    database: Database, redis_client: Redis
) -> None:
    async def turn(tenant: str, job_id: str) -> None:
        asked = NewTurn("s", "agent", "hi", tenant)
        await enqueue_turn(database, redis_client, asked, job_id=job_id, now_ms=1)

    answers = await asyncio.gather(
        *(turn(tenant, f"chat_{tenant}_{number}") for number in range(3) for tenant in ("a", "b")),
        turn("a", "same"),
        turn("a", "same"),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if answer is not None]
    assert len(refused) in (3, 5)
    assert all(isinstance(answer, SessionTaken) for answer in refused)
    (owner,) = await database.fetch("SELECT tenant_id FROM chat_sessions")
    jobs = {row["job_id"] for row in await database.fetch("SELECT job_id FROM job_ledger")}
    own = {f"chat_{owner['tenant_id']}_{number}" for number in range(3)}
    assert jobs == (own | {"same"} if owner["tenant_id"] == "a" else own)
