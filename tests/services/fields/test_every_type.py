"""The fields that every step has: one test a field, for each step type."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from synapse_worker.engine.model import ASKS_MODELS, StepType
from tests.services.fields.bench import AGENT, CALL_IT, FOREVER, TOOL, Bench, Ran, a_print
from tests.support.model_server import call, script

Fields = Mapping[str, object]

GO = {"evaluator_prompt": script(call("route_go", reasoning="why")), "route_map": {"go": "after", "stop": None}}

WORKING: Mapping[StepType, Fields] = {
    StepType.AGENT: {"agent_id": AGENT, "prompt_template": "answer"},
    StepType.LLM: {"prompt_template": "answer"},
    StepType.TOOL: {"forced_tool": TOOL, "prompt_template": script(CALL_IT)},
    StepType.EVALUATOR: GO,
    StepType.PARALLEL: {"parallel_branches": [["inside"]]},
    StepType.MERGE: {"input_keys": ["given"]},
    StepType.LOOP: {"loop_count": 1, "loop_step_ids": ["inside"]},
    StepType.HUMAN: {},
    StepType.TRANSFORM: {"transform_code": "result = [1]"},
    StepType.EXTRACT_JSON: {"input_keys": ["given"]},
    StepType.IF_ELSE: {"if_condition": "state.given"},
    StepType.SWITCH: {"switch_expression": "2 + 3"},
    StepType.PRINT: {"print_content": "printed"},
    StepType.END: {},
}
"""What a step of each type needs to work."""

OUTPUTS: Mapping[StepType, object] = {
    StepType.AGENT: "answer",
    StepType.LLM: "answer",
    StepType.TOOL: {"doubled": 4},
    StepType.EVALUATOR: {"decision": "go", "reasoning": "why"},
    StepType.MERGE: [{"source": "given", "data": '{"a": 1}'}],
    StepType.LOOP: {"Inside": [{"iteration": 1, "agent": "Inside", "result": "inside"}]},
    StepType.HUMAN: "yes",
    StepType.TRANSFORM: [1],
    StepType.EXTRACT_JSON: {"a": 1},
    StepType.IF_ELSE: True,
    StepType.SWITCH: 5,
    StepType.PRINT: "printed",
}
"""What that step stores; a parallel step and an end have nothing to store."""


LATE = script({"say": "late", "wait": 3})
ENDLESS = "(lambda fib: fib(fib, 60))(lambda fib, n: n if n < 2 else fib(fib, n - 1) + fib(fib, n - 2))"
SLOW: Mapping[StepType, Fields] = {
    StepType.AGENT: {"prompt_template": LATE},
    StepType.LLM: {"prompt_template": LATE},
    StepType.TOOL: {"prompt_template": LATE},
    StepType.EVALUATOR: {"evaluator_prompt": LATE},
    StepType.TRANSFORM: FOREVER,
    StepType.IF_ELSE: {"if_condition": ENDLESS},
    StepType.SWITCH: {"switch_expression": ENDLESS},
}
"""What makes a step take long. The others take no time of their own."""


def of(kind: StepType, **fields: object) -> Fields:
    return {"id": "step", "name": "The step", "type": kind, "output_key": "out", **WORKING[kind], **fields}


async def run(bench: Bench, kind: StepType, asks: bool = True, /, **fields: object) -> Ran:
    """Run one step of a type; `asks`: whether one that asks a human comes to that."""
    others = (a_print(identity, next_step_id=None) for identity in ("after", "inside", "elsewhere"))
    answers = ["yes"] if kind is StepType.HUMAN and asks else []
    return await bench.run(of(kind, **fields), *others, state={"given": '{"a": 1}'}, answers=answers)


@pytest.mark.parametrize("kind", StepType)
async def test_every_type_output_key(bench: Bench, kind: StepType) -> None:
    ran = await run(bench, kind)
    assert ran.view.status == "completed", ran.view.error
    assert ran.state.get("out") == OUTPUTS.get(kind)
    silent = await run(bench, kind, output_key=None)
    assert silent.view.status == "completed", silent.view.error
    assert set(silent.state) <= {"given", "inside", "after", "human_response"}


@pytest.mark.parametrize("kind", StepType)
async def test_every_type_id_name_and_type(bench: Bench, kind: StepType) -> None:
    ran = await run(bench, kind)
    (entry,) = [entry for entry in ran.view.history if entry["step_id"] == "step"]
    assert (entry["step_name"], entry["step_type"], entry["output_key"]) == ("The step", kind, "out")
    started = next(event for event in ran.told("step_start") if event["orch_step_id"] == "step")
    assert (started["step_name"], started["step_type"]) == ("The step", kind)
    ended = next(event for event in ran.told("step_complete") if event["orch_step_id"] == "step")
    assert ended["step_name"] == "The step"


@pytest.mark.parametrize("kind", sorted(set(StepType) - {StepType.EVALUATOR, StepType.END}))
async def test_every_type_next_step_id(bench: Bench, kind: StepType) -> None:
    ran = await run(bench, kind, next_step_id="elsewhere")
    assert ran.view.status == "completed", ran.view.error
    assert ran.done[-2:] == ["step", "elsewhere"]
    assert "after" not in ran.state
    last = await run(bench, kind, next_step_id=None)
    assert (last.view.status, last.done[-1]) == ("completed", "step")


async def test_end_next_step_id_leads_nowhere(bench: Bench) -> None:
    assert (await run(bench, StepType.END, next_step_id="after")).done == ["step"]


@pytest.mark.parametrize("kind", StepType)
async def test_every_type_max_iterations(bench: Bench, kind: StepType) -> None:
    ran = await run(bench, kind, False, max_iterations=0, next_step_id="elsewhere")
    assert ran.view.status == "completed", ran.view.error
    assert ran.done == ["elsewhere"]
    (told,) = ran.told("loop_limit_reached")
    assert (told["orch_step_id"], told["iterations"], told["max_iterations"]) == ("step", 0, 0)


@pytest.mark.parametrize("kind", sorted(SLOW))
async def test_every_type_timeout_seconds(bench: Bench, kind: StepType) -> None:
    ran = await run(bench, kind, timeout_seconds=0.3, **SLOW[kind])
    assert ran.error == "step 'The step' (step) took longer than its timeout_seconds (0.3)"
    assert [(event["orch_step_id"], event["error"]) for event in ran.told("step_error")] == [("step", ran.error)]


@pytest.mark.parametrize("kind", [StepType.LLM, StepType.TRANSFORM, StepType.IF_ELSE])
async def test_every_type_timeout_seconds_inside_a_loop(bench: Bench, kind: StepType) -> None:
    loop = {"id": "loop", "type": "loop", "loop_count": 2, "loop_step_ids": ["step", "inside"], "next_step_id": None}
    ran = await bench.run(loop, of(kind, timeout_seconds=0.2, **SLOW[kind]), a_print("inside"))
    assert ran.view.status == "completed", ran.view.error
    assert [(entry["step_id"], entry["status"]) for entry in ran.view.history] == [
        *[("step", "failed"), ("inside", "completed")] * 2,
        ("loop", "completed"),
    ]
    assert ran.view.history[0]["error"] == "step 'The step' (step) took longer than its timeout_seconds (0.2)"
    assert ran.state["out"] == []


@pytest.mark.parametrize("kind", [StepType.LOOP, StepType.PARALLEL, StepType.HUMAN])
async def test_every_type_timeout_seconds_is_not_read_where_others_take_the_time(bench: Bench, kind: StepType) -> None:
    slow = {"id": "inside", "type": "llm", "prompt_template": script({"say": "made", "wait": 0.5}), "output_key": "in"}
    ran = await bench.run(
        of(kind, timeout_seconds=0.01),
        a_print("after", next_step_id=None),
        slow,
        answers=["yes"] if kind is StepType.HUMAN else [],
    )
    assert (ran.view.status, ran.done[-1]) == ("completed", "after")


@pytest.mark.parametrize("kind", sorted(ASKS_MODELS))
async def test_every_type_input_keys(bench: Bench, kind: StepType) -> None:
    first = a_print("first", "what was made")
    ran = await bench.run(
        first,
        of(kind, input_keys=["first", "given", "gone"]),
        a_print("after"),
        state={"given": {"a": 1}, "other": "not shown"},
    )
    assert ran.view.status == "completed", ran.view.error
    context = 'Context:\n\n[First (first)]:\nwhat was made\n\n[given]:\n{"a": 1}'
    assert context in bench.asked[0]
    assert "not shown" not in bench.asked[0]
    await bench.run(first, of(kind), a_print("after"))
    assert "Context:" not in bench.asked[1]
