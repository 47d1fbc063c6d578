"""The own fields of the step types that steer a run or work on its state; no model is asked."""

from __future__ import annotations

import time

import pytest

from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from tests.services.fields.bench import Bench, a_print
from tests.support.runs import until

YES, NO, NEXT = (a_print(identity, next_step_id=None) for identity in ("yes", "no", "next"))
WAYS: dict[str, object] = {"if_true_step_id": "yes", "if_false_step_id": "no", "next_step_id": "next"}


def an_if(condition: object, **fields: object) -> dict[str, object]:
    return {"id": "if", "name": "If", "type": "if_else", "if_condition": condition, **WAYS, **fields}


@pytest.mark.parametrize(
    ("condition", "way"),
    [
        ("state.user.scores[-1] > 0.5", "yes"),
        ("state.user.name.lower() == 'bob'", "no"),
        ("state.gone.deeper is None", "yes"),
        ("state.user.scores", "yes"),
        ("state.nothing", "no"),
        (True, "yes"),
        ("state.gone > 5", "no"),
    ],
)
async def test_if_else_if_condition(bench: Bench, condition: object, way: str) -> None:
    state = {"user": {"name": "Ada", "scores": [0.1, 0.9]}, "nothing": []}
    ran = await bench.run(an_if(condition), YES, NO, NEXT, state=state)
    assert ran.done == ["if", way]
    (told,) = ran.told("if_decision")
    decision = {"yes": "true", "no": "false"}[way]
    assert (told["condition"], told["decision"], told["target_step_id"]) == (str(condition), decision, way)
    assert bool(ran.told("step_warning")) == (condition == "state.gone > 5")


async def test_if_else_if_true_step_id(bench: Bench) -> None:
    assert (await bench.run(an_if("1 > 0"), YES, NO, NEXT)).done == ["if", "yes"]
    assert (await bench.run(an_if("1 > 0", if_true_step_id=None), YES, NO, NEXT)).done == ["if", "next"]


async def test_if_else_if_false_step_id(bench: Bench) -> None:
    assert (await bench.run(an_if("1 < 0"), YES, NO, NEXT)).done == ["if", "no"]
    assert (await bench.run(an_if("1 < 0", if_false_step_id=""), YES, NO, NEXT)).done == ["if", "next"]


def a_switch(expression: str, **fields: object) -> dict[str, object]:
    ways = {"switch_cases": {"3": "yes", "None": "no", "stop": None}, "switch_default_step_id": "next"}
    return {"id": "switch", "type": "switch", "switch_expression": expression, **ways, "next_step_id": "no", **fields}


@pytest.mark.parametrize(
    ("expression", "value", "done"),
    [
        ("state.n", "3", ["switch", "yes"]),
        ("state.gone", "None", ["switch", "no"]),
        ("state.word.strip()", "stop", ["switch"]),
        ("'else' if state.n else 'x'", "else", ["switch", "next"]),
        ("state.gone + 1", "None", ["switch", "no"]),
    ],
)
async def test_switch_switch_expression(bench: Bench, expression: str, value: str, done: list[str]) -> None:
    ran = await bench.run(a_switch(expression), YES, NO, NEXT, state={"n": 3, "word": " stop "})
    assert (ran.view.status, ran.done) == ("completed", done)
    (told,) = ran.told("switch_decision")
    assert (told["expression"], told["value"]) == (expression, value)


async def test_switch_switch_cases(bench: Bench) -> None:
    for number, done in ((1, ["switch", "yes"]), (2, ["switch", "no"]), (3, ["switch"])):
        switch = a_switch("state.n", switch_cases={"1": "yes", "2": "no", "3": None})
        ran = await bench.run(switch, YES, NO, NEXT, state={"n": number})
        assert ran.done == done
        assert [told["matched_case"] for told in ran.told("switch_decision")] == [str(number)]


async def test_switch_switch_default_step_id(bench: Bench) -> None:
    assert (await bench.run(a_switch("'other'"), YES, NO, NEXT)).done == ["switch", "next"]
    assert (await bench.run(a_switch("'other'", switch_default_step_id=None), YES, NO, NEXT)).done == ["switch"]


async def test_transform_transform_code(bench: Bench) -> None:
    code = (
        "import re\nwords = re.findall(r'[a-z]+', state['user_input'])\nresult = {'n': len(words), 'first': words[0]}"
    )
    transform = {"id": "t", "type": "transform", "transform_code": code, "output_key": "out"}
    ran = await bench.run(transform, message="one two 3")
    assert ran.state == {"out": {"n": 2, "first": "one"}}
    printing = {**transform, "transform_code": "state['user_input'] = 'changed'\nprint(json.dumps([1]))"}
    assert (await bench.run(printing)).view.state == {"user_input": "hi", "out": [1]}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{state.user.name} of {state.user.home.city}", "Ada of Oslo"),
        ("{state.n} {state.list}", "3 [1, 2]"),
        ("{state.gone} {state.user.gone} {state.nothing}", "{state.gone} {state.user.gone} {state.nothing}"),
        ('{{pr}} {"a": 1} {n}', '{{pr}} {"a": 1} {n}'),
        ("", ""),
    ],
)
async def test_print_print_content(bench: Bench, template: str, text: str) -> None:
    state = {"user": {"name": "Ada", "home": {"city": "Oslo"}}, "n": 3, "list": [1, 2], "nothing": None}
    step = {"id": "p", "type": "print", "print_content": template, "output_key": "out"}
    ran = await bench.run(step, state=state)
    assert ran.state["out"] == text
    assert [told["response"] for told in ran.told("final") if "orch_step_id" in told] == [text]


FIRST, SECOND = a_print("first", "1st"), a_print("second", "2nd")


def a_merge(**fields: object) -> dict[str, object]:
    keys = ["second", "given", "gone", "first"]
    return {"id": "m", "type": "merge", "input_keys": keys, "output_key": "out", **fields}


@pytest.mark.parametrize(
    ("strategy", "merged"),
    [
        (
            "list",
            [
                {"source": "Second (second)", "data": "2nd"},
                {"source": "given", "data": [7]},
                {"source": "First (first)", "data": "1st"},
            ],
        ),
        ("dict", {"Second (second)": "2nd", "given": [7], "First (first)": "1st"}),
        ("concat", "[Second (second)]:\n2nd\n\n[given]:\n[7]\n\n[First (first)]:\n1st"),
    ],
)
async def test_merge_merge_strategy(bench: Bench, strategy: str, merged: object) -> None:
    ran = await bench.run(FIRST, SECOND, a_merge(merge_strategy=strategy), state={"given": [7]})
    assert ran.state["out"] == merged
    (told,) = ran.told("merge_complete")
    assert (told["strategy"], told["input_count"]) == (strategy, 3)


async def test_merge_merge_strategy_left_out_is_list(bench: Bench) -> None:
    ran = await bench.run(FIRST, a_merge(merge_strategy=None))
    assert ran.state["out"] == [{"source": "First (first)", "data": "1st"}]


async def test_merge_input_keys(bench: Bench) -> None:
    ran = await bench.run(FIRST, SECOND, a_merge(input_keys=["second"], merge_strategy="dict"))
    assert ran.state["out"] == {"Second (second)": "2nd"}


async def test_merge_input_keys_name_the_step_that_wrote_last(bench: Bench) -> None:
    choose = {**a_switch("state.user_input"), "switch_cases": {"a": "short", "b": "long"}}
    short = {**a_print("short"), "output_key": "draft", "next_step_id": "m"}
    long = {**a_print("long"), "output_key": "draft", "next_step_id": "m"}
    merge = a_merge(input_keys=["draft"], merge_strategy="dict")
    choose["switch_default_step_id"] = choose["next_step_id"] = None
    for message, merged in (("a", {"Short (short)": "short"}), ("b", {"Long (long)": "long"})):
        assert (await bench.run(choose, short, long, merge, message=message)).state["out"] == merged


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["text"], {"a": [1]}),
        (["text", "more"], [{"a": [1]}, [2], {"b": None}]),
        (["value", "gone"], {"c": 3}),
        (["more"], [[2], {"b": None}]),
    ],
)
async def test_extract_json_input_keys(bench: Bench, keys: list[str], found: object) -> None:
    state = {"text": 'Sure: {"a": [1]} as you wished {', "more": '```json\n[2]\n``` and {"b": null}', "value": {"c": 3}}
    step = {"id": "x", "type": "extract_json", "input_keys": keys, "output_key": "out"}
    assert (await bench.run(step, state=state)).state["out"] == found


async def test_extract_json_input_keys_without_any_json(bench: Bench) -> None:
    step = {"id": "x", "name": "X", "type": "extract_json", "input_keys": ["user_input", "gone"]}
    assert (await bench.run(step)).error == "step 'X' (x): there is no JSON in user_input and gone"


COUNT = {
    "id": "count",
    "name": "Count",
    "type": "transform",
    "transform_code": "result = (state['n'] if isinstance(state.get('n'), int) else 0) + 1",
    "output_key": "n",
}


def a_loop(*body: str, **fields: object) -> dict[str, object]:
    return {"id": "loop", "type": "loop", "loop_step_ids": list(body), "next_step_id": None, **fields}


@pytest.mark.parametrize(("count", "times"), [(1, 1), ("4", 4), (None, 3)])
async def test_loop_loop_count(bench: Bench, count: object, times: int) -> None:
    ran = await bench.run(a_loop("count", loop_count=count), COUNT)
    expected = [{"iteration": number, "agent": "Count", "result": number} for number in range(1, times + 1)]
    assert ran.state == {"n": expected}
    told = [(event["iteration"], event["total"]) for event in ran.told("loop_iteration")]
    assert told == [(number, times) for number in range(1, times + 1)]
    assert [event["iterations_completed"] for event in ran.told("loop_complete")] == [times]


async def test_loop_loop_step_ids(bench: Bench) -> None:
    # The order of the list counts, wherever the steps of the body themselves lead.
    body = [a_print("a", next_step_id="c"), a_print("b"), a_print("c", next_step_id="a")]
    ran = await bench.run(a_loop("c", "a", loop_count=2, next_step_id="behind"), *body, a_print("behind"))
    assert ran.done == ["c", "a", "c", "a", "loop", "behind"]


async def test_loop_loop_step_ids_end_the_run_at_an_end(bench: Bench) -> None:
    ran = await bench.run(a_loop("a", "stop"), a_print("a"), {"id": "stop", "type": "end"})
    assert (ran.view.status, ran.done) == ("completed", ["a", "stop"])


async def test_parallel_parallel_branches(bench: Bench) -> None:
    # A branch of one step goes on along next_step_id, one of several steps is what it lists.
    branches = [["a"], ["b", "c"]]
    ran = await bench.run(
        {"id": "fork", "type": "parallel", "parallel_branches": branches, "next_step_id": "meet"},
        a_print("a", next_step_id="a2"),
        a_print("a2", next_step_id="meet"),
        a_print("b", next_step_id="d"),
        a_print("c", next_step_id=None),
        a_print("d"),
        a_print("meet", next_step_id=None),
    )
    assert set(ran.done[:4]) == {"a", "a2", "b", "c"}
    assert ran.done[4:] == ["fork", "meet"]
    assert [told["branch_index"] for told in ran.told("branch_start")] == [0, 1]
    assert [told["branch_count"] for told in ran.told("parallel_complete")] == [2]


async def test_parallel_parallel_branches_run_side_by_side(bench: Bench) -> None:
    wait = {"type": "llm", "prompt_template": 'SCRIPT: [{"say": "done", "wait": 0.6}]', "next_step_id": None}
    fork = {"id": "fork", "type": "parallel", "parallel_branches": [["a"], ["b"], ["c"]], "next_step_id": None}
    ran = await bench.run(fork, *({"id": each, **wait} for each in "abc"))
    # What takes its time in one begins before any other has ended.
    told = [event["type"] for event in ran.events if event.get("orch_step_id") in ("a", "b", "c")]
    assert told[:3] == ["step_start"] * 3
    assert ran.done[3:] == ["fork"]


def a_human(**fields: object) -> dict[str, object]:
    return {"id": "ask", "name": "Ask", "type": "human", "output_key": "answer", **fields}


async def test_human_human_prompt(bench: Bench) -> None:
    ran = await bench.run(
        FIRST,
        a_human(human_prompt="Ship {state.first} to {state.to.city}, {state.gone}?"),
        state={"to": {"city": "Oslo"}},
    )
    prompt = "Ship 1st to Oslo, {state.gone}?"
    assert (ran.view.status, ran.view.human_prompt, ran.view.current_step_id) == ("paused", prompt, "ask")
    (told,) = ran.told("human_input_required")
    assert (told["prompt"], told["orch_step_id"]) == (prompt, "ask")
    assert (await bench.run(a_human())).view.human_prompt == "Please provide input to continue."


async def test_human_human_fields(bench: Bench) -> None:
    fields = [{"name": "approved", "type": "boolean", "label": "OK?"}, {"name": "note", "type": "text", "label": "Why"}]
    answer = {"approved": True, "note": "looks good"}
    waiting = await bench.run(a_human(human_fields=fields))
    assert waiting.view.human_fields == fields
    assert [told["fields"] for told in waiting.told("human_input_required")] == [fields]
    use = {"id": "use", "type": "if_else", "if_condition": "state.answer.approved", "output_key": "shipped"}
    ran = await bench.run(a_human(human_fields=fields), use, answers=[answer])
    assert ran.state == {"answer": answer, "human_response": answer, "shipped": True}


async def test_human_human_timeout_seconds(bench: Bench) -> None:
    waiting = await bench.run(a_human(human_timeout_seconds=0.2))
    keeper = Housekeeper(bench.database, bench.client, StoreGate(bench.database, bench.client))
    deadline = time.monotonic() + 20
    while (await until(bench.database, waiting.run_id, "paused", "failed")).status == "paused":
        assert time.monotonic() < deadline
        await keeper.time_out()
    ran = await bench.ended(waiting.run_id)
    assert ran.error == "nobody answered step 'ask' within its human_timeout_seconds"
    assert (await bench.run(a_human())).view.status == "paused"


async def test_human_input_keys(bench: Bench) -> None:
    # What the answer is about goes with the question.
    ran = await bench.run(FIRST, SECOND, a_human(input_keys=["gone", "second", "first"]))
    assert [told["agent_context"] for told in ran.told("human_input_required")] == ["2nd"]
    without = await bench.run(FIRST, a_human())
    assert [told["agent_context"] for told in without.told("human_input_required")] == [None]
