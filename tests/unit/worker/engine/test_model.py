"""Definitions as users really write them are read; those that would go astray are refused with one sentence."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.model import (
    CONTAINERS,
    MAX_NESTING,
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


def test_every_type_that_does_something_has_an_executor() -> None:
    assert set(EXECUTORS) == set(StepType) - CONTAINERS - {StepType.HUMAN}


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
        ({"id": "o", "steps": [{"id": "a" * 256, "type": "end"}]}, "(number 1) with an id of over 255 characters"),
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


BAD_VALUES: dict[str, object] = {
    "input_keys": "k",
    "output_key": ["k"],
    "next_step_id": {},
    "max_iterations": "many",
    "timeout_seconds": -1,
    "print_content": [],
    "if_condition": {},
    "if_true_step_id": [],
    "if_false_step_id": True,
    "switch_expression": ["x"],
    "switch_cases": ["a"],
    "switch_default_step_id": {},
    "transform_code": ["result = 1"],
    "agent_id": ["helper"],
    "prompt_template": {},
    "model": ["m"],
    "max_turns": 1.5,
    "allowed_tools": "search",
    "forced_tool": {},
    "evaluator_prompt": [],
    "route_map": "again",
    "route_descriptions": ["again"],
    "merge_strategy": "zip",
    "loop_count": 0,
    "loop_step_ids": "a",
    "parallel_branches": {"a": ["b"]},
    "human_prompt": [],
    "human_fields": ["name"],
    "human_timeout_seconds": "soon",
}
"""Field of a step -> a value that it does not take."""


@pytest.mark.parametrize("field", sorted(BAD_VALUES))
def test_a_bad_value_is_named_with_its_step_and_field(field: str) -> None:
    sentence = refused(an_orchestration({"id": "s", "name": "Step", "type": "end", field: BAD_VALUES[field]}))
    assert sentence.startswith("Orchestration 'Triage' (orch_1), step 'Step' (s) has ")
    assert field in sentence
    assert re.search(r"that (is|are) no |which is no |; it is (a|one of) ", sentence)
    assert sentence.count(". ") == 0


def test_every_field_of_a_step_has_a_bad_value() -> None:
    # Those that every step needs are above; a name that is no text counts as none.
    assert set(BAD_VALUES) == {field.name for field in dataclasses.fields(Step)} - {"id", "name", "type"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", []),
        ("entry_step_id", {}),
        ("state_schema", "x"),
        ("max_total_turns", 2.5),
        ("timeout_minutes", "soon"),
        ("max_total_cost_usd", -1),
        ("steps", "a"),
    ],
)
def test_a_bad_value_of_an_orchestration_is_named_with_its_field(field: str, value: object) -> None:
    sentence = refused({**an_orchestration(a_print("a")), field: value})
    assert sentence.startswith("Orchestration 'Triage' (orch_1) has ")
    assert field in sentence
    assert re.search(r"that (is|are) no |which is no |; it is (a|one of) ", sentence)


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


def test_fields_of_steps_that_ask_models() -> None:
    definition = Definition.parse(
        an_orchestration(
            {
                "id": "a",
                "type": "agent",
                "agent_id": 7,
                "prompt_template": None,
                "max_turns": "4",
                "allowed_tools": None,
                "model": "",
            },
            {"id": "e", "type": "evaluator", "route_map": {"a": "a", "x": None}, "route_descriptions": {"a": None}},
            max_total_cost_usd="0.5",
        )
    )
    agent = definition.steps["a"]
    assert (agent.agent_id, agent.prompt_template, agent.max_turns) == ("7", "", 4)
    assert (agent.allowed_tools, agent.model) == ((), None)
    assert dict(definition.steps["e"].route_map) == {"a": "a", "x": None}
    assert dict(definition.steps["e"].route_descriptions) == {}
    assert (definition.max_total_cost_usd, definition.asks_models) == (0.5, True)
    assert not Definition.parse(an_orchestration(a_print("a"))).asks_models


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"type": "agent"}, "is of type agent and needs agent_id"),
        ({"type": "tool", "forced_tool": ""}, "is of type tool and needs forced_tool"),
        ({"type": "evaluator"}, "is of type evaluator and needs a route_map with at least one label"),
        ({"type": "evaluator", "route_map": {"a": "z"}}, "whose route 'a' is 'z', which is no step"),
        ({"type": "evaluator", "route_map": {"a": ["z"]}}, "has a route 'a' whose target is no step id"),
        ({"type": "llm", "max_turns": "many"}, "has max_turns 'many', which is no number"),
    ],
)
def test_steps_that_ask_models_need_what_they_need(step: Document, words: str) -> None:
    assert words in refused(an_orchestration({"id": "s", **step}))


def test_a_key_is_named_after_the_step_that_set_it_last() -> None:
    definition = a_definition(a_print("a", output_key="k"), a_print("b", output_key="k"), a_print("c", output_key="o"))
    past: list[Document] = [{"step_id": each, "status": "completed"} for each in ("b", "a", "b", "c")]
    past.append({"step_id": "a", "status": "failed"})
    assert [definition.source_of(key, past) for key in ("k", "o", "user_input")] == ["B (b)", "C (c)", "user_input"]
    assert definition.source_of("k", past[:0]) == "A (a)"
