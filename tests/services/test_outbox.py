"""Rows for webhooks: one per end of a run that has a webhook_url, in the transaction of that end."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from tests.support.runs import enqueue, enqueue_as_upstream, outcome, steps_reach, store, until
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

URL = "http://127.0.0.1/hook"  # refused where nothing allows it; sending is in test_webhooks.py
BROKEN = chain("broken", [{"id": "t", "type": "transform", "transform_code": "result = state['nope']"}])


async def rows(database: Database) -> list[tuple[object, ...]]:
    found = await database.fetch(
        "SELECT run_id, orchestration_id, status, error IS NOT NULL, url, host, delivered_at"
        " FROM webhook_outbox ORDER BY created_at"
    )
    return [tuple(row) for row in found]


async def test_every_end_of_a_run_with_a_webhook_is_one_row(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT, BROKEN, chain("slow", slow_steps(20, 0.3)))
    start_worker().wait_ready()
    hook = {"webhook_url": URL, "webhook_secret": "hush"}
    for run_id, orchestration in (("run_ok", "three"), ("run_bad", "broken"), ("run_slow", "slow")):
        await enqueue_as_upstream(redis_client, run_id, RUN_FUNCTION, run_id=run_id, orch_id=orchestration, **hook)
    assert await outcome(database, "run_ok") == "completed"
    assert await outcome(database, "run_bad") == "failed"
    await steps_reach(database, "run_slow", 1)
    await asyncio.to_thread(command, redis_server.url, postgres_url, "runs", "cancel", "run_slow")
    assert await outcome(database, "run_slow") == "cancelled"
    without = await enqueue(database, redis_client, "three")
    await until(database, without, "completed")
    assert {row[0]: row[1:] for row in await rows(database)} == {
        "run_ok": ("three", "completed", False, URL, "127.0.0.1", None),
        "run_bad": ("broken", "failed", True, URL, "127.0.0.1", None),
        "run_slow": ("slow", "cancelled", True, URL, "127.0.0.1", None),
    }
    # A run that is resumed and ends again is told of again; the first end was told of truly.
    await asyncio.to_thread(command, redis_server.url, postgres_url, "runs", "resume", "run_bad")
    await until(database, "run_bad", "failed")
    assert [row[2] for row in await rows(database) if row[0] == "run_bad"] == ["failed", "failed"]


async def test_a_waiting_run_that_is_cancelled_or_cannot_start_is_told_of_once(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    for run_id in ("run_cancelled", "run_expired", "run_unhooked"):
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
            " webhook_url) VALUES ($1, 'three', 'default', 'queued', '{}', '[]', $2)",
            run_id,
            "" if run_id == "run_unhooked" else URL,
        )
    assert await runs.cancel_queued(database, "run_cancelled") == "queued"
    assert await runs.cancel_queued(database, "run_cancelled") == "cancelled"
    letter = runs.DeadLetter(RUN_FUNCTION, {}, "it failed", 1)
    for run_id in ("run_expired", "run_expired", "run_unhooked"):
        await runs.reject(database, job_id=run_id, run_id=run_id, queue="q", envelope=None, letter=letter)
    assert {row[0]: row[2] for row in await rows(database)} == {"run_cancelled": "cancelled", "run_expired": "failed"}
    assert len(await rows(database)) == 2


async def test_a_run_that_a_worker_takes_while_it_is_cancelled_is_told_to_be_running(
    database: Database, redis_client: Redis
) -> None:
    """Who hears `queued` takes the run for cancelled, and nobody would tell the worker."""
    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
        " VALUES ('r', 'three', 'default', 'queued', '{}', '[]')"
    )
    async with database.transaction() as worker:
        await worker.execute("UPDATE orchestration_runs SET status = 'running' WHERE run_id = 'r'")
        cancelling = asyncio.create_task(runs.cancel_queued(database, "r"))
        await asyncio.sleep(0.3)
        assert not cancelling.done()
    assert await cancelling == "running"
    (row,) = await database.fetch("SELECT status FROM orchestration_runs")
    assert row["status"] == "running"
