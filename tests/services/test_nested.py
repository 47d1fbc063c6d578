"""Orchestrations inside a step, by real workers: in the job around them, recovered, paused and ended with it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from synapse_worker.nested_runs import nested_run_id
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, answer_run, cancel_run, enqueue_run, new_run_id, resume_run
from synapse_worker.store import claims, definitions, nested, runs, turns
from synapse_worker.store.claims import ClaimRequest, OwnedRun, Verdict
from synapse_worker.store.database import Database
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter
from synapse_worker.store.turns import TurnRow
from tests.support import nesting_worker
from tests.support.runs import events_of, eventually, said_done, steps_reach, store, until, view
from tests.support.servers import RedisServer
from tests.support.workers import StartWorker, WorkerProcess, chain, slow_steps

AROUND = chain(
    "around",
    [
        {"id": "before", "type": "print", "print_content": "before"},
        {"id": "agent", "name": "Agent", "type": "agent", "agent_id": "inner", "output_key": "said"},
        {"id": "after", "type": "print", "print_content": "after {state.said}", "output_key": "after"},
    ],
)
HELLO = chain(
    "inner",
    [
        {"id": "one", "type": "print", "print_content": "one", "output_key": "one"},
        {"id": "two", "type": "print", "print_content": "hello {state.user_input}", "output_key": "two"},
    ],
)


class NestingWorker(WorkerProcess):
    """A worker process whose agents run orchestrations."""

    COMMAND = (sys.executable, "-m", nesting_worker.__name__)


@pytest.fixture
def start_nesting(redis_server: RedisServer, postgres_url: str) -> Iterator[StartWorker]:
    started: list[WorkerProcess] = []

    def start(**extra: str) -> WorkerProcess:
        worker = NestingWorker(redis_server.url, postgres_url, **{"K8S_MODE": "1", **extra})
        started.append(worker)
        return worker.start()

    yield start
    for worker in started:
        worker.close()


async def enqueue(database: Database, client: Redis, inner: dict[str, object], *, children: int = 1) -> str:
    await store(database, AROUND)
    agents = [definitions.Document("agents", name, name, "", {"id": name}) for name in ("inner", "x")]
    await definitions.upsert(database, agents, tenant_id="default")
    now_ms = int(time.time() * 1000)
    new = NewRun("around", "hi", "default", initial_state={"inner": inner, "children": children})
    return await enqueue_run(database, client, new, run_id=new_run_id(now_ms), now_ms=now_ms)


async def test_nested_runs_have_rows_steps_and_streams_of_their_own(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    start_nesting().wait_ready()
    run_id = await enqueue(database, redis_client, HELLO, children=2)
    done = await until(database, run_id, "completed", "failed")
    assert done.status == "completed", done.error
    assert done.state["said"] == ["hello child 1", "hello child 2"]
    assert [entry["step_id"] for entry in done.history] == ["before", "agent", "after"]
    for number in (1, 2):
        inner = await view(database, f"{run_id}.agent.1.{number}")
        assert (inner.status, inner.steps_done, inner.tenant_id) == ("completed", 2, "default")
        events = await said_done(redis_client, inner.run_id)
        assert [event["type"] for event in events][:2] == ["worker_picked_up", "orchestration_start"]
    assert len(await database.fetch("SELECT 1 FROM job_ledger")) == 1
    assert await redis_client.zcard(keys.queue("default")) == 0


async def test_a_killed_workers_nested_run_goes_on_inside(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    first = start_nesting(WORKER_LEASE_SECONDS="3").wait_ready()
    run_id = await enqueue(database, redis_client, chain("inner", slow_steps(8, 0.2)), children=2)
    second_child = f"{run_id}.agent.1.2"
    await steps_reach(database, second_child, 3)
    first.kill()
    before = await database.fetch("SELECT run_id, step_id, visit, claim FROM run_steps")
    start_nesting(WORKER_LEASE_SECONDS="3").wait_ready()
    done = await until(database, run_id, "completed", "failed")
    assert done.status == "completed", done.error
    after = await database.fetch("SELECT run_id, step_id, visit, claim FROM run_steps")
    assert {tuple(row) for row in before} <= {tuple(row) for row in after}
    assert len(after) == 8 + 8 + 3
    assert {row["status"] for row in await database.fetch("SELECT status FROM orchestration_runs")} == {"completed"}


async def test_a_human_inside_pauses_the_run_around_and_its_answer_goes_inside(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    ask = {"id": "ask", "name": "Ask", "type": "human", "human_prompt": "well?", "output_key": "answer"}
    more = {"id": "more", "type": "print", "print_content": "{state.answer}", "output_key": "said"}
    start_nesting().wait_ready()
    run_id = await enqueue(database, redis_client, chain("inner", [ask, {**ask, "id": "again"}, more]))
    child = f"{run_id}.agent.1.1"
    for told, asked in (("first", "ask"), ("second", "again")):
        await until(database, run_id, "paused")
        row = await database.fetchrow(
            "SELECT nested_run_id, nested_orch_id, human_prompt, current_step_id FROM orchestration_runs"
            " WHERE run_id = $1",
            run_id,
        )
        assert row is not None
        assert tuple(row) == (child, "inner", "well?", asked)
        assert (await view(database, child)).status == "paused"
        await eventually("the stream says so", lambda: ends_paused(redis_client, run_id))
        assert (await events_of(redis_client, run_id))[-2]["nested_run_id"] == child
        was, _ = await answer_run(database, redis_client, run_id, told, now_ms=int(time.time() * 1000))
        assert was == "paused"
        await until(database, run_id, "paused" if asked == "ask" else "completed")
    done = await until(database, run_id, "completed")
    assert done.state["said"] == ["second"]
    assert (await view(database, child)).status == "completed"
    assert [entry["step_id"] for entry in (await view(database, child)).history] == ["ask", "again", "more"]


async def ends_paused(client: Redis, run_id: str) -> bool:
    events = await events_of(client, run_id)
    return bool(events) and events[-1]["type"] == "paused"


async def test_a_failed_nested_run_fails_the_step_around_with_its_sentence(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    start_nesting().wait_ready()
    broken = chain("inner", [{"id": "t", "name": "T", "type": "transform", "transform_code": "result = state['nope']"}])
    run_id = await enqueue(database, redis_client, broken)
    done = await until(database, run_id, "failed", "completed")
    assert "step 'Agent' (agent): orchestration 'inner' (inner) failed: step 'T' (t): KeyError" in str(done.error)
    inner = await view(database, f"{run_id}.agent.1.1")
    assert inner.status == "failed"
    assert "KeyError" in str(inner.error)


async def test_a_cancelled_run_leaves_nothing_open_inside(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    start_nesting().wait_ready()
    run_id = await enqueue(database, redis_client, chain("inner", slow_steps(30, 0.2)))
    await steps_reach(database, f"{run_id}.agent.1.1", 1)
    await redis_client.set(keys.cancel(run_id), "1", ex=3600)
    await until(database, run_id, "cancelled", seconds=10)
    assert (await view(database, f"{run_id}.agent.1.1")).status == "cancelled"


async def test_a_run_that_is_cancelled_before_it_goes_on_leaves_nothing_open_inside(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    ask = {"id": "ask", "name": "Ask", "type": "human", "human_prompt": "well?", "output_key": "answer"}
    first = start_nesting().wait_ready()
    run_id = await enqueue(database, redis_client, chain("inner", [ask]))
    await until(database, run_id, "paused")
    first.kill()
    await answer_run(database, redis_client, run_id, "yes", now_ms=int(time.time() * 1000))
    await redis_client.set(keys.cancel(run_id), "1", ex=3600)
    start_nesting().wait_ready()
    await until(database, run_id, "cancelled", seconds=10)
    assert (await view(database, f"{run_id}.agent.1.1")).status == "cancelled"


async def take(database: Database) -> OwnedRun:
    """Claim one run, as the next worker that has its job."""
    request = ClaimRequest("run_1", "run_1", keys.queue("default"), b"x", 1, "around", None, "default", None, None)
    (answer,) = await claims.take(database, "w", [request])
    assert answer.run is not None
    return answer.run


async def adopt(database: Database, root: OwnedRun) -> OwnedRun:
    adopted = await nested.adopt(database, root, run_id=f"{root.run_id}.agent.1.1", orchestration_id="inner")
    assert adopted is not None
    return adopted.run


async def test_a_nested_run_that_took_too_long_has_its_time_anew_when_it_is_retried(database: Database) -> None:
    root = await take(database)
    inner = await adopt(database, root)
    assert (await runs.start_clock(database, inner, -1.0) or 0) < 0
    assert (await runs.start_clock(database, await adopt(database, root), 60.0) or 0) < 0  # as long as it goes on
    whole = Folded({}, [], 0)
    assert await RunWriter(database).finish(inner, RunStatus.FAILED, folded=whole, active_seconds=0.0, error="late")
    assert (await runs.start_clock(database, await adopt(database, root), 60.0) or 0) > 50


async def test_what_an_earlier_owner_left_inside_ends_with_the_run(database: Database) -> None:
    before = await take(database)
    await adopt(database, before)
    root = await take(database)  # goes on elsewhere, say by an end step in another branch
    await nested.end_with(database, before, RunStatus.CANCELLED)
    assert (await view(database, "run_1.agent.1.1")).status == "running"
    await nested.end_with(database, root, RunStatus.CANCELLED)
    assert (await view(database, "run_1.agent.1.1")).status == "cancelled"


async def logs_due(database: Database, run_id: str) -> list[str]:
    rows = await database.fetch("SELECT status FROM run_logs WHERE run_id = $1 ORDER BY status", run_id)
    return [row["status"] for row in rows]


async def test_what_is_inside_a_waiting_run_ends_with_it_and_gets_its_log(database: Database) -> None:
    child = "run_1.agent.1.1"
    root = await take(database)
    await adopt(database, root)
    await claims.give_back(database, root, active_seconds=0.0)
    assert await runs.cancel_queued(database, "run_1") == "queued"
    assert ((await view(database, child)).status, await logs_due(database, child)) == ("cancelled", ["cancelled"])


async def test_what_is_inside_a_run_whose_job_is_rejected_ends_with_it(database: Database) -> None:
    root = await take(database)
    await adopt(database, root)
    await claims.give_back(database, root, active_seconds=0.0)
    letter = DeadLetter("run_orchestration_job", {}, "payload gone", 1)
    queue = keys.queue("default")
    assert await runs.reject(database, job_id="run_1", run_id="run_1", queue=queue, envelope=None, letter=letter)
    assert (await view(database, "run_1.agent.1.1")).status == "failed"
    assert await logs_due(database, "run_1.agent.1.1") == ["failed"]


async def test_a_nested_run_is_answered_cancelled_and_retried_with_the_run_around_it_only(
    database: Database, redis_client: Redis
) -> None:
    child = "run_1.agent.1.1"
    await adopt(database, await take(database))
    for status in ("running", "paused", "failed"):
        await database.execute("UPDATE orchestration_runs SET status = $2 WHERE run_id = $1", child, status)
        assert await cancel_run(database, redis_client, child) == "nested in run_1"
        assert await answer_run(database, redis_client, child, "yes", now_ms=1) == ("nested in run_1", "")
        assert await resume_run(database, redis_client, child, now_ms=1) == ("nested in run_1", "")
        request = ClaimRequest("job_2", child, keys.queue("default"), b"x", 1, "", None, "default", None, None)
        (answer,) = await claims.take(database, "w", [request._replace(job_id=f"job_{status}", answers=True)])
        assert answer.verdict is Verdict.SUPERSEDED
        (answer,) = await claims.take(database, "w", [request._replace(job_id=f"again_{status}")])
        assert answer.verdict is Verdict.SUPERSEDED
        assert (await view(database, child)).status == status
    assert not await redis_client.exists(keys.cancel(child))


async def test_a_turn_inside_a_nested_run_is_progress_of_its_job(database: Database) -> None:
    inner = await adopt(database, await take(database))
    row = TurnRow(1, {}, 0, Decimal(0))
    assert await turns.record(database, inner, "agent", 1, row, around=["run_1"], definition=None) is not None
    assert not (await take(database)).suspect
    assert (await take(database)).suspect


async def test_orchestrations_that_lead_in_a_circle_end_with_a_sentence(
    database: Database, redis_client: Redis, start_nesting: StartWorker
) -> None:
    schema = {"children": {"default": 1}, "inner": {"default": {"id": "x", "steps": [{"id": "e", "type": "end"}]}}}
    agent = {"id": "agent", "name": "Agent", "type": "agent", "agent_id": "x"}
    document: dict[str, object] = {"id": "leaf", "name": "leaf", "steps": [{"id": "e", "type": "end"}]}
    for level in range(4):
        schema = {"children": {"default": 1}, "inner": {"default": document}}
        document = {"id": f"level{level}", "name": f"level{level}", "state_schema": schema, "steps": [agent]}
    start_nesting().wait_ready()
    run_id = await enqueue(database, redis_client, document)
    done = await until(database, run_id, "failed", "completed")
    assert "nested in each other deeper than 3 levels" in str(done.error)


def test_ids_of_nested_runs_fit_and_differ() -> None:
    assert nested_run_id("run_1", "agent", 2, 3) == "run_1.agent.2.3"
    long = [nested_run_id("run_1" * 20, "a" * 200, visit, 1) for visit in (1, 2)]
    assert all(len(each) <= 255 for each in long)
    assert len(set(long)) == 2
    assert not set("{}") & set(nested_run_id("run_1", "{a}", 1, 1))
