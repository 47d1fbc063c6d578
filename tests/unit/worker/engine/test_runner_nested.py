"""Loops and parallel steps as decisions: order, limits, and the same end whoever goes on, wherever it stood."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.frames import Cursor, MainFrame
from synapse_worker.engine.model import Definition
from synapse_worker.engine.runner import (
    Ask,
    Enter,
    Execute,
    Fail,
    Finish,
    Leave,
    advance,
    begin,
    decide,
    enter,
    iteration_begun,
    resume_paused,
)
from tests.unit.worker.engine.documents import Document, a_definition, a_loop, a_parallel, a_print, searched


def walk(
    definition: Definition, choose: random.Random | None = None, crashes: bool = False
) -> tuple[list[str], object]:
    """Run on decisions alone; of several that are possible one is chosen. Entering is +, leaving is -.

    With crashes, the cursor is now and then what was stored last: entering is not stored.
    """
    cursor = stored = begin(definition)
    done: list[str] = []
    ever = 0
    while True:
        ever += 1
        assert ever < 10_000
        if crashes and choose is not None and choose.random() < 0.3:
            cursor = Cursor.from_json(stored.to_json())
        decisions = decide(definition, cursor)
        paths = [decision.path for decision in decisions if isinstance(decision, Execute | Enter | Leave)]
        assert len(set(paths)) == len(paths)
        decision = choose.choice(decisions) if choose else decisions[0]
        match decision:
            case Enter():
                done.append(f"+{decision.step.id}")
                cursor = enter(cursor, decision, since=len(done), began=1.0)
            case Execute() | Leave():
                sign = "-" if isinstance(decision, Leave) else ""
                done.append(f"{sign}{decision.step.id}:{decision.visit}")
                cursor = stored = advance(definition, cursor, decision, decision.step.next_step_id)
            case _:
                return done, decision


def test_a_loop_does_its_body_as_often_as_it_says_and_goes_on() -> None:
    definition = a_definition(
        a_loop("l", "a", "b", loop_count=2, next_step_id="c"),
        a_print("a", next_step_id="c"),
        a_print("b"),
        a_print("c"),
    )
    assert walk(definition) == (["+l", "a:1", "b:1", "a:2", "b:2", "-l:1", "c:1"], Finish())


def test_a_body_may_do_a_step_twice_and_more_often_than_its_max_iterations() -> None:
    definition = a_definition(a_loop("l", "a", "a", loop_count=3), a_print("a", max_iterations=1))
    done, end = walk(definition)
    assert done == ["+l", *(f"a:{visit}" for visit in range(1, 7)), "-l:1"]
    assert end == Finish()


def test_what_a_body_did_counts_where_the_main_flow_goes_there() -> None:
    definition = a_definition(a_loop("l", "a", loop_count=3, next_step_id="a"), a_print("a", max_iterations=3))
    done, _ = walk(definition)
    assert done[-1] == "-l:1"


def test_branches_are_all_ready_and_each_is_a_chain() -> None:
    definition = a_definition(
        a_parallel("p", ["a", "b"], ["c"], next_step_id="m"), a_print("a"), a_print("b"), a_print("c"), a_print("m")
    )
    cursor = begin(definition)
    (into,) = decide(definition, cursor)
    assert isinstance(into, Enter)
    cursor = enter(cursor, into, since=0, began=0.0)
    first = decide(definition, cursor)
    assert [(task.step.id, task.path) for task in first if isinstance(task, Execute)] == [("a", (0,)), ("c", (1,))]
    assert isinstance(first[1], Execute)
    cursor = advance(definition, cursor, first[1], "b")
    (still,) = decide(definition, cursor)
    assert still == first[0]
    assert walk(definition)[0] == ["+p", "a:1", "b:1", "c:1", "-p:1", "m:1"]


def test_loops_and_branches_nest() -> None:
    definition = a_definition(
        a_loop("outer", "p", "z", loop_count=2),
        a_parallel("p", ["inner"], ["x"]),
        a_loop("inner", "y", loop_count=2),
        a_print("x"),
        a_print("y"),
        a_print("z"),
    )
    once = ["+p", "+inner", "y:{}", "y:{}", "-inner:{}", "x:{}", "-p:{}", "z:{}"]
    done, end = walk(definition)
    assert [text.split(":")[0] for text in done] == ["+outer", *(text.split(":")[0] for text in once * 2), "-outer"]
    assert "y:4" in done
    assert end == Finish()


@pytest.mark.parametrize("path", ["body", "branch"])
def test_an_end_step_ends_the_run_wherever_it_stands(path: str) -> None:
    end = {"id": "e", "name": "E", "type": "end"}
    outer = a_loop("o", "a", "e", "b") if path == "body" else a_parallel("o", ["a", "e", "b"], ["c"])
    done, last = walk(a_definition(outer, a_print("a"), end, a_print("b"), a_print("c")))
    assert (done, last) == (["+o", "a:1", "e:1"], Finish())


def test_a_loop_and_each_step_of_it_count_for_max_total_turns() -> None:
    steps = (a_loop("l", "a", loop_count=2), a_print("a"))
    assert walk(a_definition(*steps, max_total_turns=3))[1] == Finish()
    done, end = walk(a_definition(*steps, max_total_turns=2))
    assert done == ["+l", "a:1"]
    assert end == Fail(
        "The run has done 2 steps and step 'A' (a) would be one more; "
        "max_total_turns of orchestration 'Triage' (orch_1) is 2."
    )


def test_branches_together_do_not_pass_max_total_turns() -> None:
    definition = a_definition(a_parallel("p", ["a"], ["b"]), a_print("a"), a_print("b"), max_total_turns=2)
    done, end = walk(definition)
    assert done == ["+p"]
    assert isinstance(end, Fail)


def test_the_loop_is_named_where_a_step_is_directly_in_its_body() -> None:
    definition = a_definition(a_loop("l", "a", "p"), a_print("a"), a_parallel("p", ["b"]), a_print("b"))
    cursor = begin(definition)
    seen: dict[str, tuple[str | None, bool]] = {}
    while not isinstance((decision := decide(definition, cursor)[0]), Finish):
        assert isinstance(decision, Execute | Enter | Leave)
        loop = decision.loop.step_id if decision.loop else None
        seen[f"{type(decision).__name__} {decision.step.id}"] = (loop, decision.in_loop)
        if isinstance(decision, Enter):
            cursor = enter(cursor, decision, since=0, began=0.0)
        else:
            cursor = advance(definition, cursor, decision, None)
    assert seen == {
        "Enter l": (None, False),
        "Execute a": ("l", True),
        "Enter p": ("l", True),
        "Execute b": (None, True),
        "Leave p": ("l", True),
        "Leave l": (None, False),
    }


def test_a_new_iteration_is_told_from_a_further_step() -> None:
    definition = a_definition(a_loop("l", "a", "b", loop_count=2), a_print("a"), a_print("b"))
    cursor = begin(definition)
    begun: list[int | None] = []
    while not isinstance((decision := decide(definition, cursor)[0]), Finish):
        if isinstance(decision, Enter):
            cursor = enter(cursor, decision, since=0, began=0.0)
        elif isinstance(decision, Execute | Leave):
            cursor = advance(definition, cursor, decision, None)
            frame = iteration_begun(definition, cursor, decision.path)
            begun.append(frame.iteration if frame else None)
    assert begun == [None, 2, None, None, None]


def test_a_cursor_whose_loop_the_definition_does_not_have_ends_the_run() -> None:
    with_loop = a_definition(a_loop("l", "a"), a_print("a"))
    (into,) = decide(with_loop, begin(with_loop))
    assert isinstance(into, Enter)
    cursor = enter(begin(with_loop), into, since=0, began=0.0)
    (decision,) = decide(a_definition(a_print("a")), cursor)
    assert isinstance(decision, Fail)
    assert "stands at step 'l'" in decision.sentence


def graphs(depth: int, prefix: str) -> st.SearchStrategy[tuple[list[Document], str]]:
    """Return steps and the id of the one that stands for them all, nested up to `depth`."""
    leaf = st.just(([a_print(f"{prefix}x")], f"{prefix}x"))
    if not depth:
        return leaf

    def looped(parts: list[tuple[list[Document], str]], count: int) -> tuple[list[Document], str]:
        inner = [step for steps, _ in parts for step in steps]
        return [*inner, a_loop(f"{prefix}l", *(top for _, top in parts), loop_count=count)], f"{prefix}l"

    def forked(parts: list[tuple[list[Document], str]]) -> tuple[list[Document], str]:
        inner = [step for steps, _ in parts for step in steps]
        return [*inner, a_parallel(f"{prefix}p", *([top] for _, top in parts))], f"{prefix}p"

    parts = st.integers(1, 3).flatmap(
        lambda count: st.tuples(*(graphs(depth - 1, f"{prefix}{number}") for number in range(count))).map(list)
    )
    return leaf | st.builds(looped, parts, st.integers(1, 3)) | st.builds(forked, parts)


@searched
@given(graphs(3, "s"), st.randoms(use_true_random=False))
def test_crashes_and_the_order_of_branches_change_nothing(
    graph: tuple[list[Document], str], dice: random.Random
) -> None:
    steps, top = graph
    definition = a_definition(*steps, entry_step_id=top, max_total_turns=10_000)
    expected = sorted(text for text in walk(definition)[0] if not text.startswith("+"))
    done, end = walk(definition, dice, crashes=True)
    assert sorted(text for text in done if not text.startswith("+")) == expected
    assert end == Finish()


def test_the_cursor_stays_small_in_a_long_loop() -> None:
    definition = a_definition(a_loop("l", "a", loop_count=100_000), a_print("a"), max_total_turns=10**9)
    cursor = begin(definition)
    (into,) = decide(definition, cursor)
    assert isinstance(into, Enter)
    cursor = enter(cursor, into, since=0, began=0.0)
    for _ in range(2_000):
        (task,) = decide(definition, cursor)
        assert isinstance(task, Execute)
        cursor = advance(definition, cursor, task, None)
    assert len(str(cursor.to_json())) < 300
    assert cursor.frames[0] == MainFrame("l")


def test_a_human_step_asks_until_it_is_advanced() -> None:
    definition = a_definition({"id": "h", "name": "H", "type": "human", "next_step_id": "b"}, a_print("b"))
    cursor = begin(definition)
    (task,) = decide(definition, cursor)
    assert (type(task), task) == (Ask, Ask(definition.steps["h"], 1))
    assert isinstance(task, Ask)
    (task,) = decide(definition, advance(definition, cursor, task, "b"))
    assert isinstance(task, Execute)


def test_a_run_that_was_paused_without_a_cursor_stands_at_its_question() -> None:
    definition = a_definition(a_print("a", next_step_id="h"), {"id": "h", "type": "human"})
    cursor = resume_paused("run_1", "h", [{"step_id": "a", "status": "completed"}])
    (task,) = decide(definition, cursor)
    assert isinstance(task, Ask)
    assert cursor.asked is not None
    assert (cursor.asked.run_id, cursor.asked.step_id, cursor.asked.visit) == ("run_1", task.step.id, task.visit)
