"""The sweep against real stores: whatever Redis lost is queued again, and nothing is queued twice."""

from __future__ import annotations

import asyncio
import signal

from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import BATCH, Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.queueing.lease import HandBack, LeaseQueue
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store import runs, workers
from synapse_worker.store.database import Database
from synapse_worker.telemetry import Metrics
from tests.support.runs import assert_each_step_once, enqueue, eventually, said_done, steps_reach, store, until, view
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

Q = keys.queue("default")


def keeper(database: Database, client: Redis) -> Housekeeper:
    return Housekeeper(database, client, StoreGate(database, client))


async def half_enqueued(database: Database, run_id: str) -> None:
    """What a producer leaves that dies between its write to Postgres and its writes to Redis."""
    envelope = encode(JobPayload(RUN_FUNCTION, {"run_id": run_id, "orch_id": "three", "initial_input": "x"}))
    await runs.create_queued(database, runs.QueuedRun(run_id, "three", None, "default", run_id, Q, envelope), epoch=0)


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


async def test_what_a_lost_redis_had_is_written_back_in_one_go(database: Database, redis_client: Redis) -> None:
    for number in range(2 * BATCH + 50):
        await half_enqueued(database, f"run_half_{number:04}")
    queued = keeper(database, redis_client)
    assert await queued.sweep(overdue_seconds=0) == 2 * BATCH + 50
    assert await redis_client.zcard(Q) == 2 * BATCH + 50
    assert await queued.sweep(overdue_seconds=0) == 0  # and a full batch that waits where it should ends the sweep
    assert await queued.sweep(overdue_seconds=0) == 0
    assert queued.swept == 2 * BATCH + 50


async def test_silent_workers_are_marked_offline(database: Database) -> None:
    for name in ("alive", "silent"):
        await workers.beat(database, workers.WorkerRow(name, name, "", "online", ("default",), "1", 0, 10))
    await database.execute("UPDATE workers SET last_heartbeat = now() - interval '91 s' WHERE worker_id = 'silent'")
    assert await workers.mark_silent(database) == 1
    rows = await database.fetch("SELECT worker_id, status FROM workers ORDER BY worker_id")
    assert [tuple(row) for row in rows] == [("alive", "online"), ("silent", "offline")]


def queue_keeper(database: Database, client: Redis, metrics: Metrics | None = None) -> Housekeeper:
    return Housekeeper(database, client, StoreGate(database, client), lambda: [Q], metrics=metrics)


async def upstream_row(database: Database, run_id: str, status: str = "queued", *, minutes: float = 11) -> None:
    """What a main instance writes before it enqueues, so many minutes ago."""
    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
        " created_at, webhook_url) VALUES ($1, 'three', 'default', $2, '{}', '[]', now() - make_interval(mins => $3),"
        " 'https://example.com')",
        run_id,
        status,
        minutes,
    )


async def test_a_queued_run_whose_payload_is_gone_fails_and_nothing_else_does(
    database: Database, redis_client: Redis
) -> None:
    await upstream_row(database, "run_gone")
    others = ("run_young", "run_running", "run_payload", "run_queued", "run_stock", "run_leased", "run_ours")
    for run_id in others:
        status = "running" if run_id == "run_running" else "queued"
        await upstream_row(database, run_id, status, minutes=9 if run_id == "run_young" else 11)
    await redis_client.set(keys.job("run_payload"), "x")
    await redis_client.zadd(Q, {"run_queued": 0})
    await redis_client.set(keys.in_progress("run_stock"), "1")
    await redis_client.zadd(keys.leases(Q), {"run_leased": 1})
    await database.execute("INSERT INTO job_ledger (job_id, run_id, queue) VALUES ('run_ours', 'run_ours', $1)", Q)

    metrics = Metrics()
    assert await queue_keeper(database, redis_client, metrics).expire() == 1
    assert 'synapse_runs_completed_total{status="failed",tenant_id="default"} 1.0' in metrics.text().decode()
    gone = await view(database, "run_gone")
    assert (gone.status, gone.error) == ("failed", "payload expired before a worker took it")
    for run_id in others:
        assert (await view(database, run_id)).status == ("running" if run_id == "run_running" else "queued")
    letters = await database.fetch("SELECT run_id, error_message FROM dead_letter_queue")
    assert [tuple(row) for row in letters] == [("run_gone", "payload expired before a worker took it")]
    hooks = await database.fetch("SELECT run_id, status FROM webhook_outbox")
    assert [tuple(row) for row in hooks] == [("run_gone", "failed")]
    row = await database.fetchrow("SELECT outcome FROM job_ledger WHERE job_id = 'run_gone'")
    assert row is not None
    assert row["outcome"] == "expired"
    assert await queue_keeper(database, redis_client).expire() == 0


async def test_a_queue_that_cannot_be_read_lets_no_run_expire(database: Database, redis_client: Redis) -> None:
    await upstream_row(database, "run_gone")
    await redis_client.set(keys.again(Q), "somebody else's")
    assert await queue_keeper(database, redis_client).expire() == 0
    assert (await view(database, "run_gone")).status == "queued"


async def test_payloads_of_waiting_jobs_are_kept_alive(database: Database, redis_client: Redis) -> None:
    for number in range(5):
        await redis_client.set(keys.job(f"run_{number}"), "x", ex=86_400)
        await redis_client.zadd(Q, {f"run_{number}": number})
    await redis_client.persist(keys.job("run_1"))
    await redis_client.set(keys.job("run_2"), "x", ex=30 * 86_400)
    await redis_client.zadd(Q, {"without": 0.5, b"\xff": 9})
    await queue_keeper(database, redis_client).keep_payloads()
    days = [round(await redis_client.ttl(keys.job(f"run_{number}")) / 86_400, 2) for number in range(5)]
    assert days == [8, 0, 30, 8, 8]  # 0: without an end, as it was


async def test_a_waiting_run_fails_when_its_time_is_over(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, {**chain("slow", slow_steps(20, 0.2)), "timeout_minutes": 60})
    worker = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    keeper = queue_keeper(database, redis_client)
    assert await keeper.time_out() == 0
    await database.execute("UPDATE orchestration_runs SET deadline = now() - interval '1 s'")
    assert await keeper.time_out() == 1
    sentence = "the run took longer than the timeout_minutes of orchestration 'slow'"
    found = await view(database, run_id)
    assert (found.status, found.error) == ("failed", sentence)
    rows = await database.fetch("SELECT job_function, job_payload->>'run_id', error_message FROM dead_letter_queue")
    assert [tuple(row) for row in rows] == [("run_orchestration_job", run_id, sentence)]
    assert await keeper.time_out() == 0
    assert [event["type"] for event in await said_done(redis_client, run_id)][-2:] == ["orchestration_error", "done"]
    # Its queue entry is still there: who takes it finds the end, and lets it go.
    start_worker()

    async def is_gone() -> bool:
        return not await redis_client.zcard(keys.again(Q))

    await eventually("the queue entry is gone", is_gone)


async def test_a_running_run_fails_when_its_time_is_over_and_has_it_anew_when_resumed(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    await store(database, {**chain("slow", slow_steps(8, 0.5)), "timeout_minutes": 1.5 / 60})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    done = await until(database, run_id, "failed")
    assert done.error == "the run took longer than the timeout_minutes (0.025) of orchestration 'slow' (slow)"
    assert done.steps_done < 8
    await asyncio.to_thread(command, redis_server.url, postgres_url, "runs", "resume", run_id)
    await steps_reach(database, run_id, done.steps_done + 1)
