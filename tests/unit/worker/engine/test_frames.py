"""A cursor is stored and read again by whichever worker goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.errors import NewerCursor
from synapse_worker.engine.frames import ENGINE_VERSION, MAIN, Cursor, CursorUnreadable, Frame
from tests.unit.worker.engine.documents import searched

START = Cursor((Frame(MAIN, "a"),))


@searched
@given(
    st.none() | st.text(min_size=1),
    st.dictionaries(st.text(min_size=1), st.integers(0, 1000)),
    st.integers(0, 10_000),
)
def test_a_cursor_survives_storage(step_id: str | None, visits: dict[str, int], steps_done: int) -> None:
    cursor = Cursor((Frame(MAIN, step_id),), visits, steps_done)
    assert Cursor.from_json(json.loads(json.dumps(cursor.to_json()))) == cursor


def test_moving_on_counts() -> None:
    behind = START.finished("a", "b").finished("b", "a").moved_to("c").finished("c", None)
    assert behind.visits == {"a": 1, "b": 1, "c": 1}
    assert (behind.steps_done, behind.current_step_id) == (3, None)
    assert START.visits == {}


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
        {"frames": [{"kind": "main", "step_id": 3}]},
        {"visits": None},
        {"steps_done": -1},
    ],
)
def test_a_broken_cursor_is_final(change: dict[str, object]) -> None:
    with pytest.raises(CursorUnreadable) as caught:
        Cursor.from_json({**START.to_json(), **change})
    assert caught.value.final is True
