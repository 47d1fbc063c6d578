"""`dlq` and `runs cancel` on the command line, against real stores."""

from __future__ import annotations

import asyncio
import json

from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.support.runs import enqueue, steps_reach, store, until, view
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

Q = keys.queue("default")
FAILS_THEN_WORKS = chain(
    "fixable",
    [
        {"id": "first", "type": "print", "print_content": "first", "output_key": "first"},
        {"id": "second", "type": "transform", "transform_code": "result = 1 // state['divisor']", "output_key": "out"},
    ],
)


async def test_a_letter_is_listed_shown_retried_and_goes_on_behind_its_checkpoint(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    start_worker: StartWorker,
) -> None:
    await store(database, FAILS_THEN_WORKS)
    start_worker().wait_ready()
    run_id = command(redis_server.url, postgres_url, "enqueue", "fixable", "-s", "divisor=0").stdout.strip()
    failed = await until(database, run_id, "failed")
    assert "ZeroDivisionError" in str(failed.error)
    assert [entry["status"] for entry in failed.history] == ["completed", "failed"]

    (letter,) = json.loads(command(redis_server.url, postgres_url, "dlq", "list", "-o", "json").stdout)
    assert (letter["run_id"], letter["function"], letter["resolved"]) == (run_id, "run_orchestration_job", False)
    assert "ZeroDivisionError" in command(redis_server.url, postgres_url, "dlq", "list").stdout
    shown = json.loads(command(redis_server.url, postgres_url, "dlq", "show", letter["id"], "-o", "json").stdout)
    assert shown["payload"]["initial_state"] == {"divisor": 0}

    # What was wrong is put right in the run's state, as an operator would after looking at it.
    await database.execute(
        "UPDATE orchestration_runs SET shared_state = jsonb_set(shared_state, '{divisor}', '1') WHERE run_id = $1",
        run_id,
    )
    await redis_client.set(keys.cancel(run_id), "1")  # a wish that came too late for the run that failed
    assert "queued as job retry_" in command(redis_server.url, postgres_url, "dlq", "retry", letter["id"]).stdout
    done = await until(database, run_id, "completed")
    assert done.state["out"] == 1
    assert [(entry["step_id"], entry["status"]) for entry in done.history] == [
        ("first", "completed"),
        ("second", "completed"),
    ]
    rows = await database.fetch("SELECT step_id, visit FROM run_steps WHERE run_id = $1 ORDER BY ordinal", run_id)
    assert [tuple(row) for row in rows] == [("first", 1), ("second", 1)]
    again = command(redis_server.url, postgres_url, "dlq", "retry", letter["id"])
    assert (again.returncode, again.stderr) == (
        1,
        f"synapse-worker: letter {letter['id']} was retried or discarded already\n",
    )
    assert command(redis_server.url, postgres_url, "dlq", "list").stdout == "the dead-letter queue is empty\n"


async def test_a_discarded_letter_is_gone_from_the_list_and_stays_a_row(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "no-such-orchestration")
    await until(database, run_id, "failed")
    (letter,) = json.loads(command(redis_server.url, postgres_url, "dlq", "list", "-o", "json").stdout)
    assert command(redis_server.url, postgres_url, "dlq", "discard", letter["id"]).returncode == 0
    assert json.loads(command(redis_server.url, postgres_url, "dlq", "list", "-o", "json").stdout) == []
    assert len(await database.fetch("SELECT 1 FROM dead_letter_queue WHERE resolved")) == 1


async def test_a_letter_that_does_not_exist_is_one_sentence(
    database: Database, redis_server: RedisServer, postgres_url: str
) -> None:
    for name in ("nonsense", "00000000-0000-0000-0000-000000000000"):
        answer = await asyncio.to_thread(command, redis_server.url, postgres_url, "dlq", "show", name)
        assert answer.returncode == 1
        assert answer.stderr == (
            f"synapse-worker: there is no dead letter '{name}'; `synapse-worker dlq list` shows them\n"
        )


async def test_cancelling_a_waiting_run_is_done_at_once_and_its_job_never_runs(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    run_id = await enqueue(database, redis_client, "three")
    assert command(redis_server.url, postgres_url, "runs", "cancel", run_id).stdout == f"{run_id}: cancelled\n"
    assert (await view(database, run_id)).status == "cancelled"
    other = await enqueue(database, redis_client, "three")
    start_worker()
    await until(database, other, "completed")
    found = await view(database, run_id)
    assert (found.status, found.steps_done) == ("cancelled", 0)
    assert await redis_client.zcard(Q) == 0
    refused = command(redis_server.url, postgres_url, "runs", "cancel", run_id)
    assert "is cancelled; only queued, running and paused runs" in refused.stderr
    assert "there is no run 'nope'" in command(redis_server.url, postgres_url, "runs", "cancel", "nope").stderr


async def test_cancelling_a_running_run_stops_it_within_a_second_or_so(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(20, 0.3)))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    assert command(redis_server.url, postgres_url, "runs", "cancel", run_id).stdout == f"{run_id}: being cancelled\n"
    assert (await until(database, run_id, "cancelled", seconds=5)).steps_done < 20
