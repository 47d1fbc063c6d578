"""The counts behind the API's limits, from many clients at once: never one more than allowed, and never one less."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_redis
from synapse_worker.queueing import keys, quotas
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id, put
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.store.database import Database
from tests.support.runs import eventually
from tests.support.servers import RedisCluster, RedisServer

Q = keys.queue("default")


@pytest.fixture
async def replicas(redis_server: RedisServer, redis_client: Redis) -> AsyncIterator[list[Quotas]]:
    """Three processes' worth of counts on one empty Redis."""
    clients = [open_redis(SecretStr(redis_server.url)) for _ in range(3)]
    yield [Quotas(client) for client in clients]
    for client in clients:
        await client.aclose()


async def test_a_burst_over_replicas_passes_the_rate_exactly(replicas: list[Quotas]) -> None:
    asked = [replicas[number % 3].request("acme", 40) for number in range(120)]
    rates = await asyncio.gather(*asked, replicas[0].request("other", 40))
    passed = [rate for rate in rates[:-1] if rate.allowed]
    assert sorted(rate.remaining for rate in passed) == list(range(40))
    assert all(rate.remaining == 0 and 0 < rate.wait_ms <= 1_025 for rate in rates[:-1] if not rate.allowed)
    assert rates[-1].remaining == 39


async def test_no_second_holds_more_than_the_rate(replicas: list[Quotas], redis_client: Redis) -> None:
    """Also across a second's border, where fixed windows let twice as many pass."""
    limit = 30
    passed: list[float] = []

    async def now() -> float:
        seconds, micros = await redis_client.time()
        return float(seconds + micros / 1e6)

    began = await now()
    while (before := await now()) < began + 2.5:
        if (await replicas[len(passed) % 3].request("acme", limit)).allowed:
            passed.append(before)
    assert len(passed) > limit  # the rate comes back
    # A request is counted after it is noted here, so a span from one to another is never shorter there.
    for first, beyond in zip(passed, passed[limit:], strict=False):
        assert beyond - first > 1.0 - 0.05, "counted late by more than the tolerance, or too many"


async def test_places_of_a_tenant_are_taken_exactly_and_once_for_a_job(replicas: list[Quotas]) -> None:
    jobs = [f"job{number}" for number in range(60)]
    took = await asyncio.gather(*(replicas[n % 3].take_place("acme", job, 25) for n, job in enumerate(jobs)))
    assert sum(took) == 25
    holders = [job for job, has in zip(jobs, took, strict=True) if has]
    assert all(await asyncio.gather(*(replicas[1].take_place("acme", job, 25) for job in holders)))
    await replicas[2].leave_place("acme", holders[:1])
    assert [await replicas[0].take_place("acme", job, 25) for job in ("late", "later")] == [True, False]


async def test_all_jobs_are_counted_exactly_while_the_queues_are_counted_anew(
    replicas: list[Quotas], redis_client: Redis
) -> None:
    assert await replicas[0].admit("too early", 10) is None
    assert await replicas[0].rebase([Q])
    done = asyncio.Event()

    async def count_anew(replica: Quotas) -> None:
        while not done.is_set():
            await replica.rebase([Q])

    async def job(number: int) -> bool:
        replica, job_id = replicas[number % 3], f"job{number}"
        if not await replica.admit(job_id, 50):
            return False
        await put(redis_client, Q, job_id, b"payload")
        await replica.settle(job_id, enqueued=True)
        return True

    counting = [asyncio.create_task(count_anew(replica)) for replica in replicas]
    admitted = await asyncio.gather(*(job(number) for number in range(200)))
    assert sum(admitted) == 50
    assert await redis_client.zcard(Q) == 50
    await redis_client.zpopmin(Q, 20)  # as if workers had done them

    async def counted() -> bool:
        return await redis_client.hget(keys.ADMISSION, "base") == b"30"

    await eventually("the queue is counted anew", counted)
    assert sum(await asyncio.gather(*(job(number) for number in range(200, 260)))) == 20
    done.set()
    await asyncio.gather(*counting)


async def test_a_count_during_admissions_is_dropped_until_it_is_forced(
    replicas: list[Quotas], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, other, _) = replicas
    assert await one.rebase([Q])
    assert await one.admit("pending", 10)
    await redis_client.zadd(Q, {"upstream": 1})
    assert not await other.rebase([Q])
    assert await redis_client.hget(keys.ADMISSION, "base") == b"0"
    monkeypatch.setattr(quotas, "FORCED_SECONDS", 0.0)
    assert await other.rebase([Q])
    assert [await one.admit(job, 3) for job in ("second", "third")] == [True, False]  # 1 counted, 2 pending
    await one.settle("pending", enqueued=False)
    assert await one.admit("third", 3)


async def test_places_of_jobs_that_are_over_come_back(
    replicas: list[Quotas], database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = new_run_id(1)
    run = NewRun("hello", "hi", "acme")
    await enqueue_run(database, redis_client, run, run_id=waiting, now_ms=1)
    for job in (waiting, "never written"):
        assert await replicas[0].take_place("acme", job, 2)
    assert await replicas[0].forget_gone(database, ["acme"]) == 0  # somebody may be about to write it
    monkeypatch.setattr(quotas, "STALE_SECONDS", 0.0)
    assert await replicas[0].forget_gone(database, ["acme", "nobody"]) == 1
    assert await redis_client.zrange(keys.queued("acme"), 0, -1) == [waiting.encode()]


async def test_it_works_on_a_cluster(redis_cluster: RedisCluster) -> None:
    client = open_redis(SecretStr(redis_cluster.url))
    try:
        counts = Quotas(client)
        queues = [keys.queue(shard) for shard in ("default", "0", "1", "2")]
        assert (await counts.request("acme", 2)).remaining == 1
        assert await counts.take_place("acme", "job", 1)
        for number, name in zip(itertools.count(), queues, strict=False):
            await client.zadd(name, {f"job{number}": 1})
        assert await counts.rebase(queues)
        assert await counts.admit("job", 5)
        assert not await counts.admit("one more", 5)
        await counts.settle("job", enqueued=True)
        await counts.leave_place("acme", ["job"])
        assert await counts.take_place("acme", "other", 1)
    finally:
        await client.aclose()
