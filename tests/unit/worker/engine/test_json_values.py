"""JSON in, JSON out: what cannot be stored is refused with a reason, all else comes back as it was."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.json_values import MAX_DEPTH, JsonValue, NotJson, depth_exceeds, dumps, loads
from tests.unit.worker.engine.documents import searched

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
VALUES: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=30,
)


@searched
@given(VALUES)
def test_values_survive(value: JsonValue) -> None:
    assert loads(dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN"),
        ('{"a": [Infinity]}', "Infinity"),
        ("-Infinity", "-Infinity"),
        ("1e999", "out of range"),
        ("9" * 5000, "digits"),
        ('"a\\u0000b"', "zero byte"),
        ('{"\\u0000": 1}', "zero byte"),
        ('["\\ud800"]', "surrogate"),
        ('["\\uDC00"]', "surrogate"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("[" * 101 + "]" * 101, "deeper than 100"),
        ("[" * 100_000 + "]" * 100_000, "deeper than 100"),
    ],
)
def test_what_cannot_be_stored_is_refused(text: str, reason: str) -> None:
    with pytest.raises(NotJson, match=reason):
        loads(text)


@pytest.mark.parametrize("text", ['"\\\\u0000"', '"\\ud83d\\ude00"', "[" * 100 + "]" * 100, '{"a": 1e300}'])
def test_what_only_looks_like_it_is_taken(text: str) -> None:
    loads(text)


def test_writing_refuses_what_is_no_json() -> None:
    for value in (math.nan, {1, 2}, object()):
        with pytest.raises(NotJson):
            dumps(value)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotJson, match="deeply"):
        dumps(deep)


@pytest.mark.parametrize(("depth", "exceeds"), [(0, False), (1, False), (MAX_DEPTH, False), (MAX_DEPTH + 1, True)])
def test_depth_counts_brackets(depth: int, exceeds: bool) -> None:
    value: JsonValue = 1
    for _ in range(depth):
        value = {"x": value}
    assert depth_exceeds(value, MAX_DEPTH) is exceeds
