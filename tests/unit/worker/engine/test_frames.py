"""A cursor is stored and read again by whichever worker goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.errors import NewerCursor
from synapse_worker.engine.frames import (
    ENGINE_VERSION,
    Asked,
    BranchFrame,
    Cursor,
    CursorUnreadable,
    Frame,
    LoopFrame,
    MainFrame,
    ParallelFrame,
    Stack,
)
from tests.unit.worker.engine.documents import searched

START = Cursor((MainFrame("a"),))
COUNTS = st.integers(0, 10_000)
IDS = st.text(min_size=1)
MOMENTS = st.floats(0, 2e9)
LOOPS: st.SearchStrategy[Frame] = st.builds(LoopFrame, IDS, COUNTS, MOMENTS, COUNTS, COUNTS)


def stacks(outermost: st.SearchStrategy[Frame], deeper: int = 2) -> st.SearchStrategy[Stack]:
    """Every form that a stack may have."""
    tops: st.SearchStrategy[list[Frame]] = st.just([])
    if deeper:
        branches = st.lists(stacks(st.builds(BranchFrame, COUNTS), deeper - 1), max_size=3).map(tuple)
        tops |= st.builds(ParallelFrame, IDS, MOMENTS, branches).map(lambda frame: [frame])
    return st.tuples(outermost, st.lists(LOOPS, max_size=2), tops).map(lambda parts: (parts[0], *parts[1], *parts[2]))


@searched
@given(
    stacks(st.builds(MainFrame, st.none() | IDS)),
    st.dictionaries(IDS, COUNTS),
    COUNTS,
    st.none() | st.builds(Asked, IDS, IDS, COUNTS, MOMENTS),
)
def test_a_cursor_survives_storage(frames: Stack, visits: dict[str, int], steps_done: int, asked: Asked | None) -> None:
    cursor = Cursor(frames, visits, steps_done, asked)
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


def test_a_cursor_of_the_release_before_is_read() -> None:
    stored = {"engine_version": 1, "frames": [{"kind": "main", "step_id": "a"}], "visits": {"a": 2}, "steps_done": 3}
    assert Cursor.from_json(stored) == Cursor((MainFrame("a"),), {"a": 2}, 3)


def test_stacks_are_found_and_changed_by_their_path() -> None:
    inner = ParallelFrame("q", 2.0, ((BranchFrame(0),), (BranchFrame(1), LoopFrame("l", 0, 3.0))))
    outer = ParallelFrame("p", 1.0, ((BranchFrame(2),), (BranchFrame(0), inner)))
    cursor = Cursor((MainFrame("p"), outer))
    assert cursor.stack((1, 1)) == (BranchFrame(1), LoopFrame("l", 0, 3.0))
    assert [loop.step_id for loop in cursor.loops()] == ["l"]
    changed = cursor.with_stack((1, 1), (BranchFrame(2),))
    assert changed.stack((1, 1)) == (BranchFrame(2),)
    assert changed.stack((1, 0)) == cursor.stack((1, 0))
    assert changed.stack((0,)) == cursor.stack((0,))


def test_a_newer_cursor_is_left_alone() -> None:
    stored = {**START.to_json(), "engine_version": ENGINE_VERSION + 1, "frames": "in a form of later"}
    with pytest.raises(NewerCursor) as caught:
        Cursor.from_json(stored)
    assert caught.value.final is False


@pytest.mark.parametrize(
    "change",
    [
        {"engine_version": None},
        {"engine_version": True},
        {"frames": []},
        {"frames": None},
        {"frames": [{"kind": "loop", "step_id": "a"}]},
        {"frames": [{"kind": "branch", "index": 0}]},
        {"frames": [{"kind": "main", "step_id": "a"}, {"kind": "main", "step_id": "a"}]},
        {"frames": [{"kind": "main", "step_id": "a"}, {"kind": "spiral", "step_id": "a", "began": 0}]},
        {"frames": [{"kind": "main", "step_id": "a"}, {"kind": "parallel", "step_id": "a", "began": 0}]},
        {"frames": "main"},
        {"frames": [{"kind": "main", "step_id": 3}]},
        {"visits": None},
        {"steps_done": -1},
    ],
)
def test_a_broken_cursor_is_final(change: dict[str, object]) -> None:
    with pytest.raises(CursorUnreadable) as caught:
        Cursor.from_json({**START.to_json(), **change})
    assert caught.value.final is True
