"""Owned leases against a real Redis: one owner, original order, stock arq beside us."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from synapse_worker.errors import StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put, queue_figures
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.payload import JobPayload, encode

Q = keys.queue("default")
ENVELOPE = encode(JobPayload("run_orchestration_job", {"run_id": "r"}))


def _worker(client: Redis, name: str, *, lease_seconds: int = 30) -> LeaseQueue:
    return LeaseQueue(client, Q, worker_id=name, lease_seconds=lease_seconds)


async def _fill(client: Redis, *job_ids: str) -> None:
    for number, job_id in enumerate(job_ids):
        await client.set(keys.job(job_id), ENVELOPE)
        await client.zadd(Q, {job_id: 1_000 + number})


async def _again(client: Redis, job_id: str, score: int) -> None:
    """Have a job wait where jobs wait that were claimed before."""
    await client.set(keys.job(job_id), ENVELOPE)
    await client.zadd(keys.again(Q), {job_id: score})


async def _expire(client: Redis, *job_ids: str) -> None:
    """What time would do: the lease's deadline has passed, and arq's key with it."""
    for job_id in job_ids:
        await client.zadd(keys.leases(Q), {job_id: 1})
        await client.delete(keys.in_progress(job_id))


async def test_two_claims_never_hold_one_job(redis_client: Redis) -> None:
    await _fill(redis_client, *(f"j{number:03}" for number in range(200)))
    workers = [_worker(redis_client, f"w{number}") for number in range(8)]
    ids: list[str] = []
    while await redis_client.zcard(Q):
        for leases in await asyncio.gather(*(worker.claim(20, 0.0) for worker in workers)):
            ids += [lease.job_id for lease in leases]
    assert len(ids) == len(set(ids)) == 200


async def test_a_claim_takes_the_oldest_first_and_no_more_than_wanted(redis_client: Redis) -> None:
    await _fill(redis_client, "a", "b", "c")
    assert [lease.job_id for lease in await _worker(redis_client, "w").claim(2, 0.0)] == ["a", "b"]


async def test_what_was_read_ahead_is_claimed_without_another_look_for_a_moment(redis_client: Redis) -> None:
    await _fill(redis_client, *(f"j{number:03}" for number in range(10)))
    worker = _worker(redis_client, "w")
    assert [lease.job_id for lease in await worker.claim(3, 0.0)] == ["j000", "j001", "j002"]
    await _again(redis_client, "older", 900)
    assert [lease.job_id for lease in await worker.claim(3, 0.01)] == ["j003", "j004", "j005"]
    assert [lease.job_id for lease in await worker.claim(2, 0.2)] == ["older", "j006"]


async def test_what_another_worker_took_of_it_is_made_up_for_in_the_same_claim(redis_client: Redis) -> None:
    await _fill(redis_client, *(f"j{number:03}" for number in range(10)))
    worker, other = _worker(redis_client, "w"), _worker(redis_client, "other")
    await worker.claim(2, 0.0)
    assert [lease.job_id for lease in await other.claim(3, 0.0)] == ["j002", "j003", "j004"]
    assert [lease.job_id for lease in await worker.claim(4, 0.01)] == ["j005", "j006", "j007", "j008"]
    assert not worker.drained
    assert [lease.job_id for lease in await worker.claim(4, 0.02)] == ["j009"]
    assert worker.drained


async def test_what_stock_workers_run_costs_two_calls_a_page_and_not_one_for_each_job(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(redis_client, *(f"j{number:03}" for number in range(100)))
    for number in range(99):
        await redis_client.set(keys.in_progress(f"j{number:03}"), b"1")
    worker = _worker(redis_client, "w")
    take, calls = worker._take, 0

    async def counted(*arguments: Any) -> list[Lease]:
        nonlocal calls
        calls += 1
        return await take(*arguments)

    monkeypatch.setattr(worker, "_take", counted)
    assert [lease.job_id for lease in await worker.claim(1, 0.0)] == ["j099"]
    assert calls == 2


async def test_behind_a_hundred_returned_jobs_no_younger_one_comes_first(redis_client: Redis) -> None:
    await _fill(redis_client, *(f"young{number:03}" for number in range(300)))
    for number in range(300):
        await _again(redis_client, f"old{number:03}", number)
    worker = _worker(redis_client, "w")
    taken = [lease.job_id for _ in range(30) for lease in await worker.claim(20, 0.0)]
    assert taken == [*(f"old{number:03}" for number in range(300)), *(f"young{number:03}" for number in range(300))]


async def test_what_is_leased_when_redis_goes_away_is_not_forgotten(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _fill(redis_client, *(f"j{number:03}" for number in range(200)))
    for number in range(150):
        await redis_client.set(keys.in_progress(f"j{number:03}"), b"1")
    worker = _worker(redis_client, "w")
    take, calls = worker._take, 0

    async def fails_at_the_second(*arguments: Any) -> list[Lease]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RedisConnectionError("gone")
        return await take(*arguments)

    monkeypatch.setattr(worker, "_take", fails_at_the_second)
    await _again(redis_client, "old", 900)
    assert [lease.job_id for lease in await worker.claim(60, 0.0)] == ["old"]
    calls = 1
    with pytest.raises(StoreUnavailable):
        await worker.claim(60, 1.0)


@pytest.mark.parametrize("arq_peers", [True, False], ids=["in one call", "as in a cluster"])
async def test_a_claim_brings_the_payload_and_whether_the_job_is_cancelled(
    redis_client: Redis, arq_peers: bool
) -> None:
    await _fill(redis_client, "a", "gone", "stock", "b", "later")
    await _again(redis_client, "old", 900)
    await redis_client.delete(keys.job("gone"))
    await redis_client.set(keys.job("b"), b"another")
    await redis_client.set(keys.cancel("b"), "1")
    if arq_peers:
        await redis_client.set(keys.in_progress("stock"), b"1")
    else:
        await redis_client.zrem(Q, "stock")
    worker = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30, arq_peers=arq_peers)
    assert [(lease.job_id, lease.payload, lease.cancelled) for lease in await worker.claim(4, 0.0)] == [
        ("old", ENVELOPE, False),
        ("a", ENVELOPE, False),
        ("gone", None, False),
        ("b", b"another", True),
    ]


async def test_leases_whose_payload_cannot_be_read_are_given_back(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> list[bytes | None]:
        raise StoreUnavailable("Redis", "is gone")

    monkeypatch.setattr("synapse_worker.queueing.lease.read_each", fails)
    await _fill(redis_client, "a")
    worker = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30, arq_peers=False)
    with pytest.raises(StoreUnavailable):
        await worker.claim(1, 0.0)
    assert await redis_client.zscore(keys.again(Q), "a") == 1_000
    assert not await redis_client.exists(keys.leases(Q))


async def test_a_job_that_is_due_later_waits(redis_client: Redis) -> None:
    seconds, _ = await redis_client.time()
    await redis_client.zadd(Q, {"later": (seconds + 60) * 1000})
    assert await _worker(redis_client, "w").claim(5, 0.0) == []


async def test_an_expired_lease_returns_ahead_of_younger_jobs(redis_client: Redis) -> None:
    await _fill(redis_client, "old", "young")
    (lost,) = await _worker(redis_client, "dead").claim(1, 0.0)
    await _expire(redis_client, "old")
    second = _worker(redis_client, "w")
    leases = await second.claim(2, 0.0)
    assert [(lease.job_id, lease.score) for lease in leases] == [("old", 1_000.0), ("young", 1_001.0)]
    assert second.recovered == 1
    # The dead owner wakes up: its token is worth nothing, whatever it tries.
    dead = _worker(redis_client, "dead")
    assert await dead.extend([lost]) == {"old"}
    assert await dead.release([Release(lost, b"")]) == {"old"}
    assert await dead.hand_back([HandBack(lost, None)]) == {"old"}
    assert await redis_client.zscore(keys.leases(Q), "old") is not None
    assert await redis_client.exists(keys.job("old")) == 1


async def test_a_worker_whose_clock_is_ahead_takes_no_leased_job(redis_client: Redis) -> None:
    await _fill(redis_client, "a")
    await _worker(redis_client, "w1").claim(1, 0.0)
    # Its own idea of now is an hour ahead; only Redis' clock counts.
    assert await _worker(redis_client, "w2").claim(1, 3_600.0) == []


async def test_an_extended_lease_stays(redis_client: Redis) -> None:
    await _fill(redis_client, "a")
    worker = _worker(redis_client, "w", lease_seconds=30)
    leases = await worker.claim(1, 0.0)
    await _expire(redis_client, "a")
    assert await worker.extend(leases) == set()
    assert await _worker(redis_client, "other").claim(1, 0.0) == []
    assert await redis_client.pttl(keys.in_progress("a")) > 25_000


async def test_release_removes_every_key_of_the_job(redis_client: Redis) -> None:
    await _fill(redis_client, "a")
    worker = _worker(redis_client, "w")
    (lease,) = await worker.claim(1, 0.0)
    assert await worker.release([Release(lease, b"result")]) == set()
    assert [key async for key in redis_client.scan_iter()] == [keys.result("a").encode()]


async def test_a_handed_back_job_is_out_of_reach_of_stock_workers(redis_client: Redis) -> None:
    await _fill(redis_client, "a", "b")
    worker = _worker(redis_client, "w")
    first, second = await worker.claim(2, 0.0)
    await worker.hand_back([HandBack(first, None), HandBack(second, 60_000)])
    assert await redis_client.zcard(Q) == 0
    assert await redis_client.zscore(keys.again(Q), "a") == 1_000.0
    assert [lease.job_id for lease in await _worker(redis_client, "w2").claim(5, 0.0)] == ["a"]


async def test_jobs_that_stock_workers_run_are_passed_over(redis_client: Redis) -> None:
    running = [f"s{number:03}" for number in range(250)]
    await _fill(redis_client, *running, "mine")
    for job_id in running:
        await redis_client.set(keys.in_progress(job_id), "1", px=60_000)
    assert [lease.job_id for lease in await _worker(redis_client, "w").claim(10, 0.0)] == ["mine"]
    assert await redis_client.zcard(Q) == 250


async def test_our_claim_between_a_stock_workers_look_and_its_own_claim_wins(redis_client: Redis) -> None:
    await _fill(redis_client, "a")
    stock = ArqRedis(connection_pool=redis_client.connection_pool)
    async with stock.pipeline(transaction=True) as pipe:  # the steps of arq.Worker.start_jobs
        await pipe.watch(keys.in_progress("a"))
        assert not await pipe.exists(keys.in_progress("a"))
        assert await pipe.zscore(Q, "a") == 1_000.0
        assert len(await _worker(redis_client, "w").claim(1, 0.0)) == 1
        pipe.multi()
        pipe.psetex(keys.in_progress("a"), 1_000, b"1")
        with pytest.raises(Exception, match="Watched variable changed"):
            await pipe.execute()


async def test_putting_a_job_twice_or_while_it_is_leased_queues_it_once(redis_client: Redis) -> None:
    assert await put(redis_client, Q, "a", ENVELOPE)
    assert not await put(redis_client, Q, "a", ENVELOPE)
    await _worker(redis_client, "w").claim(1, 0.0)
    assert not await put(redis_client, Q, "a", ENVELOPE)
    figures = (await queue_figures(redis_client, [Q]))[Q]
    assert (figures.queued, figures.active, figures.oldest_seconds) == (0, 1, None)


async def test_a_job_enqueued_again_while_leased_is_not_run_twice(redis_client: Redis) -> None:
    await _fill(redis_client, "a")
    await _worker(redis_client, "w").claim(1, 0.0)
    await _fill(redis_client, "a")  # an upstream producer does not look at our leases
    await redis_client.delete(keys.in_progress("a"))
    assert await _worker(redis_client, "w2").claim(1, 0.0) == []


async def test_figures_tell_how_long_the_oldest_has_waited(redis_client: Redis) -> None:
    seconds, _ = await redis_client.time()
    await redis_client.zadd(Q, {"a": (seconds - 30) * 1000, "b": seconds * 1000})
    await redis_client.zadd(keys.again(Q), {"c": (seconds - 90) * 1000})
    figures = (await queue_figures(redis_client, [Q]))[Q]
    assert figures.queued == 3
    assert figures.oldest_seconds is not None
    assert 89 < figures.oldest_seconds < 95


async def test_a_job_that_waits_in_two_places_is_leased_once(redis_client: Redis) -> None:
    await _fill(redis_client, "a", "b")
    await redis_client.zadd(keys.again(Q), {"a": 500})
    leases = await _worker(redis_client, "w").claim(10, 0.0)
    assert [(lease.job_id, lease.score) for lease in leases] == [("a", 500.0), ("b", 1_001.0)]
    assert await redis_client.zcard(Q) == await redis_client.zcard(keys.again(Q)) == 0
