"""The fields of orchestrations, and what a run is enqueued with."""

from __future__ import annotations

import pytest

from synapse_worker.queueing.client import RUN_FUNCTION
from tests.services.fields.bench import PRICED, Bench, a_print
from tests.support.model_server import script
from tests.support.runs import enqueue_as_upstream, outcome

LATE = {"type": "llm", "prompt_template": script({"say": "late", "wait": 1.5})}


async def test_orchestrations_id_and_name(bench: Bench) -> None:
    ran = await bench.run(a_print("a"), name="Triage")
    (told,) = ran.told("orchestration_start")
    assert (told["orchestration_id"], told["orchestration_name"]) == (ran.view.orchestration_id, "Triage")
    # A run without any output says its name.
    silent = await bench.run({"id": "a", "type": "end"}, name="Triage")
    assert silent.told("final")[-1]["response"] == "Triage completed"


async def test_orchestrations_steps_in_any_order(bench: Bench) -> None:
    ran = await bench.run(a_print("c", next_step_id=None), a_print("a", next_step_id="c"), entry_step_id="a")
    assert ran.done == ["a", "c"]


async def test_orchestrations_entry_step_id(bench: Bench) -> None:
    steps = [a_print("a"), a_print("b"), a_print("c")]
    assert (await bench.run(*steps, entry_step_id="b")).done == ["b", "c"]
    assert (await bench.run(*steps, entry_step_id=None)).done == ["a", "b", "c"]


async def test_orchestrations_state_schema(bench: Bench) -> None:
    schema = {
        "score": {"type": "number", "default": 0.5, "description": "0 to 1"},
        "list": {"type": "array", "default": [1]},
        "nothing": {"type": "string", "default": None},
        "later": {"type": "string"},
        "user_input": {"type": "string", "default": "overwritten by the input"},
        "given": {"type": "string", "default": "overwritten by the caller"},
    }
    ran = await bench.run(a_print("a", "{state.score}"), state_schema=schema, state={"given": "given"})
    assert ran.view.state == {
        "score": 0.5,
        "list": [1],
        "nothing": None,
        "user_input": "hi",
        "given": "given",
        "a": "0.5",
    }


async def test_orchestrations_max_total_turns(bench: Bench) -> None:
    steps = [a_print("a"), a_print("b"), a_print("c")]
    ran = await bench.run(*steps, max_total_turns=2, name="Triage")
    assert ran.error == (
        "The run has done 2 steps and step 'C' (c) would be one more; max_total_turns of orchestration 'Triage'"
        f" ({ran.view.orchestration_id}) is 2."
    )
    assert ran.done == ["a", "b"]
    assert (await bench.run(*steps, max_total_turns="3")).view.status == "completed"


async def test_orchestrations_max_total_turns_left_out_is_100(bench: Bench) -> None:
    loop = {"id": "loop", "type": "loop", "loop_step_ids": ["a"], "next_step_id": None}
    # The loop counts too.
    for count, status, done in ((99, "completed", 100), (100, "failed", 99)):
        ran = await bench.run({**loop, "loop_count": count}, a_print("a"), max_total_turns=None)
        assert (ran.view.status, len(ran.view.history)) == (status, done)


async def test_orchestrations_timeout_minutes(bench: Bench) -> None:
    ran = await bench.run({"id": "s", **LATE}, timeout_minutes=0.01, name="Triage")
    assert ran.error == (
        f"the run took longer than the timeout_minutes (0.01) of orchestration 'Triage' ({ran.view.orchestration_id})"
    )
    assert (await bench.run({"id": "s", **LATE}, timeout_minutes=0)).view.status == "completed"


async def test_orchestrations_timeout_minutes_of_a_nested_one(bench: Bench) -> None:
    inner = await bench.orchestration({"id": "s", **LATE}, timeout_minutes=0.01, name="Inner")
    agent = await bench.agent(orchestration_id=inner)
    ran = await bench.run({"id": "s", "name": "Outer", "type": "agent", "agent_id": agent})
    assert ran.error == (
        f"step 'Outer' (s): orchestration 'Inner' ({inner}) failed: it took longer than its timeout_minutes (0.01)"
    )


async def test_orchestrations_max_total_cost_usd(bench: Bench) -> None:
    # A request costs 0.000004 USD.
    steps = [{"id": each, "name": each, "type": "llm", "model": PRICED} for each in "ab"]
    ran = await bench.run(*steps, max_total_cost_usd=0.000005, name="Triage")
    assert ran.error == (
        "step 'b' (b): the run has cost 0.000008 USD, and max_total_cost_usd of orchestration 'Triage'"
        f" ({ran.view.orchestration_id}) is 0.000005"
    )
    assert (ran.done, len(bench.requests)) == (["a"], 2)
    assert ran.view.total_cost_usd == pytest.approx(0.000008, rel=0.2)
    assert ran.view.total_tokens_used == 34
    for most in (0.00001, 0, None):
        assert (await bench.run(*steps, max_total_cost_usd=most)).view.status == "completed"


async def test_orchestrations_of_fields_that_nobody_knows(bench: Bench) -> None:
    canvas = {"position_x": 1.5, "position_y": 2, "avatar": "x", "cache_responses_enabled": True}
    ran = await bench.run({**a_print("a"), **canvas}, trigger="manual", canvas={"zoom": 2})
    assert ran.view.status == "completed"


async def test_inputs_initial_input(bench: Bench) -> None:
    assert (await bench.run(a_print("a", "{state.user_input}!"), message="hello")).state == {"a": "hello!"}


async def test_inputs_initial_state(bench: Bench) -> None:
    state = {"home": {"city": "Oslo"}, "list": [1, None], "a": "to be overwritten", "user_input": "instead"}
    ran = await bench.run(a_print("a", "{state.home.city}"), state=state)
    assert ran.view.state == {**state, "a": "Oslo"}


async def test_inputs_session_id(bench: Bench) -> None:
    assert (await bench.run(a_print("a"), session="the-session")).view.session_id == "the-session"
    assert (await bench.run(a_print("a"))).view.session_id is None


async def test_inputs_that_are_empty_count_as_not_given(bench: Bench) -> None:
    orchestration = await bench.orchestration(a_print("a"))
    empty = {"session_id": "", "tenant_id": "", "webhook_url": "", "webhook_secret": "", "initial_state": None}
    run_id = f"run_{orchestration}"
    await enqueue_as_upstream(bench.client, run_id, RUN_FUNCTION, run_id=run_id, orch_id=orchestration, **empty)
    assert await outcome(bench.database, run_id) == "completed"
    ran = await bench.ended(run_id)
    assert (ran.view.session_id, ran.view.tenant_id, ran.done) == (None, "default", ["a"])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"initial_state": "x"}, "the job's argument initial_state must be a mapping of state keys"),
        ({"session_id": 7}, "the job's argument session_id must be a text of 1 to 255 characters"),
        ({"webhook_url": ["x"]}, "the job's argument webhook_url must be a text of 1 to 8192 characters"),
    ],
)
async def test_inputs_that_cannot_be_used(bench: Bench, fields: dict[str, object], sentence: str) -> None:
    orchestration = await bench.orchestration(a_print("a"))
    run_id = f"run_{orchestration}"
    await enqueue_as_upstream(bench.client, run_id, RUN_FUNCTION, run_id=run_id, orch_id=orchestration, **fields)
    assert await outcome(bench.database, run_id) == "failed"
    row = await bench.database.fetchrow("SELECT error_message FROM dead_letter_queue WHERE run_id = $1", run_id)
    assert row is not None
    assert row["error_message"] == sentence
