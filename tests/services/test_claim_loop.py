"""The claim loop against a real Redis that does not answer, with jobs that only wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.loop import ClaimLoop, Control, Ending, Job
from synapse_worker.queueing.served import Served
from synapse_worker.store.database import Database
from tests.support.runs import eventually

Q = keys.queue("default")
LEASE_SECONDS = 3


class Waits:
    """A job that waits until it is stopped, and notes when that was."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.began = asyncio.Event()
        self.stopped_at = 0.0

    async def run(self, control: Control) -> Ending:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.stopped_at = asyncio.get_running_loop().time()
        return None


class Handler:
    """Starts one such job for each lease."""

    def __init__(self, kind: type[Waits] = Waits) -> None:
        self.jobs: asyncio.Queue[Waits] = asyncio.Queue()
        self._kind = kind

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        started = [self._kind(lease) for lease in leases]
        for job in started:
            self.jobs.put_nowait(job)
        return started


async def test_a_job_is_stopped_before_its_lease_ends_while_redis_does_not_answer(
    database: Database, redis_client: Redis
) -> None:
    await redis_client.zadd(Q, {"j": 1})
    gate, handler = StoreGate(database, redis_client), Handler()
    queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=LEASE_SECONDS)
    loop = ClaimLoop(Served([queue]), handler, gate, slots=1, lease_seconds=LEASE_SECONDS)
    tasks = [asyncio.create_task(gate.watch()), asyncio.create_task(loop.run())]
    job = await asyncio.wait_for(handler.jobs.get(), 10)
    await job.began.wait()
    await redis_client.execute_command("CLIENT", "PAUSE", LEASE_SECONDS * 1000 + 500, "ALL")  # type: ignore[no-untyped-call]
    silent_since = asyncio.get_running_loop().time()
    loop.stop(hand_over=False)
    await asyncio.wait_for(tasks[1], 10)
    tasks[0].cancel()
    assert 0 < job.stopped_at - silent_since < LEASE_SECONDS
    assert loop.lost_leases == 1


async def test_a_job_that_is_claimed_anew_by_the_process_that_lost_it_is_stopped_there_and_its_new_lease_kept(
    database: Database, redis_client: Redis
) -> None:
    await redis_client.zadd(Q, {"j": 1})
    gate, handler = StoreGate(database, redis_client), Handler()
    queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30)
    loop = ClaimLoop(Served([queue]), handler, gate, slots=2, lease_seconds=30)
    tasks = [asyncio.create_task(gate.watch()), asyncio.create_task(loop.run())]
    first = await asyncio.wait_for(handler.jobs.get(), 10)
    await redis_client.zadd(keys.leases(Q), {"j": 1})  # as if it had run out before this process could know
    second = await asyncio.wait_for(handler.jobs.get(), 10)
    await eventually("the first is stopped", lambda: first.stopped_at > 0)
    await eventually("and its slot is free", lambda: loop.active == 1)
    assert (second.stopped_at, loop.lost_leases) == (0, 1)
    loop.stop(hand_over=False)
    loop.interrupt()
    await asyncio.wait_for(tasks[1], 10)
    assert second.stopped_at > 0
    tasks[0].cancel()


class GivesBack(Waits):
    """A job that takes its time to give its run back when it is stopped."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.may_end = asyncio.Event()
        self.gave_back = False

    async def run(self, control: Control) -> Ending:
        await super().run(control)
        await self.may_end.wait()
        self.gave_back = True
        return None


async def test_a_job_whose_lease_is_lost_is_told_so_once(
    database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis_client.zadd(Q, {"j": 1})
    gate, handler = StoreGate(database, redis_client), Handler(GivesBack)
    queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=LEASE_SECONDS)
    extend, told = queue.extend, 0

    async def counted(leases: Sequence[Lease]) -> set[str]:
        nonlocal told
        lost = await extend(leases)
        told += len(lost)
        return lost

    monkeypatch.setattr(queue, "extend", counted)
    loop = ClaimLoop(Served([queue]), handler, gate, slots=1, lease_seconds=LEASE_SECONDS)
    tasks = [asyncio.create_task(gate.watch()), asyncio.create_task(loop.run())]
    job = await asyncio.wait_for(handler.jobs.get(), 10)
    assert isinstance(job, GivesBack)
    await job.began.wait()
    await redis_client.delete(keys.leases(Q), keys.claims(Q))
    await eventually("Redis has said twice that the lease is lost", lambda: told > 1)
    job.may_end.set()
    await eventually("the slot is free", lambda: loop.active == 0)
    assert (job.gave_back, loop.lost_leases) == (True, 1)
    loop.stop(hand_over=False)
    await asyncio.wait_for(tasks[1], 10)
    tasks[0].cancel()


class Ends(Waits):
    """A job whose work is done at once, while writing its end takes as long as the test says."""

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease)
        self.written = asyncio.Event()

    async def run(self, control: Control) -> Ending:
        self.began.set()
        control.ends()
        control.ends()  # saying it again changes nothing
        await self.written.wait()
        return Release(self.lease, b"")


async def leased(client: Redis, jobs: int) -> bool:
    return bool(await client.zcard(keys.leases(Q)) == jobs)


@asynccontextmanager
async def two_slots(
    database: Database, client: Redis, *jobs: str
) -> AsyncIterator[tuple[ClaimLoop, asyncio.Queue[Waits], list[Ends]]]:
    """A loop whose two slots have jobs that end, while the others of `jobs` wait."""
    await client.zadd(Q, {job: number for number, job in enumerate(jobs)})
    gate, handler = StoreGate(database, client), Handler(Ends)
    queue = LeaseQueue(client, Q, worker_id="w", lease_seconds=LEASE_SECONDS)
    loop = ClaimLoop(Served([queue]), handler, gate, slots=2, lease_seconds=LEASE_SECONDS)
    tasks = [asyncio.create_task(gate.watch()), asyncio.create_task(loop.run())]
    first = [await asyncio.wait_for(handler.jobs.get(), 10) for _ in range(2)]
    yield loop, handler.jobs, [job for job in first if isinstance(job, Ends)]
    loop.stop(hand_over=False)
    await asyncio.wait_for(tasks[1], 10)
    tasks[0].cancel()


async def test_while_ends_are_written_the_next_jobs_are_claimed_and_begin_when_slots_are_free(
    database: Database, redis_client: Redis
) -> None:
    async with two_slots(database, redis_client, "a", "b", "c", "d", "e") as (loop, begun, first):
        await eventually("two more are claimed", lambda: leased(redis_client, 4))
        assert [job_id.decode() for job_id in await redis_client.zrange(Q, 0, -1)] == ["e"]
        assert loop.active == 2
        assert begun.empty()
        first[0].written.set()
        third = await asyncio.wait_for(begun.get(), 10)
        assert third.lease.job_id == "c"
        assert loop.active == 2
        assert begun.empty()
        first[1].written.set()
        fourth = await asyncio.wait_for(begun.get(), 10)
        assert isinstance(third, Ends)
        assert isinstance(fourth, Ends)
        third.written.set()
        fourth.written.set()
        last = await asyncio.wait_for(begun.get(), 10)
        assert isinstance(last, Ends)
        assert [fourth.lease.job_id, last.lease.job_id] == ["d", "e"]
        last.written.set()
    assert not await redis_client.exists(keys.leases(Q))


async def test_a_job_whose_lease_is_lost_while_it_waits_for_its_slot_does_not_begin(
    database: Database, redis_client: Redis
) -> None:
    async with two_slots(database, redis_client, "a", "b", "c", "d") as (loop, begun, first):
        await eventually("two more are claimed", lambda: leased(redis_client, 4))
        await redis_client.zrem(keys.leases(Q), "c")
        await redis_client.hset(keys.claims(Q), "c", "another|1|worker")
        await eventually("it is known that one is lost", lambda: loop.lost_leases == 1)
        for job in first:
            job.written.set()
        fourth = await asyncio.wait_for(begun.get(), 10)
        assert isinstance(fourth, Ends)
        assert fourth.lease.job_id == "d"
        fourth.written.set()
    assert begun.empty()
    assert await redis_client.hget(keys.claims(Q), "c") == b"another|1|worker"


async def test_a_job_that_waits_for_its_slot_at_a_drain_goes_back_to_its_queue(
    database: Database, redis_client: Redis
) -> None:
    async with two_slots(database, redis_client, "a", "b", "c", "d") as (loop, begun, first):
        await eventually("two more are claimed", lambda: leased(redis_client, 4))
        loop.stop(hand_over=True)
        await eventually("they are given back", lambda: leased(redis_client, 2))
        back = await redis_client.zrange(keys.again(Q), 0, -1, withscores=True)
        assert back == [(b"c", 2.0), (b"d", 3.0)]  # where they were
        for job in first:
            job.written.set()
    assert begun.empty()
