"""Retention against a real PostgreSQL: what is over for long enough goes, and nothing that is open."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis

from synapse_worker import retention as retention_module
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.retention import Retention
from synapse_worker.store import claims, runs
from synapse_worker.store.claims import ClaimRequest, Verdict
from synapse_worker.store.database import Database
from synapse_worker.store.overview import work_due
from synapse_worker.store.run_logs import is_due
from tests.support.runs import enqueue, eventually, store, until
from tests.support.workers import PRINT_IF_PRINT, StartWorker

DAYS = 10
TABLES = {
    "orchestration_runs": "run_id",
    "run_steps": "run_id",
    "run_turns": "run_id",
    "job_ledger": "run_id",
    "webhook_outbox": "run_id",
    "dead_letter_queue": "run_id",
}


async def write(database: Database, run_id: str, *, status: str = "completed", age: float = DAYS + 1) -> None:
    """Write a run that ended so many days ago, with a row in each table that knows it, all of them settled."""
    ended = None if status in ("queued", "running", "paused") else age
    outcome = "paused" if status == "paused" else status if ended else None
    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
        " job_id, folded_steps, ended_at)"
        " VALUES ($1, 'three', 'default', $2, '{}', '[]', $1, 2, now() - make_interval(secs => $3::float8 * 86400))",
        run_id,
        status,
        ended,
    )
    for step in ("a", "b"):
        await database.execute(
            "INSERT INTO run_steps (run_id, step_id, visit, ordinal, claim, delta, entry, events)"
            " VALUES ($1, $2, 1, $3, 1, '{}', '{}', '[]')",
            run_id,
            step,
            ord(step),
        )
    await database.execute(
        "INSERT INTO run_turns (run_id, step_id, visit, turn, message, claim) VALUES ($1, 'a', 1, 1, '{}', 1)", run_id
    )
    await database.execute(
        "INSERT INTO job_ledger (job_id, run_id, queue, outcome, ended_at)"
        " VALUES ($1, $1, 'q', $2, now() - make_interval(secs => $3::float8 * 86400))",
        run_id,
        outcome,
        age,
    )
    await database.execute(
        "INSERT INTO webhook_outbox (id, run_id, orchestration_id, tenant_id, status, url, attempts, delivered_at)"
        " VALUES (gen_random_uuid(), $1, 'three', 'default', $2, 'u', 1,"
        " now() - make_interval(secs => $3::float8 * 86400))",
        run_id,
        status,
        age,
    )
    await database.execute(
        "INSERT INTO dead_letter_queue (id, run_id, job_payload, resolved, last_failed_at)"
        " VALUES (gen_random_uuid(), $1, '{}', true, now() - make_interval(secs => $2::float8 * 86400))",
        run_id,
        age,
    )


async def left(database: Database) -> dict[str, set[str]]:
    """The runs that each table still knows."""
    return {
        table: {row["run_id"] for row in await database.fetch(f"SELECT run_id FROM {table}")}  # noqa: S608
        for table in TABLES
    }


async def remove(database: Database, client: Redis) -> int:
    return await Retention(database, client, days=DAYS).remove()


async def test_a_run_that_ended_long_ago_goes_with_all_that_belongs_to_it(
    database: Database, redis_client: Redis
) -> None:
    for status in ("completed", "failed", "cancelled"):
        await write(database, f"old_{status}", status=status)
        await write(database, f"young_{status}", status=status, age=DAYS - 0.1)
    assert await remove(database, redis_client) == 3
    young = {"young_completed", "young_failed", "young_cancelled"}
    assert await left(database) == {
        table: (set() if table == "webhook_outbox" else young) for table in TABLES
    }  # webhooks that were delivered go after seven days
    assert await remove(database, redis_client) == 0


@pytest.mark.parametrize("status", ["queued", "running", "paused"])
async def test_an_open_run_stays_however_old(database: Database, redis_client: Redis, status: str) -> None:
    await write(database, "open", status=status)
    await database.execute(
        "UPDATE orchestration_runs SET created_at = now() - interval '5 years', deadline = now() + interval '1 day'"
    )
    assert await remove(database, redis_client) == 0
    known = await left(database)
    for table in ("orchestration_runs", "run_steps", "run_turns", "job_ledger"):
        assert known[table] == {"open"}, table


async def test_what_somebody_still_needs_stays(database: Database, redis_client: Redis) -> None:
    for run_id in ("letter", "webhook", "log", "job", "my.parent.step.1.1", "free"):
        await write(database, run_id, status="failed")
    await database.execute(
        "INSERT INTO run_logs (run_id, claim, status, tenant_id, ended_at, next_at)"
        " VALUES ('log', 1, 'failed', 'default', now(), now())"
    )
    await write(database, "my.parent", status="paused")
    await database.execute(
        "UPDATE orchestration_runs SET root_run_id = 'my.parent' WHERE run_id = 'my.parent.step.1.1'"
    )
    await database.execute("UPDATE dead_letter_queue SET resolved = false WHERE run_id = 'letter'")
    await database.execute(
        "UPDATE webhook_outbox SET delivered_at = NULL, next_attempt_at = now() WHERE run_id = 'webhook'"
    )
    await database.execute("UPDATE job_ledger SET outcome = NULL WHERE run_id = 'job'")
    assert await remove(database, redis_client) == 1
    known = await left(database)
    kept = {"letter", "webhook", "log", "job", "my.parent.step.1.1", "my.parent"}
    for table in ("orchestration_runs", "run_steps", "run_turns", "job_ledger"):
        assert known[table] == kept, table
    assert known["webhook_outbox"] == {"webhook"}
    assert known["dead_letter_queue"] == {"letter"}
    await database.execute("UPDATE dead_letter_queue SET resolved = true")
    await database.execute("UPDATE webhook_outbox SET delivered_at = now(), next_attempt_at = NULL")
    await database.execute("UPDATE job_ledger SET outcome = 'failed' WHERE run_id = 'job'")
    await database.execute("DELETE FROM run_logs")
    await database.execute(
        "UPDATE orchestration_runs SET status = 'failed', ended_at = now() WHERE run_id = 'my.parent'"
    )
    assert await remove(database, redis_client) == 4
    assert (await left(database))["orchestration_runs"] == {"my.parent", "my.parent.step.1.1"}
    await database.execute(
        "UPDATE orchestration_runs SET ended_at = now() - interval '1 year' WHERE run_id = 'my.parent'"
    )
    while await remove(database, redis_client):
        pass
    assert not (await left(database))["orchestration_runs"]


async def test_a_turns_job_stays_until_its_webhook_has_been_signed_with_its_secret(
    database: Database, redis_client: Redis
) -> None:
    await write(database, "turn", age=DAYS + 1)
    await database.execute("DELETE FROM orchestration_runs")
    await database.execute("UPDATE job_ledger SET run_id = NULL, session_id = 's'")
    await database.execute("UPDATE webhook_outbox SET delivered_at = NULL, next_attempt_at = now()")
    await remove(database, redis_client)
    assert await database.fetch("SELECT 1 FROM job_ledger")
    await database.execute("UPDATE webhook_outbox SET delivered_at = now(), next_attempt_at = NULL")
    await remove(database, redis_client)
    assert await database.fetch("SELECT 1 FROM job_ledger") == []


async def test_a_job_that_redis_still_holds_is_not_forgotten(database: Database, redis_client: Redis) -> None:
    """Without its ledger row, a queue entry that was left over would start the run anew."""
    await write(database, "run_1", status="cancelled")
    await redis_client.set(keys.job("run_1"), encode(JobPayload(RUN_FUNCTION, {"run_id": "run_1", "orch_id": "three"})))
    assert await remove(database, redis_client) == 1
    known = await left(database)
    assert (known["orchestration_runs"], known["job_ledger"]) == (set(), {"run_1"})
    request = ClaimRequest("run_1", "run_1", "q", b"", 0, "three", None, "default", None, None)
    assert [each.verdict for each in await claims.take(database, "w", [request])] == [Verdict.ENDED]
    await redis_client.delete(keys.job("run_1"))
    await remove(database, redis_client)
    assert (await left(database))["job_ledger"] == set()


async def test_pages_reach_the_end_past_all_that_is_kept(
    database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "PAGE", 5)
    for number in range(23):
        await write(database, f"run_{number}", status="failed", age=DAYS + 100 - number)
    # The oldest twelve, more than two pages, are kept for their letters.
    kept = {f"run_{number}" for number in range(12)}
    await database.execute("UPDATE dead_letter_queue SET resolved = false WHERE run_id = ANY($1::text[])", sorted(kept))
    assert await remove(database, redis_client) == 11
    known = await left(database)
    assert known["orchestration_runs"] == known["job_ledger"] == known["dead_letter_queue"] == kept


async def test_runs_of_many_steps_are_removed_few_at_a_time(
    database: Database, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        await write(database, f"run_{number}", age=DAYS + 4 - number)
    await database.execute("UPDATE orchestration_runs SET folded_steps = 30000")
    monkeypatch.setattr(retention_module, "TURN_SECONDS", 0.0)
    keeper = Retention(database, redis_client, days=DAYS)
    assert await keeper.remove() == 0  # no time at all
    monkeypatch.setattr(retention_module, "TURN_SECONDS", 10.0)
    assert await keeper.remove() == 4
    assert (await left(database))["run_steps"] == set()


async def test_two_processes_remove_each_row_once(database: Database, redis_client: Redis) -> None:
    for number in range(40):
        await write(database, f"run_{number}")
    removed = await asyncio.gather(*(remove(database, redis_client) for _ in range(4)))
    assert sum(removed) == 40


async def test_old_keys_and_silent_workers_go(database: Database, redis_client: Redis) -> None:
    for name, hours in (("old", 25), ("young", 23)):
        await database.execute(
            "INSERT INTO idempotency_keys (tenant_id, key, request_hash, run_id, created_at)"
            " VALUES ('t', $1, 'h', 'r', now() - make_interval(hours => $2))",
            name,
            hours,
        )
        await database.execute(
            "INSERT INTO workers (worker_id, status, last_heartbeat)"
            " VALUES ($1, 'offline', now() - make_interval(hours => $2 * 7))",
            name,
            hours,
        )
    await remove(database, redis_client)
    assert [row["key"] for row in await database.fetch("SELECT key FROM idempotency_keys")] == ["young"]
    assert [row["worker_id"] for row in await database.fetch("SELECT worker_id FROM workers")] == ["young"]


async def test_a_real_run_and_its_letter(database: Database, redis_client: Redis, start_worker: StartWorker) -> None:
    """What a worker writes is what is removed: nothing of a run is left when its time is over."""
    await store(database, PRINT_IF_PRINT)
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "three")
    await until(database, run_id, "completed")

    async def is_logged() -> bool:
        return not await is_due(database, run_id)

    await eventually("its log is written", is_logged, seconds=60)
    await redis_client.flushall()
    await database.execute("UPDATE orchestration_runs SET ended_at = now() - interval '11 days'")
    await database.execute("UPDATE job_ledger SET ended_at = now() - interval '11 days'")
    assert await remove(database, redis_client) == 1
    assert await left(database) == {table: set() for table in TABLES}


async def test_pages_are_found_by_an_index(database: Database) -> None:
    for status in ("completed", "failed", "cancelled"):
        plan = await database.fetch(
            "EXPLAIN (FORMAT JSON) SELECT run_id FROM orchestration_runs WHERE status = '"  # noqa: S608
            + status
            + "' AND ended_at < now() - interval '90 days' ORDER BY ended_at LIMIT 10"
        )
        assert "idx_runs_ended" in json.dumps([tuple(row) for row in plan])


async def test_work_that_only_a_worker_does_is_seen(database: Database) -> None:
    assert not await work_due(database, DAYS)
    await write(database, "run_1", age=DAYS + 0.5)  # removed with the rest, once a worker is there
    await write(database, "run_2", status="failed", age=DAYS + 5)
    assert not await work_due(database, DAYS)
    await database.execute("UPDATE orchestration_runs SET ended_at = now() - interval '12 days' WHERE run_id = 'run_1'")
    assert await work_due(database, DAYS)
    assert not await work_due(database, DAYS + 10)
    await database.execute(  # as for each run that the API ran itself: no worker has been there to write it
        "INSERT INTO run_logs (run_id, claim, status, tenant_id, ended_at, next_at)"
        " VALUES ('run_1', 1, 'completed', 'default', now() - interval '12 days', now())"
    )
    assert await work_due(database, DAYS)
    await database.execute("DELETE FROM run_logs")
    await database.execute("UPDATE dead_letter_queue SET resolved = false WHERE run_id = 'run_1'")
    assert not await work_due(database, DAYS)
    await database.execute("UPDATE webhook_outbox SET delivered_at = NULL, next_attempt_at = now() + interval '1 hour'")
    assert not await work_due(database, DAYS)
    await database.execute("UPDATE webhook_outbox SET next_attempt_at = now() - interval '1 s' WHERE run_id = 'run_1'")
    assert await work_due(database, DAYS)
    await database.execute("DELETE FROM webhook_outbox")
    assert not await work_due(database, DAYS)
    await write(database, "run_3", status="paused")
    await database.execute("UPDATE orchestration_runs SET deadline = now() - interval '1 s' WHERE run_id = 'run_3'")
    assert await work_due(database, DAYS)
    assert await runs.time_out(database, "run_3", runs.DeadLetter(RUN_FUNCTION, {}, "late", 1))
    assert not await work_due(database, DAYS)
