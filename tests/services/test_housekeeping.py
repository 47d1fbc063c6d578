"""The sweep against real stores: whatever Redis lost is queued again, and nothing is queued twice."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.queueing.lease import HandBack, LeaseQueue
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store import runs, workers
from synapse_worker.store.database import Database
from tests.support.runs import assert_each_step_once, enqueue, said_done, steps_reach, store, until, view
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, slow_steps

Q = keys.queue("default")


def keeper(database: Database, client: Redis) -> Housekeeper:
    return Housekeeper(database, client, StoreGate(database, client))


async def half_enqueued(database: Database, run_id: str) -> None:
    """What a producer leaves that dies between its write to Postgres and its writes to Redis."""
    envelope = encode(JobPayload(RUN_FUNCTION, {"run_id": run_id, "orch_id": "three", "initial_input": "x"}))
    await runs.create_queued(database, runs.QueuedRun(run_id, "three", None, "default", run_id, Q, envelope))


async def test_a_run_that_never_reached_redis_is_queued_and_runs(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    await half_enqueued(database, "run_half_1")
    assert await keeper(database, redis_client).sweep() == 0  # not overdue: its producer may still be at it
    assert await keeper(database, redis_client).sweep(overdue_seconds=0) == 1
    assert await keeper(database, redis_client).sweep(overdue_seconds=0) == 0
    start_worker()
    await until(database, "run_half_1", "completed")
    assert await keeper(database, redis_client).sweep(overdue_seconds=0) == 0


async def test_what_waits_is_leased_or_was_given_back_is_left_alone(database: Database, redis_client: Redis) -> None:
    await store(database, PRINT_IF_PRINT)
    for _ in range(3):
        await enqueue(database, redis_client, "three")
    queue = LeaseQueue(redis_client, Q, worker_id="w", lease_seconds=30)
    given_back, _ = await queue.claim(2, 0.0)
    await queue.hand_back([HandBack(given_back, 60_000)])
    assert await keeper(database, redis_client).sweep(overdue_seconds=0) == 0


async def test_one_process_sweeps_at_a_time(database: Database, redis_client: Redis) -> None:
    for number in range(50):
        await half_enqueued(database, f"run_half_{number}")
    swept = await asyncio.gather(*(keeper(database, redis_client).sweep(overdue_seconds=0) for _ in range(4)))
    assert sum(swept) == 50
    assert await redis_client.zcard(Q) == 50


async def test_an_emptied_redis_costs_nothing(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(12, 0.15)), PRINT_IF_PRINT)
    start_worker(WORKER_LEASE_SECONDS="3", WORKER_CONCURRENCY="1").wait_ready()
    running = await enqueue(database, redis_client, "slow")
    await steps_reach(database, running, 2)
    waiting = [await enqueue(database, redis_client, "three") for _ in range(5)]
    await redis_client.flushall()
    # The owner finds its lease gone at the next heartbeat, stops, and gives the run back in Postgres.
    await until(database, running, "queued", seconds=10)
    assert await keeper(database, redis_client).sweep(overdue_seconds=0) == 6
    for run_id in (running, *waiting):
        await until(database, run_id, "completed")
    assert (await view(database, running)).steps_done == 12
    events = await said_done(redis_client, running)
    assert len(await database.fetch("SELECT 1 FROM run_steps WHERE run_id = $1", running)) == 12
    assert_each_step_once(events, len([event for event in events if event["type"] == "step_complete"]))


async def test_silent_workers_are_marked_offline(database: Database) -> None:
    for name in ("alive", "silent"):
        await workers.beat(database, workers.WorkerRow(name, name, "", "online", ("default",), "1", 0, 10))
    await database.execute("UPDATE workers SET last_heartbeat = now() - interval '91 s' WHERE worker_id = 'silent'")
    assert await workers.mark_silent(database) == 1
    rows = await database.fetch("SELECT worker_id, status FROM workers ORDER BY worker_id")
    assert [tuple(row) for row in rows] == [("alive", "online"), ("silent", "offline")]
