"""Resuming failed and cancelled runs, by our command line and by an upstream producer, against real stores."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing.client import RESUME_FUNCTION, RUN_FUNCTION
from synapse_worker.store import claims
from synapse_worker.store.claims import ClaimRequest
from synapse_worker.store.database import Database
from tests.support.runs import enqueue, enqueue_as_upstream, outcome, store, until, view
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command

DIVIDES = {"id": "divide", "type": "transform", "transform_code": "result = 1 // state['divisor']", "output_key": "out"}
FIRST = {"id": "first", "type": "print", "print_content": "first {state.user_input}", "output_key": "first"}
FAILS_SECOND = chain("second", [FIRST, DIVIDES])
FAILS_FIRST = chain("first", [DIVIDES])


class CommandLine:
    """`synapse-worker` on the test's stores, off the loop."""

    def __init__(self, redis_url: str, postgres_url: str) -> None:
        self._urls = (redis_url, postgres_url)

    async def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(command, *self._urls, *words)


@pytest.fixture
def synapse(redis_server: RedisServer, postgres_url: str) -> CommandLine:
    return CommandLine(redis_server.url, postgres_url)


async def repair(database: Database, run_id: str) -> None:
    """Put right in the run's state what made its step fail."""
    await database.execute(
        "UPDATE orchestration_runs SET shared_state = jsonb_set(shared_state, '{divisor}', '1') WHERE run_id = $1",
        run_id,
    )


async def done_steps(database: Database, run_id: str) -> list[tuple[object, ...]]:
    rows = await database.fetch("SELECT step_id, visit FROM run_steps WHERE run_id = $1 ORDER BY ordinal", run_id)
    return [tuple(row) for row in rows]


async def test_a_failed_run_goes_on_at_the_step_that_failed(
    database: Database, redis_client: Redis, synapse: CommandLine, start_worker: StartWorker
) -> None:
    await store(database, FAILS_SECOND)
    start_worker().wait_ready()
    run_id = (await synapse("enqueue", "second", "-m", "x", "-s", "divisor=0")).stdout.strip()
    assert [entry["status"] for entry in (await until(database, run_id, "failed")).history] == ["completed", "failed"]
    await repair(database, run_id)
    answer = await synapse("runs", "resume", run_id, "-o", "json")
    told = json.loads(answer.stdout)
    assert {**told, "job_id": ""} == {"run_id": run_id, "was": "failed", "now": "queued", "job_id": ""}
    assert told["job_id"].startswith("resume_")
    done = await until(database, run_id, "completed")
    assert (done.state["first"], done.state["out"], done.error) == ("first x", 1, None)
    assert [(entry["step_id"], entry["status"]) for entry in done.history] == [
        ("first", "completed"),
        ("divide", "completed"),
    ]
    assert await done_steps(database, run_id) == [("first", 1), ("divide", 1)]
    assert await outcome(database, told["job_id"]) == "completed"
    # What has been resumed is dealt with in the dead-letter queue too.
    assert (await synapse("dlq", "list")).stdout == "the dead-letter queue is empty\n"


async def test_what_fails_again_is_a_letter_again(
    database: Database, redis_client: Redis, synapse: CommandLine, start_worker: StartWorker
) -> None:
    await store(database, FAILS_SECOND)
    start_worker().wait_ready()
    run_id = (await synapse("enqueue", "second", "-s", "divisor=0")).stdout.strip()
    await until(database, run_id, "failed")
    job_id = json.loads((await synapse("runs", "resume", run_id, "-o", "json")).stdout)["job_id"]
    assert await outcome(database, job_id) == "failed"
    (letter,) = json.loads((await synapse("dlq", "list", "-o", "json")).stdout)
    assert (letter["function"], letter["payload"]) == (RESUME_FUNCTION, {"run_id": run_id})
    assert [entry["status"] for entry in (await view(database, run_id)).history] == ["completed", "failed"]
    # And that letter can be retried like any other.
    await repair(database, run_id)
    (retried,) = json.loads((await synapse("dlq", "retry", letter["id"], "-o", "json")).stdout)
    assert (retried["id"], retried["run_id"]) == (letter["id"], run_id)
    assert await outcome(database, retried["job_id"]) == "completed"


async def test_a_run_that_failed_at_its_first_step_keeps_its_state(
    database: Database, redis_client: Redis, synapse: CommandLine, start_worker: StartWorker
) -> None:
    await store(database, FAILS_FIRST)
    start_worker().wait_ready()
    run_id = (await synapse("enqueue", "first", "-m", "kept", "-s", "divisor=0")).stdout.strip()
    await until(database, run_id, "failed")
    await repair(database, run_id)
    assert f"{run_id}: was failed, queued as job resume_" in (await synapse("runs", "resume", run_id)).stdout
    done = await until(database, run_id, "completed")
    assert (done.state["out"], done.state["user_input"]) == (1, "kept")


async def test_a_run_cancelled_before_its_start_begins_with_its_input(
    database: Database, redis_client: Redis, synapse: CommandLine, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    run_id = await enqueue(database, redis_client, "three", "Ada")
    cancelled = await synapse("runs", "cancel", run_id, "-o", "json")
    assert json.loads(cancelled.stdout) == {"run_id": run_id, "was": "queued", "now": "cancelled"}
    await synapse("runs", "resume", run_id)
    start_worker().wait_ready()
    assert (await until(database, run_id, "completed")).state["a"] == "hello Ada"


async def test_a_run_that_was_missing_its_definition_runs_once_it_is_there(
    database: Database, redis_client: Redis, synapse: CommandLine, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "three", "Ada")
    await until(database, run_id, "failed")
    await store(database, PRINT_IF_PRINT)
    await synapse("runs", "resume", run_id)
    assert (await until(database, run_id, "completed")).state["a"] == "hello Ada"


async def test_other_runs_are_refused_with_a_sentence(
    database: Database, redis_client: Redis, synapse: CommandLine
) -> None:
    run_id = await enqueue(database, redis_client, "three")
    for status in ("queued", "running", "completed"):
        await database.execute("UPDATE orchestration_runs SET status = $1", status)
        answer = await synapse("runs", "resume", run_id)
        assert (answer.returncode, answer.stderr) == (
            1,
            f"synapse-worker: run '{run_id}' is {status}; only failed and cancelled runs can be resumed\n",
        )
    answer = await synapse("runs", "resume", "nope")
    assert (answer.returncode, answer.stderr) == (
        1,
        "synapse-worker: there is no run 'nope'; `synapse-worker runs list` shows the newest\n",
    )
    assert len(await database.fetch("SELECT 1 FROM job_ledger")) == 1


async def test_upstreams_resume_jobs_take_what_they_may_and_nothing_else(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT, FAILS_SECOND)
    start_worker().wait_ready()
    completed = await enqueue(database, redis_client, "three")
    await until(database, completed, "completed")
    failed = "run_0123456789ab_7"
    await enqueue_as_upstream(
        redis_client, failed, RUN_FUNCTION, run_id=failed, orch_id="second", initial_state={"divisor": 0}
    )
    assert await outcome(database, failed) == "failed"
    await repair(database, failed)

    await enqueue_as_upstream(redis_client, "resume_completed_1", RESUME_FUNCTION, run_id=completed)
    await enqueue_as_upstream(redis_client, "resume_gone_1", RESUME_FUNCTION, run_id="run_gone")
    await enqueue_as_upstream(redis_client, "resume_failed_1", RESUME_FUNCTION, run_id=failed)
    assert await outcome(database, "resume_completed_1") == "superseded"
    assert await outcome(database, "resume_gone_1") == "failed"
    assert await outcome(database, "resume_failed_1") == "completed"
    assert (await view(database, completed)).status == "completed"
    assert await done_steps(database, failed) == [("first", 1), ("divide", 1)]
    rows = await database.fetch("SELECT error_message, job_function FROM dead_letter_queue WHERE run_id = 'run_gone'")
    assert [tuple(row) for row in rows] == [("there is no run 'run_gone' to go on with", RESUME_FUNCTION)]
    assert await database.fetch("SELECT 1 FROM orchestration_runs WHERE run_id = 'run_gone'") == []


async def test_a_run_that_failed_at_a_stock_worker_goes_on_at_its_failed_step(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, FAILS_SECOND)
    history = [{"step_id": "first", "status": "completed"}, {"step_id": "divide", "status": "failed"}]
    for run_id, entries in (("run_theirs_1", history), ("run_theirs_2", history[:1])):
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
            " VALUES ($1, 'second', 'default', 'failed', '{\"divisor\": 1, \"first\": \"theirs\"}', $2::jsonb)",
            run_id,
            json.dumps(entries),
        )
        await enqueue_as_upstream(redis_client, f"resume_{run_id}_1", RESUME_FUNCTION, run_id=run_id)
    start_worker().wait_ready()
    done = await until(database, "run_theirs_1", "completed")
    assert (done.state["first"], done.state["out"]) == ("theirs", 1)
    assert [entry["status"] for entry in done.history] == ["completed", "completed"]
    assert await done_steps(database, "run_theirs_1") == [("divide", 1)]
    # Where nothing says where it stands, it is not begun anew: its first step would be done twice.
    assert await outcome(database, "resume_run_theirs_2_1") == "failed"
    assert "cannot be continued" in str((await view(database, "run_theirs_2")).error)


async def test_of_a_long_run_that_is_resumed_only_what_is_needed_is_read(database: Database) -> None:
    request = ClaimRequest("run_1", "run_1", "q", b"x", 1, "o", None, "default", None, None)
    await claims.take(database, "w", [request])
    await database.execute(
        "UPDATE orchestration_runs SET cursor = '{}', folded_steps = 90, shared_state = '{\"k\": 90, \"old\": 1}',"
        ' step_history = \'[{"step_id": "folded"}]\''
    )
    await database.execute(
        "INSERT INTO run_steps (run_id, step_id, visit, ordinal, claim, delta, entry, events)"
        " SELECT 'run_1', 's', n, n, 1, jsonb_build_object('k', n),"
        "        CASE WHEN n = 5 THEN '{\"loop_step_id\": \"l\"}'::jsonb ELSE '{}' END, jsonb_build_array('{}'::jsonb)"
        "   FROM generate_series(1, 100) AS n"
    )
    (taken,) = await claims.take(database, "w", [request])
    assert taken.run is not None
    run = (await claims.with_steps(database, [taken.run]))["run_1"]
    assert (run.state, run.steps_done, len(run.history)) == ({"k": 100, "old": 1}, 100, 11)
    newest = list(range(101 - claims.NEWEST_STEPS, 101))
    assert [step.ordinal for step in run.steps] == [5, *newest]
    assert [len(step.events) for step in run.steps] == [0, *[1] * len(newest)]
