"""Human steps against real stores: a run waits without a worker, and whichever worker gets the answer goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import time

from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import ANSWER_FUNCTION, RESUME_FUNCTION, answer_run, cancel_run, retry_letter
from synapse_worker.store import dead_letters
from synapse_worker.store.database import Database
from tests.support.runs import (
    enqueue,
    enqueue_as_upstream,
    events_of,
    eventually,
    outcome,
    said_done,
    store,
    until,
    view,
)
from tests.support.servers import RedisServer
from tests.support.workers import StartWorker, chain, command

Q = keys.queue("default")
FIRST = {"id": "first", "type": "print", "print_content": "first", "output_key": "first"}
ASK = {"id": "ask", "name": "Ask", "type": "human", "human_prompt": "Ship {state.first}?", "output_key": "approval"}
TELL = {"id": "tell", "type": "print", "print_content": "told {state.approval}", "output_key": "told"}
ASKS = chain("asks", [FIRST, ASK, TELL])


def keeper(database: Database, client: Redis) -> Housekeeper:
    return Housekeeper(database, client, StoreGate(database, client))


async def paused(database: Database, client: Redis, start_worker: StartWorker, document: dict[str, object]) -> str:
    """Have a worker run a definition up to its question."""
    await store(database, document)
    start_worker().wait_ready()
    run_id = await enqueue(database, client, str(document["id"]))
    await until(database, run_id, "paused")
    await eventually("the stream says so", lambda: ends_with(client, run_id, "paused"))
    return run_id


async def ends_with(client: Redis, run_id: str, kind: str) -> bool:
    events = await events_of(client, run_id)
    return bool(events) and events[-1]["type"] == kind


async def answer(database: Database, client: Redis, run_id: str, told: object) -> str:
    was, job_id = await answer_run(database, client, run_id, told, now_ms=int(time.time() * 1000))
    assert was == "paused"
    return job_id


async def test_a_run_waits_without_a_worker_and_goes_on_at_another_one(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, ASKS)
    first = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "asks")
    await until(database, run_id, "paused")
    await eventually("the lease is gone", lambda: no_lease(redis_client))
    first.signal(signal.SIGTERM)
    assert first.wait(20) == 0
    row = await database.fetchrow(
        "SELECT waiting_for_human, human_prompt, human_fields::text, current_step_id FROM orchestration_runs"
    )
    assert row is not None
    assert tuple(row) == (True, "Ship first?", "[]", "ask")
    ledger = await database.fetchrow("SELECT outcome, owner FROM job_ledger WHERE job_id = $1", run_id)
    assert ledger is not None
    assert tuple(ledger) == ("paused", None)
    events = await events_of(redis_client, run_id)
    assert [event["type"] for event in events[-3:]] == ["step_start", "human_input_required", "paused"]
    assert events[-2]["prompt"] == "Ship first?"
    assert await database.fetch("SELECT 1 FROM webhook_outbox") == []

    start_worker().wait_ready()
    job_id = await answer(database, redis_client, run_id, "yes")
    done = await until(database, run_id, "completed")
    assert (done.state["approval"], done.state["human_response"], done.state["told"]) == ("yes", "yes", "told yes")
    assert [entry["step_id"] for entry in done.history] == ["first", "ask", "tell"]
    assert await outcome(database, job_id) == "completed"
    events = await said_done(redis_client, run_id)
    assert [event["type"] for event in events if event.get("orch_step_id") == "ask"] == [
        *("step_start", "human_input_required", "step_complete"),
    ]
    row = await database.fetchrow("SELECT waiting_for_human, human_prompt, human_deadline FROM orchestration_runs")
    assert row is not None
    assert tuple(row) == (False, None, None)


async def no_lease(client: Redis) -> bool:
    return not await client.zcard(keys.leases(Q))


async def test_upstreams_answer_is_taken_and_its_key_is_not(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    twice = chain("twice", [ASK, {**ASK, "id": "again", "output_key": "second"}, TELL])
    await store(database, twice)
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "twice")
    await until(database, run_id, "paused")
    # As a main instance does: the key for an hour, and the job.
    await redis_client.set(keys.human_input(run_id), json.dumps({"ok": True}), ex=3600)
    told = {"ok": True, "note": "go"}
    await enqueue_as_upstream(redis_client, "resume_x_1", ANSWER_FUNCTION, run_id=run_id, human_response=told)
    assert await outcome(database, "resume_x_1") == "paused"
    waiting = await view(database, run_id)
    assert waiting.status == "paused", "the answer to the first question was taken for the second one too"
    assert waiting.state["approval"] == told
    assert not await redis_client.exists(keys.human_input(run_id))
    await enqueue_as_upstream(redis_client, "resume_x_2", ANSWER_FUNCTION, run_id=run_id, human_response="fine")
    done = await until(database, run_id, "completed")
    assert (done.state["approval"], done.state["second"], done.state["human_response"]) == (told, "fine", "fine")
    # A second answer to a question that is answered changes nothing.
    await enqueue_as_upstream(redis_client, "resume_x_3", ANSWER_FUNCTION, run_id=run_id, human_response="late")
    assert await outcome(database, "resume_x_3") == "superseded"


async def test_an_answer_without_anything_in_it_is_refused_and_the_run_waits_on(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    run_id = await paused(database, redis_client, start_worker, ASKS)
    await enqueue_as_upstream(redis_client, "resume_x_1", ANSWER_FUNCTION, run_id=run_id)
    assert await outcome(database, "resume_x_1") == "failed"
    letters = await database.fetch("SELECT error_message FROM dead_letter_queue")
    assert "human_response is missing" in letters[0]["error_message"]
    await enqueue_as_upstream(redis_client, "resume_x_2", RESUME_FUNCTION, run_id=run_id)
    assert await outcome(database, "resume_x_2") == "superseded"
    assert (await view(database, run_id)).status == "paused"


async def test_a_worker_that_is_killed_with_an_answer_does_not_lose_it(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    slow = {"id": "slow", "type": "transform", "transform_code": "while True: pass", "timeout_seconds": 9}
    document = chain("asks", [ASK, {**slow, "output_key": "x"}])
    await store(database, document)
    first = start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    run_id = await enqueue(database, redis_client, "asks")
    await until(database, run_id, "paused")
    await answer(database, redis_client, run_id, "kept")
    await until(database, run_id, "running")
    await eventually("the answer is a checkpoint", lambda: one_step(database, run_id))
    first.kill()
    start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    done = await until(database, run_id, "failed", seconds=40)  # the endless step's own timeout
    assert done.state["approval"] == "kept"
    assert [entry["step_id"] for entry in done.history] == ["ask", "slow"]


async def one_step(database: Database, run_id: str) -> bool:
    return len(await database.fetch("SELECT 1 FROM run_steps WHERE run_id = $1", run_id)) == 1


async def test_a_run_that_fails_behind_an_answer_is_retried_without_it(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    broken = {"id": "broken", "type": "transform", "transform_code": "result = state['nope']"}
    run_id = await paused(database, redis_client, start_worker, chain("asks", [ASK, broken]))
    await answer(database, redis_client, run_id, "secret plans")
    await until(database, run_id, "failed")
    (letter,) = await dead_letters.unresolved(database, limit=9)
    # A job that brings an answer finds no paused run any more.
    assert (letter.function, letter.payload) == (RESUME_FUNCTION, {"run_id": run_id})
    await database.execute(
        "UPDATE orchestration_runs SET definition_snapshot = replace(definition_snapshot::text,"
        " 'nope', 'approval')::jsonb"
    )
    assert await retry_letter(database, redis_client, letter, now_ms=int(time.time() * 1000)) is not None
    done = await until(database, run_id, "completed")
    assert [entry["step_id"] for entry in done.history] == ["ask", "broken"]


async def test_a_human_in_a_branch_waits_until_the_other_branches_are_done(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    fork = {"id": "fork", "type": "parallel", "parallel_branches": [["ask"], ["first", "more"]], "next_step_id": "tell"}
    more = {"id": "more", "type": "print", "print_content": "more", "output_key": "more"}
    document: dict[str, object] = {"id": "f", "name": "f", "steps": [fork, ASK, FIRST, more, TELL]}
    run_id = await paused(database, redis_client, start_worker, document)
    assert (await view(database, run_id)).state["more"] == "more"
    await answer(database, redis_client, run_id, "ok")
    done = await until(database, run_id, "completed")
    assert done.state["told"] == "told ok"
    assert [entry["step_id"] for entry in done.history] == ["first", "more", "ask", "fork", "tell"]


async def test_a_human_in_a_loop_is_asked_in_each_iteration(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    loop = {"id": "loop", "name": "Loop", "type": "loop", "loop_count": 2, "loop_step_ids": ["ask"]}
    run_id = await paused(database, redis_client, start_worker, {"id": "l", "name": "l", "steps": [loop, ASK]})
    for number in (1, 2):
        await until(database, run_id, "paused")
        await answer(database, redis_client, run_id, f"answer {number}")
        await until(database, run_id, "completed", "paused")
    done = await until(database, run_id, "completed")
    expected = [{"iteration": number, "agent": "Ask", "result": f"answer {number}"} for number in (1, 2)]
    assert done.state["approval"] == expected


async def test_an_answer_that_comes_too_late_finds_a_failed_run(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    document = chain("asks", [{**ASK, "human_timeout_seconds": 0.5}, TELL])
    run_id = await paused(database, redis_client, start_worker, document)
    await eventually("its time is over", lambda: timed_out(database, redis_client))
    done = await view(database, run_id)
    assert (done.status, done.error) == ("failed", "nobody answered step 'ask' within its human_timeout_seconds")
    assert (await said_done(redis_client, run_id))[-2]["type"] == "orchestration_error"
    assert len(await database.fetch("SELECT 1 FROM dead_letter_queue WHERE run_id = $1", run_id)) == 1
    assert await answer_run(database, redis_client, run_id, "late", now_ms=1) == ("failed", "")
    await enqueue_as_upstream(redis_client, "resume_x_1", ANSWER_FUNCTION, run_id=run_id, human_response="late")
    assert await outcome(database, "resume_x_1") == "superseded"


async def timed_out(database: Database, client: Redis) -> int:
    return await keeper(database, client).time_out()


async def test_a_waiting_run_is_cancelled_by_its_key(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    run_id = await paused(database, redis_client, start_worker, ASKS)
    assert await keeper(database, redis_client).cancel_paused() == 0
    await redis_client.set(keys.cancel(run_id), "1", ex=3600)
    await eventually("a worker's housekeeping cancels it", lambda: is_cancelled(database, redis_client, run_id))
    assert not await redis_client.exists(keys.cancel(run_id))
    assert [event["type"] for event in await said_done(redis_client, run_id)][-3:] == [
        *("paused", "orchestration_error", "done"),
    ]


async def is_cancelled(database: Database, client: Redis, run_id: str) -> bool:
    await keeper(database, client).cancel_paused()
    return (await view(database, run_id)).status == "cancelled"


async def test_the_command_line_shows_answers_and_cancels(
    database: Database, redis_client: Redis, start_worker: StartWorker, redis_server: RedisServer, postgres_url: str
) -> None:
    fields = [{"name": "ok", "type": "boolean", "label": "All good?"}]
    document = chain("asks", [FIRST, {**ASK, "human_fields": fields}, TELL])
    run_id = await paused(database, redis_client, start_worker, document)

    async def synapse(*words: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(command, redis_server.url, postgres_url, *words)
        return done.returncode, done.stdout, done.stderr

    _, shown, _ = await synapse("runs", "list")
    assert "paused" in shown
    assert "waits: Ship first?" in shown
    _, shown, _ = await synapse("runs", "show", run_id)
    assert "waits for a human at step ask: Ship first?" in shown
    assert "--field ok=...  All good?" in shown
    code, _, said = await synapse("runs", "resume", run_id)
    assert (code, "waits for a human; give --answer TEXT" in said) == (1, True)
    code, _, said = await synapse("runs", "resume", run_id, "--answer", "x", "--field", "a=1")
    assert code == 2
    code, _, said = await synapse("runs", "resume", run_id, "--field", "ok=true", "--field", "note=two words")
    assert code == 0, said
    done = await until(database, run_id, "completed")
    assert done.state["approval"] == {"ok": True, "note": "two words"}
    code, _, said = await synapse("runs", "resume", run_id, "--answer", "x")
    assert (code, "is completed; only paused runs wait for an answer" in said) == (1, True)

    second = await enqueue(database, redis_client, "asks")
    await until(database, second, "paused")
    code, shown, _ = await synapse("runs", "cancel", second)
    assert (code, shown) == (0, f"{second}: cancelled\n")
    await said_done(redis_client, second)
    assert await cancel_run(database, redis_client, second) == "cancelled"


async def test_what_a_killed_worker_could_not_say_of_a_pause_is_said_by_the_next(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    run_id = await paused(database, redis_client, start_worker, ASKS)
    # As after a crash between the commit and all that comes behind it: no events, the job in the queue again.
    await redis_client.delete(keys.run_events(run_id))
    row = await database.fetchrow("SELECT envelope FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    await redis_client.set(keys.job(run_id), row["envelope"])
    await redis_client.zadd(keys.again(Q), {run_id: 1})
    await eventually("it is said again", lambda: ends_with(redis_client, run_id, "paused"))
    events = await events_of(redis_client, run_id)
    assert [event["type"] for event in events] == ["human_input_required", "paused"]
    assert (await view(database, run_id)).status == "paused"
