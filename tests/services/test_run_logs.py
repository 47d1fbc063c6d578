"""Run logs: one object for each end of a run, written beside the runs, by whoever gets to it, and never lost."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.run_logs import BATCH, RunLogs, log_key, newest_log
from synapse_worker.store import run_logs
from synapse_worker.store.blobs import Blobs, chunks_of
from synapse_worker.store.database import Database
from synapse_worker.store.local_blobs import LocalBlobs
from synapse_worker.store.run_logs import DueLog
from synapse_worker.store.s3_blobs import S3Blobs
from tests.support.runs import enqueue, eventually, store, until
from tests.support.s3 import Rights, S3Server
from tests.support.servers import wait_until
from tests.support.workers import PRINT_IF_PRINT, StartWorker, command


async def ended_run(database: Database, run_id: str, *, claims: list[int], status: str = "completed") -> None:
    """Write what a run with a step for each of these claims leaves behind, the last one being its owner's."""
    await database.execute(
        "INSERT INTO orchestration_runs"
        " (run_id, orchestration_id, tenant_id, status, shared_state, step_history, claim)"
        " VALUES ($1, 'orch', 'acme', $2, '{}', '[]', $3) ON CONFLICT DO NOTHING",
        run_id,
        status,
        claims[-1],
    )
    await database.execute(
        "INSERT INTO run_steps (run_id, step_id, visit, ordinal, claim, delta, entry, events, started_at, ended_at)"
        " SELECT $1, 's', n, n, c, jsonb_build_object('out', n), '{}', '[]', now(), now()"
        "   FROM unnest($2::bigint[]) WITH ORDINALITY AS t (c, n)",
        run_id,
        claims,
    )
    await end(database, run_id)


async def end(database: Database, run_id: str) -> None:
    """Note that the run's log is due, as the statements that end runs do."""
    source = "ended AS (SELECT * FROM orchestration_runs WHERE run_id = $1)"
    await database.execute(f"WITH {source}, {run_logs.due('ended')} SELECT 1", run_id)


async def lines_of(blobs: Blobs, run_id: str, tenant_id: str = "acme") -> list[dict[str, object]]:
    content = b"".join([chunk async for chunk in newest_log(blobs, tenant_id, run_id)])
    return [json.loads(line) for line in content.splitlines()]


@pytest.fixture
async def writer(database: Database, redis_client: Redis, blobs: Blobs) -> RunLogs:
    return RunLogs(database, blobs, StoreGate(database, redis_client))


async def test_a_log_holds_the_run_and_its_steps(database: Database, blobs: Blobs, writer: RunLogs) -> None:
    await ended_run(database, "run_1", claims=[7, 7, 9])
    assert await writer.write_due() == 1
    heading, *steps = await lines_of(blobs, "run_1")
    assert (heading["type"], heading["run_id"], heading["status"], heading["claim"]) == ("run", "run_1", "completed", 9)
    assert [(step["ordinal"], step["claim"], step["output"]) for step in steps] == [
        (1, 7, {"out": 1}),
        (2, 7, {"out": 2}),
        (3, 9, {"out": 3}),
    ]
    assert await writer.write_due() == 0
    assert not await run_logs.is_due(database, "run_1")


async def test_a_long_run_is_whole_and_so_are_its_neighbours(database: Database, blobs: Blobs, writer: RunLogs) -> None:
    sizes = {"a_short": 3, "b_long": 2_300, "c_behind": 5, "d_none": 0}
    for run_id, count in sizes.items():
        await ended_run(database, run_id, claims=[4] * count or [4])
        if count == 0:
            await database.execute("DELETE FROM run_steps WHERE run_id = $1", run_id)
    assert await writer.write_due() == len(sizes)
    for run_id, count in sizes.items():
        _, *steps = await lines_of(blobs, run_id)
        assert [step["ordinal"] for step in steps] == list(range(1, count + 1))


async def test_a_later_end_leaves_the_earlier_log_as_it_is(database: Database, blobs: Blobs, writer: RunLogs) -> None:
    await ended_run(database, "run_1", claims=[5, 5], status="failed")
    await writer.write_due()
    await database.execute("UPDATE orchestration_runs SET status = 'completed', claim = 8 WHERE run_id = 'run_1'")
    await end(database, "run_1")
    await writer.write_due()
    keys = [blob.key async for blob in blobs.walk("logs/acme/run_1/")]
    assert [key.split("/")[-1][:20] for key in keys] == ["0" * 19 + "5", "0" * 19 + "8"]
    assert (await lines_of(blobs, "run_1"))[0]["status"] == "completed"


async def test_a_log_written_late_does_not_hold_what_came_after_its_end(
    database: Database, blobs: Blobs, writer: RunLogs
) -> None:
    """The run was resumed by another claim before anybody wrote the log of its first end."""
    await ended_run(database, "run_1", claims=[5, 5], status="failed")
    await database.execute(
        "INSERT INTO run_steps (run_id, step_id, visit, ordinal, claim, delta, entry, events, started_at, ended_at)"
        " VALUES ('run_1', 's', 3, 3, 8, '{}', '{}', '[]', now(), now())"
    )
    await writer.write_due()
    heading, *steps = await lines_of(blobs, "run_1")
    assert (heading["status"], [step["claim"] for step in steps]) == ("failed", [5, 5])


async def test_two_writers_never_have_the_same_log(database: Database) -> None:
    for number in range(12):
        await ended_run(database, f"run_{number}", claims=[3])
    one = await run_logs.lease(database, limit=8, seconds=60)
    other = await run_logs.lease(database, limit=8, seconds=60)
    assert (len(one), len(other)) == (8, 4)
    assert not {log.run_id for log in one} & {log.run_id for log in other}


async def test_one_that_is_due_anew_while_it_is_written_stays_due(database: Database) -> None:
    await ended_run(database, "run_1", claims=[3])
    leased = await run_logs.lease(database, limit=BATCH, seconds=60)
    await end(database, "run_1")
    await run_logs.settle(database, leased)
    assert await run_logs.is_due(database, "run_1")


async def test_what_s3_does_not_take_is_written_later(
    database: Database, redis_client: Redis, s3_server: S3Server
) -> None:
    bucket = s3_server.new_bucket()
    gate = StoreGate(database, redis_client)
    refused, allowed = (S3Blobs(s3_server.settings(bucket, rights)) for rights in (Rights.READ, Rights.PAGE))
    await ended_run(database, "run_1", claims=[3])
    assert await RunLogs(database, refused, gate).write_due() == 0
    assert s3_server.keys(bucket) == []
    await database.execute("UPDATE run_logs SET next_at = now()")  # the lease is over
    assert await RunLogs(database, allowed, gate).write_due() == 1
    assert len(await lines_of(allowed, "run_1")) == 2
    await refused.close()
    await allowed.close()


async def test_a_worker_logs_its_runs_into_the_bucket(
    database: Database, redis_client: Redis, s3_server: S3Server, start_worker: StartWorker
) -> None:
    bucket = s3_server.new_bucket()
    variables = s3_server.environment(bucket)
    worker = start_worker(**variables)
    await store(database, PRINT_IF_PRINT)
    run_id = await enqueue(database, redis_client, "three", "you")
    view = await until(database, run_id, "completed")
    assert view.steps_done == 3
    await eventually("the log is written", lambda: _written(s3_server, bucket, run_id), seconds=40)
    done = command(*_urls(worker.environment), "runs", "logs", run_id, **variables)
    heading, *steps = (json.loads(line) for line in done.stdout.splitlines())
    assert (heading["run_id"], heading["orchestration_id"], heading["status"]) == (run_id, "three", "completed")
    assert [step["entry"]["step_id"] for step in steps] == ["hello", "if", "end"]
    assert [event["type"] for event in steps[0]["events"]][-1] == "step_complete"
    missing = command(*_urls(worker.environment), "runs", "logs", "run_none", **variables)
    assert missing.returncode == 1
    assert "there is no run 'run_none'" in missing.stderr


def _written(server: S3Server, bucket: str, run_id: str) -> bool:
    return any(key.startswith(f"synapse/logs/default/{run_id}/") for key in server.keys(bucket))


def _urls(environment: dict[str, str]) -> tuple[str, str]:
    return environment["REDIS_URL"], environment["SCALE_POSTGRES_URL"]


async def test_a_worker_waits_for_its_bucket_and_says_so(
    database: Database, s3_server: S3Server, start_worker: StartWorker
) -> None:
    worker = start_worker(**s3_server.environment("made-later"))
    sentence = "S3 has no bucket 'made-later' (S3_BUCKET)"
    wait_until("the worker says what is missing", lambda: sentence in worker.get("/readyz")[1])
    assert worker.get("/livez")[0] == 200
    s3_server.client().create_bucket(
        Bucket="made-later", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    worker.wait_ready()


async def test_of_local_logs_the_newest_are_kept(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    for number in range(6):
        await blobs.put(f"logs/acme/run_{number}/log", chunks_of(b"x" * 100))
        moment = time.time() - 100 + number
        path = tmp_path / f"logs/acme/run_{number}/log"
        os.utime(path, (moment, moment))
    await blobs.put("vault/acme/kept", chunks_of(b"y" * 1000))
    blobs.trim(250)
    assert [blob.key async for blob in blobs.walk("logs/")] == ["logs/acme/run_4/log", "logs/acme/run_5/log"]
    assert await blobs.exists("vault/acme/kept")


def test_a_key_tells_run_claim_and_end() -> None:
    due = DueLog("run_1", 42, "failed", "a/b", None, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), datetime.now(UTC), None)
    assert log_key(due) == "logs/a%2Fb/run_1/00000000000000000042-20260102T030405.000000Z-failed.jsonl"
