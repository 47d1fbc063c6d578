"""A step that needs a store which is away: it waits, its own time does not run out, and no try is burned."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import MappingProxyType

import pytest
from redis.asyncio import Redis

from synapse_worker import run_walk
from synapse_worker.engine.model import Step, StepType
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.errors import StoreUnavailable
from synapse_worker.store.database import Database
from tests.page.support import Here
from tests.support.runs import enqueue, eventually, store, until
from tests.support.s3 import S3Server
from tests.support.servers import RedisServer

AWAY_SECONDS = 1.5
HUMAN: dict[str, object] = {
    "id": "ask",
    "name": "Ask",
    "steps": [
        {"id": "say", "type": "print", "print_content": "hello", "output_key": "said", "next_step_id": "ask"},
        {"id": "ask", "type": "human", "human_prompt": "well?", "output_key": "answer"},
    ],
}


async def test_a_step_waits_for_a_store_beyond_its_own_time(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    back = 0.0

    async def needs_s3(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
        nonlocal calls, back
        calls += 1
        back = back or time.monotonic() + AWAY_SECONDS
        if time.monotonic() < back:
            raise StoreUnavailable("S3", "cannot be reached")
        return await EXECUTORS[StepType.PRINT](step, state, context)

    monkeypatch.setattr(run_walk, "EXECUTORS", MappingProxyType({**EXECUTORS, StepType.PRINT: needs_s3}))
    step = {"id": "say", "type": "print", "print_content": "hello", "output_key": "said", "timeout_seconds": 1}
    await store(database, {"id": "short", "name": "Short", "steps": [step]})
    worker = Here(redis_server.url, postgres_url)
    await (await worker.start()).ready()
    try:
        run_id = await enqueue(database, redis_client, "short")
        view = await until(database, run_id, "completed", "failed")
    finally:
        await worker.close()
    assert (view.status, view.state["said"]) == ("completed", "hello")
    assert calls > 1
    row = await database.fetchrow("SELECT failures FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    assert row["failures"] == 0


async def test_a_pause_has_a_log_of_its_own(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, s3_server: S3Server
) -> None:
    bucket = s3_server.new_bucket()
    await store(database, HUMAN)
    worker = Here(redis_server.url, postgres_url, **s3_server.environment(bucket))
    await (await worker.start()).ready()
    try:
        run_id = await enqueue(database, redis_client, "ask")
        await until(database, run_id, "paused")
        await eventually("its log is written", lambda: bool(s3_server.keys(bucket)), seconds=40)
    finally:
        await worker.close()
    (key,) = s3_server.keys(bucket)
    assert key.startswith(f"synapse/logs/default/{run_id}/")
    assert key.endswith("-paused.jsonl")
    body = s3_server.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    assert [json.loads(line)["type"] for line in body.splitlines()] == ["run", "step"]
