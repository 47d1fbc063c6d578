"""Definitions as users really write them are read; those that would go astray are refused with one sentence."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.model import (
    CONTAINERS,
    MAX_NESTING,
    RUNNABLE,
    Definition,
    Step,
    StepType,
)
from synapse_worker.engine.steps import EXECUTORS
from tests.unit.worker.engine.documents import (
    Document,
    a_definition,
    a_loop,
    a_parallel,
    a_print,
    an_orchestration,
    searched,
)


def refused(document: Document, source: str = "") -> str:
    with pytest.raises(DefinitionError) as caught:
        Definition.parse(document, source=source)
    return str(caught.value)


def test_every_runnable_type_has_an_executor() -> None:
    assert set(EXECUTORS) == RUNNABLE - CONTAINERS - {StepType.HUMAN}


def test_a_whole_definition() -> None:
    definition = Definition.parse(
        {
            "id": "orch_1",
            "name": "Triage",
            "description": "sorts",
            "avatar": "default",
            "entry_step_id": "check",
            "state_schema": {"score": {"type": "number", "default": 1, "description": "0 to 1"}},
            "max_total_turns": 20,
            "max_total_cost_usd": None,
            "timeout_minutes": 30,
            "trigger": "manual",
            "steps": [
                {
                    "id": "check",
                    "name": "Check",
                    "type": "if_else",
                    "if_condition": "state.score > 0.5",
                    "if_true_step_id": "route",
                    "if_false_step_id": "",
                    "output_key": "high",
                    "position_x": 1.5,
                    "position_y": 2,
                    "human_fields": [],
                    "cache_responses_enabled": False,
                },
                {
                    "id": "route",
                    "name": "Route",
                    "type": "switch",
                    "switch_expression": "state.kind",
                    "switch_cases": {"a": "say", "b": None, "c": ""},
                    "switch_default_step_id": "calc",
                    "max_iterations": 5,
                },
                {
                    "id": "calc",
                    "name": "Calc",
                    "type": "transform",
                    "transform_code": "result = 1",
                    "timeout_seconds": 9,
                },
                {"id": "say", "name": "Say", "type": "print", "print_content": "hi", "next_step_id": "stop"},
                {"id": "stop", "name": "Stop", "type": "end"},
            ],
        }
    )
    assert list(definition.steps) == ["check", "route", "calc", "say", "stop"]
    assert definition.steps["check"].if_false_step_id is None
    assert definition.steps["route"].switch_cases == {"a": "say", "b": None, "c": None}
    assert definition.steps["route"].max_iterations == 5
    assert definition.steps["calc"].timeout_seconds == 9
    assert (definition.max_total_turns, definition.timeout_minutes) == (20, 30)
    assert definition.state_schema["score"] == {"type": "number", "default": 1, "description": "0 to 1"}


def test_every_field_may_be_null() -> None:
    own = {field.name for field in dataclasses.fields(Step)} - {"id", "type", "print_content"}
    others = {"max_turns", "model", "allowed_tools", "route_map", "agent_id"}
    step = {"id": "a", "type": "print", "print_content": "x", **dict.fromkeys(own | others)}
    nulls = ("name", "description", "entry_step_id", "state_schema", "max_total_turns", "timeout_minutes")
    definition = Definition.parse({"id": "o", "steps": [step], **dict.fromkeys(nulls)})
    read = definition.steps["a"]
    assert (read.name, read.input_keys, read.max_iterations, read.timeout_seconds) == ("a", (), 3, 300)
    assert (definition.name, definition.entry_step_id, definition.max_total_turns) == ("o", "a", 100)
    assert definition.timeout_minutes is None
    assert Definition.parse({"id": "o", "steps": [{"id": "a", "type": "print", "print_content": "x"}]}) == definition


def test_numbers_may_be_text_and_ids_may_be_numbers() -> None:
    definition = Definition.parse(
        {
            "id": 7,
            "steps": [
                {"id": 1, "type": "PRINT", "print_content": 5, "next_step_id": "2", "max_iterations": "4"},
                {"id": "2", "type": "end", "timeout_seconds": "1.5", "input_keys": ["a", None, 3]},
            ],
            "max_total_turns": "12",
            "timeout_minutes": "0",
        }
    )
    assert definition.id == "7"
    assert definition.steps["1"].print_content == "5"
    assert definition.steps["1"].max_iterations == 4
    assert definition.steps["2"].timeout_seconds == 1.5
    assert definition.steps["2"].input_keys == ("a", "3")
    assert (definition.max_total_turns, definition.timeout_minutes) == (12, None)


@pytest.mark.parametrize("kind", sorted(set(StepType) - RUNNABLE))
def test_types_of_later_releases_are_refused(kind: str) -> None:
    sentence = refused(an_orchestration(a_print("a", next_step_id="b"), {"id": "b", "name": "Ask", "type": kind}))
    assert sentence == (
        f"Orchestration 'Triage' (orch_1), step 'Ask' (b) is of type {kind}; "
        f"this release runs {', '.join(sorted(RUNNABLE))}."
    )


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "has no id"),
        ({"id": " "}, "has no id"),
        ({"id": "o"}, "'o' (o) has no steps"),
        ({"id": "o", "steps": []}, "has no steps"),
        ({"id": "o", "steps": {"a": 1}}, "steps that are no list"),
        ({"id": "o", "steps": ["a"]}, "(number 1) that is no object"),
        ({"id": "o", "steps": [{"type": "end"}]}, "(number 1) without an id"),
        ({"id": "o", "steps": [{"id": "a"}]}, "step 'a' (a) has no type; this release runs "),
        ({"id": "o", "steps": [{"id": "a", "type": "webhook"}]}, "'webhook', which is no step type"),
        ({"id": "o", "steps": [{"id": "a", "type": ["end"]}]}, "a type that is no text"),
        (an_orchestration(a_print("a"), a_print("a")), "two steps with the id 'a'"),
        (an_orchestration(a_print("a"), entry_step_id="z"), "starts at 'z', which is no step; its steps are a."),
        (an_orchestration(a_print("a", next_step_id="z")), "step 'A' (a) whose next_step_id is 'z', which is no step"),
        (an_orchestration(a_print("a", print_content=None)), "is of type print and needs print_content"),
        (an_orchestration({"id": "a", "type": "if_else"}), "is of type if_else and needs if_condition"),
        (an_orchestration({"id": "a", "type": "if_else", "if_condition": "  "}), "needs if_condition"),
        (
            an_orchestration({"id": "a", "type": "if_else", "if_condition": "1", "if_true_step_id": "z"}),
            "whose if_true_step_id is 'z'",
        ),
        (
            an_orchestration({"id": "a", "type": "if_else", "if_condition": "1", "if_false_step_id": "z"}),
            "whose if_false_step_id is 'z'",
        ),
        (an_orchestration({"id": "a", "type": "switch"}), "is of type switch and needs switch_expression"),
        (
            an_orchestration({"id": "a", "type": "switch", "switch_expression": "1", "switch_cases": {"x": "z"}}),
            "whose switch case 'x' is 'z'",
        ),
        (
            an_orchestration({"id": "a", "type": "switch", "switch_expression": "1", "switch_cases": {"x": {}}}),
            "switch case 'x' whose target is no step id",
        ),
        (
            an_orchestration({"id": "a", "type": "switch", "switch_expression": "1", "switch_default_step_id": "z"}),
            "whose switch_default_step_id is 'z'",
        ),
        (an_orchestration({"id": "a", "type": "switch", "switch_expression": "1", "switch_cases": []}), "no object"),
        (an_orchestration({"id": "a", "type": "transform"}), "is of type transform and needs transform_code"),
        (an_orchestration({"id": "a", "type": "loop"}), "is of type loop and needs loop_step_ids"),
        (an_orchestration(a_loop("a", "z")), "whose loop_step_ids names 'z', which is no step"),
        (an_orchestration(a_loop("a", "b", loop_count=0), a_print("b")), "loop_count 0; it is a whole number of"),
        (an_orchestration(a_loop("a", "a")), "has step 'A' (a) that contains itself"),
        (an_orchestration(a_loop("a", "b"), a_loop("b", "c"), a_parallel("c", ["a"])), "that contains itself"),
        (an_orchestration({"id": "a", "type": "parallel"}), "is of type parallel and needs parallel_branches"),
        (an_orchestration(a_parallel("a", ["z"])), "whose parallel_branches names 'z', which is no step"),
        (an_orchestration({"id": "a", "type": "parallel", "parallel_branches": ["b"]}), "no lists of step ids"),
        (
            an_orchestration(a_parallel("a", ["b"], ["c", "b"]), a_print("b"), a_print("c")),
            "has step 'A' (a) whose branches 1 and 2 both do step 'B' (b); a step belongs to one branch",
        ),
        (
            an_orchestration(a_parallel("a", ["b"], ["c"]), a_loop("b", "d"), a_loop("c", "d"), a_print("d")),
            "branches 1 and 2 both do step 'D' (d)",
        ),
        (
            an_orchestration(*(a_loop(f"s{n}", f"s{n + 1}") for n in range(MAX_NESTING + 2)), a_print("s12")),
            "nests loops and parallel steps deeper than 10 levels",
        ),
        (an_orchestration({"id": "a", "type": "human", "human_fields": ["x"]}), "no objects with a name"),
        (an_orchestration({"id": "a", "type": "human", "human_timeout_seconds": -1}), "a number above 0"),
        (an_orchestration({"id": "a", "type": "merge"}), "is of type merge and needs input_keys"),
        (an_orchestration({"id": "a", "type": "extract_json"}), "is of type extract_json and needs input_keys"),
        (
            an_orchestration({"id": "a", "type": "merge", "input_keys": ["k"], "merge_strategy": "zip"}),
            "has the merge_strategy 'zip'; it is one of list, concat, dict",
        ),
        (an_orchestration(a_print("a", print_content={})), "print_content that is no text"),
        (an_orchestration(a_print("a", max_iterations="many")), "max_iterations 'many', which is no number"),
        (an_orchestration(a_print("a", max_iterations=1.5)), "max_iterations 1.5; it is a whole number of at least 0"),
        (an_orchestration(a_print("a", max_iterations=True)), "max_iterations True, which is no number"),
        (an_orchestration(a_print("a", timeout_seconds=-1)), "timeout_seconds -1; it is a number above 0"),
        (an_orchestration(a_print("a", timeout_seconds="nan")), "timeout_seconds 'nan', which is no number"),
        (an_orchestration(a_print("a", input_keys="k")), "input_keys that are no list"),
        (an_orchestration(a_print("a", input_keys=[{}])), "input_keys with an item that is no text"),
        (an_orchestration(a_print("a"), max_total_turns=0), "max_total_turns 0; it is a whole number of at least 1"),
        (an_orchestration(a_print("a"), state_schema=[]), "state_schema that is no object"),
    ],
)
def test_definitions_that_would_go_astray(document: Document, words: str) -> None:
    sentence = refused(document)
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_source_is_named() -> None:
    assert refused({}, source="triage.json").startswith("triage.json: ")


def test_a_branch_that_names_its_first_step_goes_on_to_where_the_branches_meet() -> None:
    definition = a_definition(
        a_parallel("p", ["a"], ["c", "d"], ["e"], [], next_step_id="m"),
        a_print("a", next_step_id="b"),
        a_print("b", next_step_id="m"),
        a_print("c", next_step_id="x"),
        a_print("d"),
        a_print("e", next_step_id="f"),
        a_print("f", next_step_id="e"),
        a_print("m"),
        a_print("x"),
    )
    assert definition.steps["p"].parallel_branches == (("a", "b"), ("c", "d"), ("e", "f"))


def test_a_loop_has_three_iterations_when_it_does_not_say() -> None:
    loop = a_definition(a_loop("l", "a", loop_count=None), a_print("a")).steps["l"]
    assert (loop.loop_count, loop.loop_step_ids) == (3, ("a",))


def test_an_empty_text_to_print_is_a_choice() -> None:
    assert Definition.parse(an_orchestration(a_print("a", print_content=""))).steps["a"].print_content == ""


def test_a_condition_written_as_yaml_boolean() -> None:
    step = {"id": "a", "type": "if_else", "if_condition": True}
    assert Definition.parse(an_orchestration(step)).steps["a"].if_condition == "True"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 500)
    | st.floats(allow_nan=True)
    | st.sampled_from(["", "a", "b", "end"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)
STEP_FIELDS = [field.name for field in dataclasses.fields(Step)]


@searched
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": JSON,
            "name": JSON,
            "entry_step_id": JSON,
            "state_schema": JSON,
            "max_total_turns": JSON,
            "timeout_minutes": JSON,
            "steps": JSON | st.lists(st.dictionaries(st.sampled_from(STEP_FIELDS), JSON, max_size=8), max_size=3),
        },
    )
)
def test_any_document_is_read_or_refused(document: Document) -> None:
    try:
        definition = Definition.parse(document)
    except DefinitionError:
        return
    assert definition.entry_step_id in definition.steps
