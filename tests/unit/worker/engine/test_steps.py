"""Each step type: what it sets, where it goes on, what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from synapse_worker.engine.errors import CodeFailed, CodeLimit, StepFailed
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.steps import EXECUTORS, NestedResult, StepContext, human
from tests.unit.worker.engine.documents import Document, a_definition, a_print

STATE = {"score": 0.9, "kind": "bug", "n": 3, "flag": True, "items": [1, 2]}


async def nobody(document: Mapping[str, object], given: JsonValue, number: int) -> NestedResult:
    raise AssertionError("these steps run nothing inside them")


async def outcome(sandbox: Sandbox, fields: Document, state: Mapping[str, object] = STATE) -> StepOutcome:
    definition = a_definition(
        {"id": "s", "name": "Step", **fields},
        a_print("yes", output_key="kind"),
        a_print("no"),
        a_print("next"),
    )
    step = definition.steps["s"]
    context = StepContext(definition=definition, sandbox=sandbox, idempotency_key="run_1:s:1", nested=nobody)
    return await EXECUTORS[step.type](step, state, context)


def names(result: StepOutcome) -> list[object]:
    return [event["type"] for event in result.events]


async def test_print(sandbox: Sandbox) -> None:
    result = await outcome(
        sandbox,
        {"type": "print", "print_content": "{state.kind} {{x}} {state.no}", "output_key": "t", "next_step_id": "next"},
    )
    assert result.output == {"t": "bug {{x}} {state.no}"}
    assert result.next_step_id == "next"
    assert result.events == [
        {"type": "final", "orch_step_id": "s", "step_name": "Step", "response": "bug {{x}} {state.no}"}
    ]


async def test_print_without_output_key(sandbox: Sandbox) -> None:
    result = await outcome(sandbox, {"type": "print", "print_content": "x"})
    assert (result.output, result.next_step_id) == ({}, None)


@pytest.mark.parametrize(
    ("condition", "fields", "target"),
    [
        ("state.score > 0.5", {"if_true_step_id": "yes", "if_false_step_id": "no"}, "yes"),
        ("state.score > 0.95", {"if_true_step_id": "yes", "if_false_step_id": "no"}, "no"),
        ("state.missing", {"if_true_step_id": "yes", "if_false_step_id": "no"}, "no"),
        ("state.score > 0.5", {"if_false_step_id": "no"}, None),
        ("state.score > 0.5", {"if_false_step_id": "no", "next_step_id": "next"}, "next"),
        ("False", {"if_true_step_id": "yes", "next_step_id": "next"}, "next"),
        ("{1, 2}", {"if_true_step_id": "yes"}, "yes"),
    ],
)
async def test_if_else(sandbox: Sandbox, condition: str, fields: Document, target: str | None) -> None:
    result = await outcome(sandbox, {"type": "if_else", "if_condition": condition, "output_key": "high", **fields})
    assert result.next_step_id == target
    assert isinstance(result.output["high"], bool)
    assert names(result) == ["if_decision"]
    (event,) = result.events
    assert event["target_step_id"] == target
    assert event["condition"] == condition
    assert event["result"] == ("true" if result.output["high"] else "false")


async def test_a_condition_that_raises_is_false_with_a_warning(sandbox: Sandbox) -> None:
    result = await outcome(
        sandbox,
        {"type": "if_else", "if_condition": "state.missing > 5", "if_true_step_id": "yes", "if_false_step_id": "no"},
    )
    assert result.next_step_id == "no"
    assert names(result) == ["step_warning", "if_decision"]
    assert "TypeError: '>' not supported" in str(result.events[0]["message"])


async def test_a_condition_past_its_limits_fails(sandbox: Sandbox) -> None:
    with pytest.raises(CodeLimit):
        await outcome(sandbox, {"type": "if_else", "if_condition": "sum(range(10 ** 12))", "timeout_seconds": 0.2})


@pytest.mark.parametrize(
    ("expression", "fields", "target", "matched"),
    [
        ("state.kind", {"switch_cases": {"bug": "yes", "ask": "no"}}, "yes", "bug"),
        ("state.kind", {"switch_cases": {"ask": "no"}, "switch_default_step_id": "next"}, "next", None),
        ("state.kind", {"switch_cases": {"ask": "no"}, "next_step_id": "next"}, None, None),
        ("state.kind", {"switch_cases": {"bug": None}, "switch_default_step_id": "next"}, None, "bug"),
        ("state.kind", {"next_step_id": "next"}, "next", None),
        ("state.n", {"switch_cases": {"3": "yes"}}, "yes", "3"),
        ("state.flag", {"switch_cases": {"True": "yes"}}, "yes", "True"),
        ("state.missing", {"switch_cases": {"None": "yes"}}, "yes", "None"),
        ("state.missing.lower()", {"switch_cases": {"x": "yes"}, "switch_default_step_id": "no"}, "no", None),
    ],
)
async def test_switch(
    sandbox: Sandbox, expression: str, fields: Document, target: str | None, matched: str | None
) -> None:
    result = await outcome(sandbox, {"type": "switch", "switch_expression": expression, **fields})
    assert result.next_step_id == target
    decision = result.events[-1]
    assert (decision["type"], decision["matched_case"], decision["target_step_id"]) == (
        "switch_decision",
        matched,
        target,
    )
    assert ("step_warning" in names(result)) == expression.endswith("lower()")


async def test_switch_stores_its_value(sandbox: Sandbox) -> None:
    result = await outcome(sandbox, {"type": "switch", "switch_expression": "state.n + 1", "output_key": "v"})
    assert result.output == {"v": 4}


async def test_transform(sandbox: Sandbox) -> None:
    result = await outcome(
        sandbox,
        {
            "type": "transform",
            "transform_code": "result = {'sum': sum(state['items'])}",
            "output_key": "total",
            "next_step_id": "next",
        },
    )
    assert (result.output, result.next_step_id) == ({"total": {"sum": 3}}, "next")
    assert result.events == [
        {"type": "transform_result", "orch_step_id": "s", "step_name": "Step", "result": "{'sum': 3}"}
    ]


async def test_a_transform_that_raises_fails(sandbox: Sandbox) -> None:
    with pytest.raises(CodeFailed, match=r"KeyError: 'nope' \(line 2\)"):
        await outcome(sandbox, {"type": "transform", "transform_code": "x = 1\nresult = state['nope']"})


async def test_a_transform_keeps_to_its_steps_timeout(sandbox: Sandbox) -> None:
    with pytest.raises(CodeLimit, match=r"0\.2 s"):
        await outcome(sandbox, {"type": "transform", "transform_code": "while True: pass", "timeout_seconds": 0.2})


async def test_end(sandbox: Sandbox) -> None:
    result = await outcome(sandbox, {"type": "end", "next_step_id": "next"})
    assert (result.next_step_id, result.output, list(result.events)) == (None, {}, [])


@pytest.mark.parametrize(
    ("strategy", "merged"),
    [
        ("list", [{"source": "YES (yes)", "data": "bug"}, {"source": "items", "data": [1, 2]}]),
        (None, [{"source": "YES (yes)", "data": "bug"}, {"source": "items", "data": [1, 2]}]),
        ("DICT", {"YES (yes)": "bug", "items": [1, 2]}),
        ("concat", "[YES (yes)]:\nbug\n\n[items]:\n[1, 2]"),
    ],
)
async def test_merge(sandbox: Sandbox, strategy: str | None, merged: object) -> None:
    fields = {"type": "merge", "input_keys": ["kind", "missing", "items"], "merge_strategy": strategy}
    result = await outcome(sandbox, {**fields, "output_key": "m", "next_step_id": "next"})
    assert (result.output, result.next_step_id) == ({"m": merged}, "next")
    (event,) = result.events
    assert (event["type"], event["input_count"], event["strategy"]) == (
        "merge_complete",
        2,
        (strategy or "list").lower(),
    )


async def test_merge_of_nothing(sandbox: Sandbox) -> None:
    result = await outcome(sandbox, {"type": "merge", "input_keys": ["missing"], "output_key": "m"})
    assert result.output == {"m": []}


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (['{"a": 1}'], {"a": 1}),
        (["  [1, 2]\n"], [1, 2]),
        (["3"], 3),
        (['Sure! Here it is:\n```json\n{"a": [1, {"b": "}"}]}\n```\nAnything else?'], {"a": [1, {"b": "}"}]}),
        (['first {"a": 1}, then [2] (see [docs](http://x)) and {broken'], [{"a": 1}, [2]]),
        (['{"a": 1}', 'and {"b": 2}'], [{"a": 1}, {"b": 2}]),
        ([{"already": True}], {"already": True}),
        (['x {"bad": NaN} {"good": 1}'], {"good": 1}),
        (['{"a": {"b": 1}'], {"b": 1}),
    ],
)
async def test_extract_json(sandbox: Sandbox, texts: list[object], found: object) -> None:
    state = {f"k{number}": text for number, text in enumerate(texts)}
    fields: Document = {"type": "extract_json", "input_keys": list(state), "output_key": "j", "next_step_id": "next"}
    result = await outcome(sandbox, fields, state)
    assert (result.output, result.next_step_id) == ({"j": found}, "next")


@pytest.mark.parametrize("text", ["no JSON here", "", "{unquoted: 1}", None, 7])
async def test_extract_json_without_any_fails(sandbox: Sandbox, text: object) -> None:
    with pytest.raises(StepFailed, match="there is no JSON in k"):
        await outcome(sandbox, {"type": "extract_json", "input_keys": ["k"]}, {"k": text})


async def test_extract_json_gives_up_on_hostile_text(sandbox: Sandbox) -> None:
    began = time.monotonic()
    hostile = "[" * 900 + "1," * 200_000 + "[" * 200_000
    with pytest.raises(StepFailed):
        await outcome(sandbox, {"type": "extract_json", "input_keys": ["k"]}, {"k": hostile})
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("answer", ["yes", {"name": "Ada", "age": 36}])
@pytest.mark.parametrize("output_key", ["approval", None])
def test_an_answer_is_stored_twice(answer: JsonValue, output_key: str | None) -> None:
    step = a_definition({"id": "h", "type": "human", "output_key": output_key, "next_step_id": None}).steps["h"]
    result = human.answered(step, answer)
    assert result.output == {"human_response": answer, **({"approval": answer} if output_key else {})}


def test_what_a_human_is_asked() -> None:
    fields: list[JsonValue] = [{"name": "ok", "type": "boolean", "label": "All good?"}]
    document: Document = {
        "id": "h",
        "type": "human",
        "human_prompt": "About {state.kind}: {state.gone}",
        "human_fields": fields,
        "input_keys": ["gone", "n"],
        "human_timeout_seconds": "90",
    }
    step = a_definition(document).steps["h"]
    asked = human.question(step, 2, STATE)
    assert (asked.prompt, list(asked.fields), asked.context) == ("About bug: {state.gone}", fields, "3")
    assert step.human_timeout_seconds == 90
    bare = human.question(a_definition({"id": "h", "type": "human"}).steps["h"], 1, STATE)
    assert (bare.prompt, list(bare.fields), bare.context) == ("Please provide input to continue.", [], None)
