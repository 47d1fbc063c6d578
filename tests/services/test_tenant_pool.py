"""The tenant pool: workers that serve every tenant's own queue, as it comes, in fair turns."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id
from synapse_worker.queueing.lease import HandBack, LeaseQueue
from synapse_worker.queueing.pool import TenantPool
from synapse_worker.queueing.served import Served
from synapse_worker.routing import Topology
from synapse_worker.store import runs, topology
from synapse_worker.store.database import Database
from tests.page.support import enqueue_stock, printing
from tests.support.runs import eventually, store, until
from tests.support.servers import RedisServer
from tests.support.workers import StartWorker, chain, slow_steps


@pytest.fixture(autouse=True)
async def isolated(database: Database, redis_client: Redis) -> None:
    """Isolation is on, and `hello` and `slow` (a second or so) can be run."""
    assert await topology.write(database, None, Topology(isolation=True), enabled=True, owner_uid="u") is not None
    await store(database, printing("hello"), chain("slow", slow_steps(1, 1.0)))


async def enqueue(database: Database, client: Redis, tenant: str, orchestration: str = "hello") -> str:
    now_ms = int(time.time() * 1000)
    run_id = new_run_id(now_ms)
    return await enqueue_run(database, client, NewRun(orchestration, "hi", tenant), run_id=run_id, now_ms=now_ms)


async def declare(database: Database, tenant: str, *, priority: int = 0, most: int = 100) -> None:
    await database.execute(
        "INSERT INTO tenants (tenant_id, priority, max_concurrent_runs) VALUES ($1, $2, $3)", tenant, priority, most
    )


async def all_completed(database: Database, count: int) -> bool:
    row = await database.fetchrow("SELECT count(*) AS n FROM orchestration_runs WHERE status = 'completed'")
    assert row is not None
    return bool(row["n"] == count)


async def seconds_until_claimed(database: Database, run_ids: list[str]) -> list[float]:
    """How long each job waited between its producer and its claim."""
    rows = await database.fetch(
        "SELECT extract(epoch FROM claimed_at - enqueued_at)::float AS waited FROM job_ledger"
        " WHERE job_id = ANY($1::text[])",
        run_ids,
    )
    return sorted(row["waited"] for row in rows)


@asynccontextmanager
async def a_pool(
    database: Database, client: Redis, *apart: str, worker_id: str = "w"
) -> AsyncIterator[tuple[TenantPool, Served]]:
    """A pool without a worker around it; tests tell it when to look."""
    gate = StoreGate(database, client)

    def open_queue(queue_key: str) -> LeaseQueue:
        return LeaseQueue(client, queue_key, worker_id=worker_id, lease_seconds=30)

    pool = TenantPool(database, client, gate, open_queue, worker_id=worker_id, apart=apart)
    await pool.read_dedicated()
    yield pool, Served([open_queue(keys.queue(shard)) for shard in apart], pool)


async def look(served: Served) -> set[str]:
    """Look, however short ago the last time was; returns the tenants to ask."""
    await served.look(float("inf"))
    return {keys.shard_of(queue.queue_key) for queue in served.to_ask}


async def test_three_tenants_are_served_by_weight(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    weights = {"acme": 1, "b": 3, "Größe: $(X) / 'q'": 6}
    for tenant, weight in weights.items():
        await declare(database, tenant, priority=weight - 1)
        for _ in range(60):
            await enqueue(database, redis_client, tenant)
    start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_CONCURRENCY="1")
    await eventually("all are completed", lambda: all_completed(database, 180), seconds=60)
    claimed = await database.fetch(
        "SELECT r.tenant_id FROM job_ledger l JOIN orchestration_runs r USING (run_id) ORDER BY l.claim LIMIT 100"
    )
    shares = Counter(row["tenant_id"] for row in claimed)
    assert all(abs(shares[tenant] - 10 * weight) <= 2 for tenant, weight in weights.items()), shares
    await eventually("nothing is left", lambda: _empty(redis_client, *weights))


async def _empty(client: Redis, *tenants: str) -> bool:
    names = [of(keys.queue(tenant)) for tenant in tenants for of in (str, keys.again, keys.leases)]
    return not await client.exists(*names)


async def test_a_long_backlog_does_not_hold_another_tenant_up(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    for _ in range(40):
        await enqueue(database, redis_client, "big", "slow")
    start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_CONCURRENCY="4")
    await eventually("the backlog is being worked on", lambda: redis_client.zcard(keys.leases(keys.queue("big"))))
    for tenant in ("small", "other"):
        await until(database, await enqueue(database, redis_client, tenant), "completed", seconds=20)
    assert await redis_client.zcard(keys.queue("big")) > 10


async def test_of_free_slots_no_tenant_takes_all(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    """What is claimed at once is shared, so that jobs of an hour do not keep the second tenant out."""
    for tenant in ("a", "b"):
        for _ in range(20):
            await enqueue(database, redis_client, tenant, "slow")
    await redis_client.delete(keys.ACTIVE_TENANTS)  # both come at once
    start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_CONCURRENCY="10")
    running = "SELECT tenant_id FROM orchestration_runs WHERE status = 'running'"

    async def full() -> bool:
        return len(await database.fetch(running)) == 10

    await eventually("all slots are taken", full)
    assert Counter(row["tenant_id"] for row in await database.fetch(running)) == {"a": 5, "b": 5}


async def test_the_gauges_of_a_tenants_queue_go_back_to_nothing(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    run_ids = [await enqueue(database, redis_client, "acme", "slow") for _ in range(60)]
    worker = start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_CONCURRENCY="1")

    async def depth(shown: str) -> bool:
        _, text = await asyncio.to_thread(worker.get, "/metrics")
        found = [line for line in text.splitlines() if 'synapse_queue_depth{queue_name="' + keys.queue("acme") in line]
        return any(line.endswith(" 0.0") == (shown == "none") for line in found)

    await eventually("it shows some", lambda: depth("some"))
    for run_id in run_ids:
        await runs.cancel_queued(database, run_id)
    await eventually("it shows none", lambda: depth("none"))
    assert await redis_client.zcard(keys.queue("acme")) == 0


async def test_how_soon_jobs_start_ours_and_those_of_a_stock_producer(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_worker: StartWorker
) -> None:
    await declare(database, "theirs")
    worker = start_worker(WORKER_QUEUE_SHARD="tenants")
    await asyncio.to_thread(worker.wait_ready)
    ours = []
    for _ in range(15):
        ours.append(await enqueue(database, redis_client, "ours"))
        await until(database, ours[-1], "completed")
    waited = await seconds_until_claimed(database, ours)
    assert waited[len(waited) // 2] < 0.12, waited
    theirs = []
    for number in range(5):
        theirs.append(f"run_00000000000{number}_1")
        await enqueue_stock(
            redis_server.port, theirs[-1], "hello", tenant_id="theirs", queue="synapse:orchestrations:theirs"
        )
        await until(database, theirs[-1], "completed")
    waited = await seconds_until_claimed(database, theirs)
    assert waited[len(waited) // 2] < 1.2, waited


async def test_what_a_killed_worker_ran_for_an_undeclared_tenant_goes_on(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    run_id = await enqueue(database, redis_client, "new", "slow")
    first = start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_LEASE_SECONDS="3")
    await until(database, run_id, "running")
    first.kill()
    await redis_client.delete(keys.ACTIVE_TENANTS)
    start_worker(WORKER_QUEUE_SHARD="tenants", WORKER_LEASE_SECONDS="3")
    await until(database, run_id, "completed")


async def test_a_tenants_limit_holds_in_its_own_queue_and_its_places_are_passed_on_at_once(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await declare(database, "narrow", most=1)
    for _ in range(20):
        await enqueue(database, redis_client, "narrow")
    began = time.monotonic()
    start_worker(WORKER_QUEUE_SHARD="tenants")
    most = 0

    async def done() -> bool:
        nonlocal most
        rows = await database.fetch("SELECT 1 FROM orchestration_runs WHERE status = 'running'")
        most = max(most, len(rows))
        return await all_completed(database, 20)

    await eventually("all are completed", done)
    assert most <= 1
    assert time.monotonic() - began < 15  # not a second for each


async def test_dedicated_tenants_and_shards_by_name_are_left_to_their_workers(
    database: Database, redis_client: Redis
) -> None:
    await database.execute("INSERT INTO tenants (tenant_id, dedicated) VALUES ('own', true), ('shared', false)")
    for tenant in ("own", "shared", "named", "default"):
        await enqueue(database, redis_client, tenant)
    await redis_client.zadd(keys.ACTIVE_TENANTS, {"a{b": 1, "7": 1, "x:health-check": 1})
    async with a_pool(database, redis_client, "named") as (pool, served):
        assert await look(served) == {"named", "shared"}
        await redis_client.delete(keys.ACTIVE_TENANTS)
        await pool.note_all()
        assert set(await redis_client.zrange(keys.ACTIVE_TENANTS, 0, -1)) == {b"named", b"shared"}


async def test_a_queue_is_asked_until_it_is_empty_and_again_when_it_is_noted(
    database: Database, redis_client: Redis
) -> None:
    first = await enqueue(database, redis_client, "acme")
    async with a_pool(database, redis_client) as (_, served):
        assert await look(served) == {"acme"}
        queue = served[keys.queue("acme")]
        (lease,) = await queue.claim(1, 0.0)
        assert lease.job_id == first
        assert await look(served) == {"acme"}  # it may have more
        assert await queue.claim(1, 0.0) == []
        assert await look(served) == set()
        assert served.keys == [keys.queue("acme")]  # what is parked there is looked after still
        second = await enqueue(database, redis_client, "acme")
        assert await look(served) == {"acme"}
        assert [job.job_id for job in await queue.claim(5, 0.0)] == [second]
        await queue.hand_back([HandBack(lease, None)])
        assert await look(served) == {"acme"}


async def test_what_nobody_notes_is_found(database: Database, redis_client: Redis) -> None:
    tenants = ("queued", "back", "expired", "suspect", "parked", "leased", "empty")
    for tenant in tenants:
        await declare(database, tenant)
    queue = {tenant: keys.queue(tenant) for tenant in tenants}
    far = 10**14
    await redis_client.zadd(queue["queued"], {"j1": 1})
    await redis_client.zadd(keys.again(queue["back"]), {"j2": 1})
    await redis_client.zadd(keys.leases(queue["expired"]), {"j3": 1})
    await redis_client.zadd(keys.suspects(queue["suspect"]), {"j4": 1})
    await redis_client.hset(keys.parked(queue["parked"]), "parked", "3")  # type: ignore[misc]
    await redis_client.zadd(keys.leases(queue["leased"]), {"j5": far})
    async with a_pool(database, redis_client) as (pool, served):
        await pool.note_all()
        assert await look(served) == {"queued", "back", "expired", "suspect", "parked"}


async def test_old_notes_are_dropped_and_fresh_ones_kept(database: Database, redis_client: Redis) -> None:
    await enqueue(database, redis_client, "fresh")
    await redis_client.zadd(keys.ACTIVE_TENANTS, {"old": 1})
    await database.execute("DELETE FROM orchestration_runs")  # so that only the note tells of it
    async with a_pool(database, redis_client) as (pool, _):
        await pool.note_all()
    assert await redis_client.zrange(keys.ACTIVE_TENANTS, 0, -1) == [b"fresh"]


async def test_one_worker_of_the_pool_looks_through_the_queues(database: Database, redis_client: Redis) -> None:
    async with (
        a_pool(database, redis_client, worker_id="one") as (one, _),
        a_pool(database, redis_client, worker_id="two") as (two, _),
    ):
        pauses = [await one.tick(), await two.tick(), await one.tick()]
    assert await redis_client.get(keys.ACTIVE_TENANTS_TICK) == b"one"
    assert all(0 < pause < 1 for pause in pauses)


async def test_keys_of_another_type_stop_one_queue_only(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    for tenant in ("broken", "fine"):
        await declare(database, tenant)
    await redis_client.set(keys.queue("broken"), "not a zset")
    await redis_client.zadd(keys.ACTIVE_TENANTS, {"broken": 1})
    worker = start_worker(WORKER_QUEUE_SHARD="default,tenants")
    await asyncio.to_thread(worker.wait_ready)
    await until(database, await enqueue(database, redis_client, "fine"), "completed")
    await redis_client.delete(keys.ACTIVE_TENANTS)
    await redis_client.set(keys.ACTIVE_TENANTS, "not a zset")
    await eventually("the worker says so", lambda: "the tenant pool finds no work until" in worker.log)
    await until(database, await enqueue(database, redis_client, "default"), "completed")
    await redis_client.delete(keys.ACTIVE_TENANTS)
    await until(database, await enqueue(database, redis_client, "fine"), "completed")
