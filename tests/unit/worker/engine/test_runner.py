"""What a run does next: plain chains, cycles, limits, and the same answer for whoever asks again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.frames import Cursor, CursorUnreadable, MainFrame
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.runner import (
    Execute,
    Fail,
    Finish,
    LimitReached,
    advance,
    begin,
    decide,
    initial_state,
    resume,
)
from tests.unit.worker.engine.documents import a_definition, a_print, searched

Route = Callable[[Step], str | None]


def walk(definition: Definition, route: Route = lambda step: step.next_step_id) -> tuple[list[str], Finish | Fail]:
    """Run on decisions alone; refused transitions are noted with a minus sign."""
    cursor = begin(definition)
    done: list[str] = []
    while True:
        (decision,) = decide(definition, cursor)
        assert decide(definition, Cursor.from_json(cursor.to_json())) == [decision]
        if isinstance(decision, Finish | Fail):
            return done, decision
        if isinstance(decision, LimitReached):
            assert decision.iterations >= decision.max_iterations
            done.append(f"-{decision.step.id}")
            cursor = decision.cursor
            continue
        assert isinstance(decision, Execute)
        assert decision.visit == cursor.visits_of(decision.step.id) + 1
        done.append(decision.step.id)
        cursor = advance(definition, cursor, decision, route(decision.step))


def test_a_chain() -> None:
    definition = a_definition(a_print("a", next_step_id="b"), a_print("b", next_step_id="c"), a_print("c"))
    assert walk(definition) == (["a", "b", "c"], Finish())


def test_a_step_refused_at_max_iterations_is_skipped() -> None:
    definition = a_definition(
        a_print("draft", next_step_id="review"),
        a_print("review", max_iterations=9, next_step_id="send"),
        a_print("send"),
    )

    done, end = walk(definition, lambda step: "draft" if step.id == "review" else step.next_step_id)
    assert done[:6] == ["draft", "review"] * 3
    # draft is refused from here on; the way behind it is review, until that has had its nine
    assert done[6:] == ["-draft", "review"] * 6 + ["-draft", "-review", "send"]
    assert end == Finish()


def test_a_refused_step_without_a_next_one_ends_the_run() -> None:
    definition = a_definition(a_print("a", max_iterations=2), a_print("b"))
    assert walk(definition, lambda step: "a") == (["a", "a", "-a"], Finish())


def test_a_circle_of_refused_steps_ends_the_run() -> None:
    definition = a_definition(a_print("a", next_step_id="b"), a_print("b", next_step_id="a"))
    assert walk(definition) == (["a", "b"] * 3 + ["-a"], Finish())


def test_a_step_that_may_run_never() -> None:
    definition = a_definition(a_print("a", max_iterations=0, next_step_id="b"), a_print("b"))
    assert walk(definition) == (["-a", "b"], Finish())


def test_limit_reached_says_the_numbers() -> None:
    definition = a_definition(a_print("a", max_iterations=2, next_step_id="b"), a_print("b"))
    cursor = Cursor((MainFrame("a"),), {"a": 2}, 2)
    (decision,) = decide(definition, cursor)
    assert isinstance(decision, LimitReached)
    assert (decision.step.id, decision.iterations, decision.max_iterations) == ("a", 2, 2)
    assert decision.cursor == Cursor((MainFrame("b"),), {"a": 2}, 2)


def test_more_steps_than_max_total_turns() -> None:
    definition = a_definition(a_print("a", next_step_id="a", max_iterations=50), max_total_turns=5)
    done, end = walk(definition)
    assert done == ["a"] * 5
    assert end == Fail(
        "The run has done 5 steps and step 'A' (a) would be one more; "
        "max_total_turns of orchestration 'Triage' (orch_1) is 5."
    )


def test_exactly_max_total_turns_is_enough() -> None:
    definition = a_definition(a_print("a", next_step_id="b"), a_print("b"), max_total_turns=2)
    assert walk(definition) == (["a", "b"], Finish())


def test_an_unknown_step() -> None:
    definition = a_definition(a_print("a"))
    done, end = walk(definition, lambda step: "gone")
    assert done == ["a"]
    assert end == Fail("The run stands at step 'gone', which orchestration 'Triage' (orch_1) does not have.")


def test_the_visit_counts_finished_rows() -> None:
    definition = a_definition(a_print("a"))
    assert decide(definition, Cursor((MainFrame("a"),), {"a": 1}, 1)) == [Execute(definition.steps["a"], 2)]


@searched
@given(st.data())
def test_every_graph_comes_to_an_end(data: st.DataObject) -> None:
    ids = [f"s{number}" for number in range(data.draw(st.integers(1, 5)))]
    target = st.none() | st.sampled_from(ids)
    steps = [
        a_print(identity, next_step_id=data.draw(target), max_iterations=data.draw(st.integers(0, 4)))
        for identity in ids
    ]
    definition = a_definition(*steps, max_total_turns=data.draw(st.integers(1, 12)))
    done, _ = walk(definition, lambda step: data.draw(target))
    executed = [step for step in done if not step.startswith("-")]
    assert len(executed) <= definition.max_total_turns
    for identity in ids:
        assert executed.count(identity) <= definition.steps[identity].max_iterations
    # between two executed steps, no step is skipped twice
    assert all(len(set(run)) == len(run) for run in _skipped(done))


def _skipped(done: list[str]) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for step in done:
        if step.startswith("-"):
            runs[-1].append(step)
        else:
            runs.append([])
    return runs


@pytest.mark.parametrize(
    ("user_input", "initial", "expected"),
    [
        ("hi", None, {"n": 1, "none": None, "user_input": "hi"}),
        ("hi", {"n": 2, "extra": []}, {"n": 2, "none": None, "user_input": "hi", "extra": []}),
        ({"a": 1}, {"user_input": "mine"}, {"n": 1, "none": None, "user_input": "mine"}),
        (None, {}, {"n": 1, "none": None, "user_input": None}),
    ],
)
def test_the_state_a_run_starts_with(
    user_input: object, initial: dict[str, object] | None, expected: dict[str, object]
) -> None:
    schema = {
        "n": {"type": "number", "default": 1},
        "none": {"default": None},
        "no_default": {"type": "text"},
        "odd": 3,
    }
    assert initial_state(a_definition(a_print("a"), state_schema=schema), user_input, initial) == expected


def test_defaults_are_not_shared_between_runs() -> None:
    definition = a_definition(a_print("a"), state_schema={"list": {"default": []}})
    first = initial_state(definition, "", None)
    assert isinstance(first["list"], list)
    first["list"].append(1)
    assert initial_state(definition, "", None)["list"] == []


def entry(step_id: str, status: str = "completed") -> dict[str, object]:
    return {"step_id": step_id, "status": status}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], ("a", 1)),
        ([entry("a", "failed")], ("a", 1)),
        ([entry("a"), entry("b", "failed")], ("b", 1)),
        ([entry("a"), entry("b"), entry("a"), entry("b", "failed")], ("b", 2)),
        ([entry("a", "failed"), entry("a"), entry("b", "failed")], ("b", 1)),
    ],
)
def test_a_run_without_a_cursor_is_resumed_at_its_failed_step(
    history: list[dict[str, object]], expected: tuple[str, int]
) -> None:
    definition = a_definition(a_print("a", next_step_id="b"), a_print("b"))
    cursor = resume(definition, history)
    (decision,) = decide(definition, cursor)
    assert isinstance(decision, Execute)
    assert (decision.step.id, decision.visit) == expected
    assert cursor.steps_done == sum(each["status"] == "completed" for each in history)


def test_a_failed_step_that_the_definition_has_no_more_ends_the_run() -> None:
    definition = a_definition(a_print("a"))
    (decision,) = decide(definition, resume(definition, [entry("gone", "failed")]))
    assert isinstance(decision, Fail)


def test_finished_steps_without_a_failed_one_say_not_where_to_go_on() -> None:
    with pytest.raises(CursorUnreadable, match="no checkpoint"):
        resume(a_definition(a_print("a")), [entry("a")])
