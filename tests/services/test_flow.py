"""Loops and parallel steps by real workers against real stores: what they store and say, and where they go on."""

from __future__ import annotations

import signal
import time
from itertools import pairwise

import pytest
from redis.asyncio import Redis

from synapse_worker.store.database import Database
from tests.support.runs import (
    Event,
    assert_each_step_once,
    claim_of,
    claimed_anew,
    enqueue,
    events_of,
    said_done,
    steps_reach,
    store,
    until,
)
from tests.support.workers import StartWorker, chain, slow_steps

FOREVER = {"type": "transform", "transform_code": "while True: pass"}
COUNT = {"type": "transform", "transform_code": "result = (state.get('n') or 0) + 1", "output_key": "n"}
LATER = "result = (state['n'] if isinstance(state.get('n'), int) else 0) + 1"


def a_loop(identity: str, *body: dict[str, object], count: int, **fields: object) -> list[dict[str, object]]:
    loop = {"id": identity, "name": identity.title(), "type": "loop", "loop_count": count, **fields}
    return [{**loop, "loop_step_ids": [step["id"] for step in body]}, *body]


def forked(*branches: list[dict[str, object]], **fields: object) -> dict[str, object]:
    """Return a definition of a parallel step over chains, and a print behind it."""
    fork = {"id": "fork", "name": "Fork", "type": "parallel", "next_step_id": "behind"}
    lists = [[step["id"] for step in branch] for branch in branches]
    steps = [step for branch in branches for step in branch]
    behind = {"id": "behind", "type": "print", "print_content": "behind", "output_key": "behind"}
    return {
        "id": "forked",
        "name": "forked",
        "max_total_turns": 10_000,
        "steps": [{**fork, "parallel_branches": lists}, *steps, behind],
        **fields,
    }


def types(events: list[Event], step_id: str) -> list[object]:
    return [event["type"] for event in events if event.get("orch_step_id") == step_id]


async def test_a_loop_leaves_lists_and_says_its_iterations(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    body = [
        {"id": "count", "name": "Count", "type": "transform", "transform_code": LATER, "output_key": "n"},
        {"id": "say", "name": "Say", "type": "print", "print_content": "at {state.n}", "output_key": "said"},
        {"id": "mute", "name": "Mute", "type": "print", "print_content": "x"},
    ]
    steps = a_loop("loop", *body, count=3, output_key="all", next_step_id="after")
    after = {"id": "after", "type": "print", "print_content": "{state.all.Say}", "output_key": "after"}
    await store(database, {"id": "looped", "name": "looped", "steps": [*steps, after]})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "looped")
    done = await until(database, run_id, "completed")
    counted = [{"iteration": number, "agent": "Count", "result": number} for number in (1, 2, 3)]
    said = [{"iteration": number, "agent": "Say", "result": f"at {number}"} for number in (1, 2, 3)]
    assert done.state["n"] == counted
    assert done.state["said"] == said
    assert done.state["all"] == {"Count": counted, "Say": said}
    assert done.state["after"] == str(said)
    assert [entry["step_id"] for entry in done.history] == ["count", "say", "mute"] * 3 + ["loop", "after"]
    assert [entry.get("iteration") for entry in done.history] == [1, 1, 1, 2, 2, 2, 3, 3, 3, None, None]
    events = await said_done(redis_client, run_id)
    assert types(events, "loop") == ["step_start", *["loop_iteration"] * 3, "loop_complete", "step_complete"]
    assert len({event["event_id"] for event in events}) == len(events)
    places = [event["iteration"] for event in events if event["type"] == "loop_iteration"]
    assert places == [1, 2, 3]
    order = [event["type"] for event in events if event.get("orch_step_id") in ("loop", "count")]
    assert order[:6] == ["step_start", "loop_iteration", "step_start", "transform_result", "step_complete", order[5]]
    assert order[5] == "loop_iteration"


async def test_a_step_of_a_loop_that_takes_too_long_is_recorded_and_the_loop_goes_on(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    code = "if state['n'] == 1:\n    while True:\n        pass\nresult = state['n']"
    body = [
        {"id": "count", "name": "Count", "type": "transform", "transform_code": LATER, "output_key": "n"},
        {"id": "slow", "name": "Slow", "type": "transform", "transform_code": code, "output_key": "out"},
    ]
    body[1]["timeout_seconds"] = 0.4
    await store(database, {"id": "looped", "name": "looped", "steps": a_loop("loop", *body, count=2)})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "looped")
    done = await until(database, run_id, "completed", "failed")
    assert done.status == "completed", done.error
    assert done.state["out"] == [{"iteration": 2, "agent": "Slow", "result": 2}]
    statuses = [(entry["step_id"], entry["status"]) for entry in done.history]
    assert statuses[1] == ("slow", "failed")
    assert statuses[3] == ("slow", "completed")
    assert "timeout_seconds (0.4)" in str(done.history[1]["error"])
    events = await said_done(redis_client, run_id)
    assert types(events, "slow") == ["step_start", "step_error", "step_start", "transform_result", "step_complete"]


async def test_a_thousand_steps_of_a_loop_cost_a_thousand_times_one(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    body = {"id": "say", "name": "Say", "type": "print", "print_content": "x" * 100, "output_key": "said"}
    for count in (100, 1_000):
        steps = a_loop("loop", body, count=count)
        await store(database, {"id": f"l{count}", "name": "l", "max_total_turns": 5_000, "steps": steps})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "l1000")
    done = await until(database, run_id, "completed")
    assert len(done.state["said"]) == 1_000  # type: ignore[arg-type]
    rows = await database.fetch(
        "SELECT ordinal, ended_at, octet_length(delta::text) AS delta, octet_length(events::text) AS events"
        "  FROM run_steps WHERE run_id = $1 ORDER BY ordinal",
        run_id,
    )
    assert len(rows) == 1_001
    # A step of the last hundred stores as little as one of the first, and takes no longer.
    assert rows[990]["delta"] == rows[10]["delta"]
    assert abs(rows[990]["events"] - rows[10]["events"]) < 40
    times = [row["ended_at"] for row in rows[:1_000]]
    seconds = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert sum(seconds[-300:]) < 3 * sum(seconds[:300]) + 0.5
    row = await database.fetchrow(
        "SELECT octet_length(cursor::text) AS size FROM orchestration_runs WHERE run_id = $1", run_id
    )
    assert row is not None
    assert row["size"] < 400


async def test_branches_run_side_by_side_and_each_step_is_a_checkpoint(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    def branch(name: str) -> list[dict[str, object]]:
        return [
            {"id": f"{name}{number}", "type": "print", "print_content": name, "output_key": f"{name}{number}"}
            for number in range(20)
        ]

    await store(database, forked(branch("a"), branch("b"), branch("c")))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "forked")
    done = await until(database, run_id, "completed")
    assert {done.state[f"{name}{number}"] for name in "abc" for number in range(20)} == {"a", "b", "c"}
    assert [entry["step_id"] for entry in done.history][-2:] == ["fork", "behind"]
    rows = await database.fetch("SELECT step_id, ordinal FROM run_steps WHERE run_id = $1 ORDER BY ordinal", run_id)
    assert [row["ordinal"] for row in rows] == list(range(1, 63))
    # Side by side: before any branch is done, each has begun.
    assert {str(row["step_id"])[0] for row in rows[:10]} == {"a", "b", "c"}
    events = await said_done(redis_client, run_id)
    assert types(events, "fork") == [
        *("step_start", "parallel_start", "branch_start", "branch_start", "branch_start"),
        *("parallel_complete", "step_complete"),
    ]
    assert_each_step_once(events, 62)
    assert len({event["event_id"] for event in events}) == len(events)


async def test_a_killed_workers_branches_go_on_where_each_stood(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    left = [{**step, "id": f"l{step['id']}"} for step in slow_steps(8, 0.2)]
    right = a_loop("loop", {"id": "body", "name": "Body", **slow_steps(1, 0.2)[0], "output_key": "out"}, count=8)
    right[1]["id"] = "body"
    right[0]["loop_step_ids"] = ["body"]
    document = forked(left, right[:1])
    document["steps"] += right[1:]  # type: ignore[operator]
    await store(database, document)
    first = start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    run_id = await enqueue(database, redis_client, "forked")
    await steps_reach(database, run_id, 6)
    first.kill()
    before = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    done = await until(database, run_id, "completed")
    rows = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    assert {tuple(row) for row in before} <= {tuple(row) for row in rows}
    assert len(rows) == len(done.history) == 8 + 8 + 3
    assert [item["iteration"] for item in done.state["out"]] == list(range(1, 9))  # type: ignore[attr-defined]
    assert_each_step_once(await said_done(redis_client, run_id), 19)


async def test_on_a_drain_no_branch_begins_another_step_and_another_worker_goes_on(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    branches = [[{**step, "id": f"{name}{step['id']}"} for step in slow_steps(15, 0.3)] for name in "ab"]
    await store(database, forked(*branches))
    first = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "forked")
    await steps_reach(database, run_id, 3)
    start_worker().wait_ready()
    claim, _ = await claim_of(database, run_id)
    first.signal(signal.SIGTERM)
    await claimed_anew(database, run_id, claim, seconds=6)
    assert first.wait(20) == 0
    await until(database, run_id, "completed")
    events = await said_done(redis_client, run_id)
    # What was under way ended under the first claim: no step was begun twice.
    started = [event["event_id"] for event in events if event["type"] == "step_start"]
    assert len(set(started)) == len(started) == 32


async def test_a_failing_branch_stops_the_others_and_ends_the_run_with_its_sentence(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    quick = [{"id": "bad", "name": "Bad", "type": "transform", "transform_code": "result = state['nope']"}]
    slow = [{"id": "endless", "name": "Endless", **FOREVER, "timeout_seconds": 60}]
    await store(database, forked(slow, quick))
    start_worker().wait_ready()
    began = time.monotonic()
    run_id = await enqueue(database, redis_client, "forked")
    done = await until(database, run_id, "failed", "completed", seconds=20)
    assert time.monotonic() - began < 15
    assert "step 'Bad' (bad)" in str(done.error)
    assert "KeyError" in str(done.error)
    assert [(entry["step_id"], entry["status"]) for entry in done.history] == [("bad", "failed")]
    assert (await said_done(redis_client, run_id))[-2]["type"] == "orchestration_error"


async def test_a_branch_keeps_to_its_steps_timeout(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    slow = [{"id": "endless", "name": "Endless", **FOREVER, "timeout_seconds": 0.4}]
    quick = [{"id": "quick", "type": "print", "print_content": "x"}]
    await store(database, forked(quick, slow))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "forked")
    done = await until(database, run_id, "failed", "completed")
    assert "timeout_seconds (0.4)" in str(done.error)
    assert await events_of(redis_client, run_id)


@pytest.mark.parametrize("limit", [3, 4])
async def test_max_total_turns_holds_inside_loops(
    database: Database, redis_client: Redis, start_worker: StartWorker, limit: int
) -> None:
    steps = a_loop("loop", {"id": "say", "name": "Say", "type": "print", "print_content": "x"}, count=3)
    await store(database, {**chain("limited", steps[:1]), "steps": steps, "max_total_turns": limit})
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "limited")
    done = await until(database, run_id, "failed", "completed")
    assert done.status == ("completed" if limit == 4 else "failed")
    assert done.status == "completed" or "max_total_turns" in str(done.error)
