"""max_concurrent_runs over all workers: reserved before anything is written, parked, let back in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, put, queue_figures
from synapse_worker.queueing.lease import HandBack, LeaseQueue
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.queueing.reservations import Reservations
from synapse_worker.queueing.served import Served
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import Tenant
from tests.support.runs import eventually, store
from tests.support.workers import StartWorker, chain, slow_steps

Q = keys.queue("default")


def reservations(client: Redis, gate: StoreGate, limits: Mapping[str, int]) -> Reservations:
    tenants = {tenant: Tenant(most) for tenant, most in limits.items()}

    async def read() -> Mapping[str, Tenant]:
        return tenants

    return Reservations(
        client,
        gate,
        Served([LeaseQueue(client, Q, worker_id="w", lease_seconds=30)]),
        read,
        tenants,
        worker_id="w",
        lease_seconds=3,
        default_tenant="default",
    )


@asynccontextmanager
async def kept(database: Database, client: Redis, limits: Mapping[str, int]) -> AsyncIterator[Reservations]:
    """Reservations of a worker that looks after them."""
    gate = StoreGate(database, client)
    watching = asyncio.create_task(gate.watch())
    assert await gate.wait(10)
    mine = reservations(client, gate, limits)
    keeping = asyncio.create_task(mine.keep())
    yield mine
    for task in (keeping, watching):
        task.cancel()
    await asyncio.gather(keeping, watching, return_exceptions=True)


async def fill(client: Redis, tenant: str, *job_ids: str, first: int = 1_000) -> None:
    for number, job_id in enumerate(job_ids):
        await client.set(
            keys.job(job_id), encode(JobPayload("run_orchestration_job", {"run_id": job_id, "tenant_id": tenant}))
        )
        await client.zadd(Q, {job_id: first + number})


async def members(client: Redis, name: str) -> list[tuple[str, float]]:
    return [(job_id.decode(), score) for job_id, score in await client.zrange(name, 0, -1, withscores=True)]


async def test_no_more_places_than_a_tenant_may_have(database: Database, redis_client: Redis) -> None:
    gate = StoreGate(database, redis_client)
    one, other = (reservations(redis_client, gate, {"a": 2, "none": 0}) for _ in range(2))
    assert await one.reserve([("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")]) == {"a3"}
    assert await other.reserve([("a4", "a"), ("a1", "a")]) == {"a4"}  # whoever asks; a1 has its place
    assert await one.reserve([("n", "none")]) == {"n"}


async def test_a_crashed_workers_places_come_free_by_themselves(database: Database, redis_client: Redis) -> None:
    gate = StoreGate(database, redis_client)
    assert await reservations(redis_client, gate, {"a": 1}).reserve([("a1", "a")]) == set()
    other = reservations(redis_client, gate, {"a": 1})
    assert await other.reserve([("a2", "a")]) == {"a2"}

    async def free() -> bool:
        return await other.reserve([("a2", "a")]) == set()

    await eventually("its place is free", free, seconds=10)  # twice the lease


async def test_places_are_looked_after_although_somebody_has_written_nonsense(
    database: Database, redis_client: Redis
) -> None:
    await redis_client.hset(keys.parked(Q), "b", "nonsense")
    async with kept(database, redis_client, {"a": 1}):
        await eventually("it was looked at", lambda: redis_client.exists(keys.tick(Q)))
        await redis_client.hdel(keys.parked(Q), "b")
        await fill(redis_client, "a", "a1")
        queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30)
        (lease,) = await queue.claim(1, 0.0)
        await queue.hand_back([HandBack(lease, None, parked_for="a")])
        await eventually("it comes back", lambda: redis_client.zcard(keys.again(Q)))


async def test_what_is_parked_comes_back_with_its_place_as_far_as_the_limit_goes(
    database: Database, redis_client: Redis
) -> None:
    async with kept(database, redis_client, {"a": 2}) as mine:
        await fill(redis_client, "a", "a1", "a2", "a3", "a4")
        queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30)
        leases = {lease.job_id: lease for lease in await queue.claim(4, 0.0)}
        assert await mine.reserve((job_id, "a") for job_id in leases) == {"a3", "a4"}
        mine.hold("a1", "a")
        mine.hold("a2", "a")
        await queue.hand_back([HandBack(leases[job_id], None, parked_for="a") for job_id in ("a3", "a4")])
        assert await members(redis_client, keys.parked_of(Q, "a")) == [("a3", 1_002), ("a4", 1_003)]
        figures = (await queue_figures(redis_client, [Q]))[Q]
        assert (figures.queued, figures.parked, figures.active) == (2, 2, 2)
        assert not await put(redis_client, Q, "a3", b"x", "a")  # the sweep finds it where it is
        mine.free("a1", "a")
        await eventually("one comes back", lambda: redis_client.zcard(keys.again(Q)))
        assert await members(redis_client, keys.again(Q)) == [("a3", 1_002)]
        assert await members(redis_client, keys.parked_of(Q, "a")) == [("a4", 1_003)]
        mine.free("a2", "a")
        await eventually("so does the other", lambda: _empty(redis_client))
        assert await members(redis_client, keys.again(Q)) == [("a3", 1_002), ("a4", 1_003)]


async def _empty(client: Redis, *names: str) -> bool:
    return not await client.exists(keys.parked(Q), *names)


async def running(client: Redis, tenant: str) -> list[str]:
    return sorted(job_id for job_id, _ in await members(client, keys.running(tenant)))


def calls_of(client: Redis) -> Callable[[], Awaitable[int]]:
    """Return what counts the scripts that Redis has run."""

    async def count() -> int:
        statistics = await client.info("commandstats")
        return int(statistics.get("cmdstat_evalsha", {}).get("calls", 0))

    return count


async def test_a_place_is_handed_from_a_job_that_ended_to_the_next_one_without_a_call(
    database: Database, redis_client: Redis
) -> None:
    gate = StoreGate(database, redis_client)
    watching = asyncio.create_task(gate.watch())
    assert await gate.wait(10)
    mine = reservations(redis_client, gate, {"a": 5})
    assert await mine.reserve([("a1", "a"), ("a2", "a")]) == set()
    for job_id in ("a1", "a2"):
        mine.hold(job_id, "a")
    await redis_client.zadd(keys.queued("a"), {"a3": 1, "a4": 1, "a9": 1})
    before = await (calls := calls_of(redis_client))()
    mine.free("a1", "a", ended=True)
    assert await mine.reserve([("a3", "a")]) == set()
    mine.hold("a3", "a")
    mine.free("a3", "a", ended=True)  # and on, before Redis knows of it
    assert await mine.reserve([("a4", "a")]) == set()
    mine.hold("a4", "a")
    assert await calls() == before
    assert await running(redis_client, "a") == ["a1", "a2"]  # as many places as jobs
    keeping = asyncio.create_task(mine.keep())
    await eventually("the place has its job's name", lambda: told(redis_client, "a", "a2", "a4"))
    assert [job_id for job_id, _ in await members(redis_client, keys.queued("a"))] == ["a9"]  # what began is not queued
    mine.free("a2", "a", ended=True)
    mine.free("a4", "a", ended=True)
    assert await mine.reserve([("a2", "a")]) == set()  # its own place is as good as another's
    mine.hold("a2", "a")
    await eventually("the other is free", lambda: told(redis_client, "a", "a2"))
    mine.free("a2", "a", ended=True)
    assert await mine.reserve([("a5", "a")]) == set()
    mine.free("a5", "a")  # it ends before it was held
    for task in (keeping, watching):
        task.cancel()
    await asyncio.wait({keeping, watching})
    assert await running(redis_client, "a") == []  # a worker's last word


async def test_the_place_of_a_job_that_may_come_back_is_not_handed_on_under_its_name(
    database: Database, redis_client: Redis
) -> None:
    gate = StoreGate(database, redis_client)
    mine, other = (reservations(redis_client, gate, {"a": 3}) for _ in range(2))
    assert await mine.reserve([("a1", "a")]) == set()
    mine.hold("a1", "a")
    mine.free("a1", "a")  # handed over
    assert await mine.reserve([("a2", "a")]) == set()
    assert await other.reserve([("a1", "a")]) == set()
    assert await running(redis_client, "a") == ["a1", "a2"]
    mine.hold("a2", "a")
    mine.free("a2", "a", ended=True)
    assert await mine.reserve([("a3", "a")]) == set()
    mine.hold("a3", "a")
    mine.free("a3", "a")  # the place that it had is a2's, which never comes back
    assert await mine.reserve([("a4", "a")]) == set()
    assert await running(redis_client, "a") == ["a1", "a2"]


async def test_a_place_that_was_handed_on_is_prolonged_under_its_jobs_name(
    database: Database, redis_client: Redis
) -> None:
    async with kept(database, redis_client, {"a": 2}) as mine:
        assert await mine.reserve([("a1", "a")]) == set()
        mine.hold("a1", "a")
        mine.free("a1", "a", ended=True)
        assert await mine.reserve([("a2", "a")]) == set()
        mine.hold("a2", "a")
        ((_, first),) = await members(redis_client, keys.running("a"))

        async def prolonged() -> bool:
            ((name, deadline),) = await members(redis_client, keys.running("a"))
            return name == "a2" and deadline > first + 1_000

        await eventually("it has its name and a later deadline", prolonged, seconds=10)


async def told(client: Redis, tenant: str, *job_ids: str) -> bool:
    return await running(client, tenant) == list(job_ids)


async def test_no_place_is_handed_on_where_others_may_wait_for_it(database: Database, redis_client: Redis) -> None:
    mine, other = (reservations(redis_client, StoreGate(database, redis_client), {"a": 2}) for _ in range(2))
    assert await mine.reserve([("a1", "a"), ("a2", "a")]) == set()
    mine.hold("a1", "a")
    mine.free("a1", "a", ended=True)
    assert await mine.reserve([("a3", "a")]) == {"a3"}  # it asks, and the tenant has no place left
    keeping = asyncio.create_task(mine.keep())
    await eventually("Redis is told", lambda: told(redis_client, "a", "a2"))
    assert await other.reserve([("b1", "a")]) == set()
    keeping.cancel()
    await asyncio.wait({keeping})


async def test_a_backlog_over_the_limit_is_parked_without_being_claimed(
    database: Database, redis_client: Redis
) -> None:
    await fill(redis_client, "a", *(f"a{number:04}" for number in range(1_200)))
    await fill(redis_client, "b", "b1", "b2", first=1_500)
    await fill(redis_client, "a", "stock", first=9_000)
    await redis_client.set(keys.in_progress("stock"), b"1")  # a stock arq worker runs it
    async with kept(database, redis_client, {"a": 0}) as mine:
        mine.park_backlog(Q, {"a"})
        await eventually("they are parked", lambda: _parked(redis_client, 1_200))
        assert [job_id for job_id, _ in await members(redis_client, Q)] == ["b1", "b2", "stock"]
        assert await redis_client.hgetall(keys.parked(Q)) == {b"a": b"1200"}
        assert await redis_client.pttl(keys.job("a0000")) > 86_400_000  # arq's own day would be too short


async def _parked(client: Redis, count: int) -> bool:
    return int(await client.zcard(keys.parked_of(Q, "a"))) == count


async def test_a_tenant_over_its_limit_holds_nobody_up(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(3, 0.2)))
    await database.execute("INSERT INTO tenants (tenant_id, name, max_concurrent_runs) VALUES ('a', 'A', 2)")
    for number in range(12):
        await enqueue_run(database, redis_client, NewRun("slow", "hi", "a"), run_id=f"run_a{number:02}_1", now_ms=1)
    other = await enqueue_run(database, redis_client, NewRun("slow", "hi", "b"), run_id="run_b_1", now_ms=1)
    for _ in range(2):
        start_worker(WORKER_CONCURRENCY="4", WORKER_LEASE_SECONDS="3")
    most = 0

    async def look() -> bool:
        nonlocal most
        rows = await database.fetch("SELECT tenant_id, status FROM orchestration_runs WHERE status <> 'queued'")
        most = max(most, sum(1 for row in rows if (row["tenant_id"], row["status"]) == ("a", "running")))
        return sum(1 for row in rows if row["status"] == "completed") == 13

    await eventually("all are completed", look, seconds=90)
    assert most == 2
    ended = await database.fetch("SELECT run_id FROM orchestration_runs ORDER BY ended_at")
    order = [row["run_id"] for row in ended]
    assert order.index(other) < 6  # twelve were queued before it
    steps = await database.fetch("SELECT run_id, count(*) AS n FROM run_steps GROUP BY run_id")
    assert {row["n"] for row in steps} == {3}
    await eventually("nothing is left", lambda: _empty(redis_client, keys.again(Q), keys.leases(Q)))


async def test_nothing_is_kept_of_tenants_whose_jobs_have_ended(database: Database, redis_client: Redis) -> None:
    mine = reservations(redis_client, StoreGate(database, redis_client), {"acme": 2})
    mine.hold("1", "acme")
    mine.hold("2", "acme")
    for number in range(100):
        mine.free(f"job-{number}", f"tenant-{number}")
    mine.free("1", "acme")
    assert dict(mine._held) == {"acme": {"2"}}
    mine.free("2", "acme")
    assert not mine._held
    assert not mine._names
    await mine._give_back(0.0)
    assert not mine._spare
    assert not mine._given


async def test_a_lower_limit_takes_no_place_from_a_job_that_runs(database: Database, redis_client: Redis) -> None:
    mine = reservations(redis_client, StoreGate(database, redis_client), {"a": 5})
    assert await mine.reserve([("a1", "a"), ("a2", "a"), ("a3", "a")]) == set()
    for job_id in ("a1", "a2", "a3"):
        mine.hold(job_id, "a")
    mine.free("a3", "a", ended=True)
    assert await mine.reserve([("a4", "a")]) == set()
    mine.hold("a4", "a")
    mine._tenants = {"a": Tenant(1)}
    await mine._rename()
    assert await running(redis_client, "a") == ["a1", "a2", "a4"]
    mine.free("a4", "a", ended=True)
    assert await mine.reserve([("a5", "a")]) == {"a5"}
