"""arq's `Job.abort()` at our workers: the job ends as cancelled, and its mark is removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.jobs import Job
from redis.asyncio import Redis

from synapse_worker.queueing import keys, stops
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.store.database import Database
from tests.support.runs import enqueue, outcome, result_of, said_done, steps_reach, store, until, view
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, slow_steps

Q = keys.queue("default")


@pytest.fixture
async def pool(redis_server: RedisServer) -> AsyncIterator[ArqRedis]:
    """A stock producer."""
    opened = await create_pool(RedisSettings(port=redis_server.port), default_queue_name=Q)
    yield opened
    await opened.aclose()


async def test_a_waiting_job_ends_without_running(
    database: Database, redis_client: Redis, pool: ArqRedis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    job = await pool.enqueue_job(RUN_FUNCTION, _job_id="run_a", run_id="run_a", orch_id="three")
    assert job is not None
    # Unlike the others it waits for its answer: a job in the queue is one that arq waits for.
    aborting = asyncio.create_task(job.abort(timeout=30))
    deadline = time.monotonic() + 10
    while not await redis_client.zscore(keys.ABORT, "run_a"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    start_worker().wait_ready()
    assert await outcome(database, "run_a") == "cancelled"
    found = await view(database, "run_a")
    assert (found.status, found.steps_done, found.error) == ("cancelled", 0, "cancelled")
    deadline = time.monotonic() + 10
    while (info := await job.result_info()) is None:  # the release comes after the commit
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert info.success is False
    assert isinstance(info.result, asyncio.CancelledError)
    assert await redis_client.zcard(keys.ABORT) == 0
    await aborting  # True, or False when arq asked in the moment between claim and release


async def test_a_running_job_is_stopped_within_a_second(
    database: Database, redis_client: Redis, pool: ArqRedis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(2, 30.0)), PRINT_IF_PRINT)
    start_worker().wait_ready()
    job = await pool.enqueue_job(RUN_FUNCTION, _job_id="run_b", run_id="run_b", orch_id="slow")
    assert job is not None
    await until(database, "run_b", "running")
    neighbour = await enqueue(database, redis_client, "three")
    began = time.monotonic()
    assert await job.abort(timeout=5) is False  # arq does not wait for what is not in the queue: README
    await until(database, "run_b", "cancelled", seconds=5)
    assert time.monotonic() - began < 1.5
    assert (await said_done(redis_client, "run_b"))[-2]["error"] == "cancelled"
    await result_of(job)  # the release comes after the commit
    with pytest.raises(asyncio.CancelledError):
        await Job("run_b", pool, Q).result(timeout=5)
    assert await redis_client.zcard(keys.ABORT) == 0
    await until(database, neighbour, "completed")


async def test_a_cancel_that_was_wanted_before_the_claim_is_looked_at_then(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(3, 0.1)))
    run_id = await enqueue(database, redis_client, "slow")
    await redis_client.set(keys.cancel(run_id), "1")
    start_worker().wait_ready()
    assert (await until(database, run_id, "cancelled")).steps_done == 0
    await said_done(redis_client, run_id)
    assert not await redis_client.exists(keys.cancel(run_id))


async def test_marks_of_other_jobs_stay_and_old_ones_go(redis_client: Redis) -> None:
    now_ms = int(time.time() * 1000)
    await redis_client.zadd(keys.ABORT, {"theirs": now_ms, "old": now_ms - stops.ABORT_TTL_MS - 1_000})
    assert await stops.wanted(redis_client, [RunningJob("run_c", "run_c")]) == {}
    await stops.forget_old_aborts(redis_client, now_ms)
    assert await redis_client.zrange(keys.ABORT, 0, -1) == [b"theirs"]


async def test_a_job_that_was_stepping_is_cancelled_behind_its_checkpoints(
    database: Database, redis_client: Redis, pool: ArqRedis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(20, 0.3)))
    start_worker().wait_ready()
    job = await pool.enqueue_job(RUN_FUNCTION, _job_id="run_d", run_id="run_d", orch_id="slow")
    assert job is not None
    await steps_reach(database, "run_d", 2)
    await job.abort(timeout=5)
    done = await until(database, "run_d", "cancelled", seconds=5)
    assert 2 <= done.steps_done < 20
    assert len(done.history) == done.steps_done
