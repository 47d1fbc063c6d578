"""`{state.key}` is filled in, and nothing else is touched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.engine.templates import fill
from tests.unit.worker.engine.documents import searched

STATE = {"name": "Ann", "n": 3, "zero": 0, "no": False, "nothing": None, "empty": "", "user": {"city": {"zip": 8010}}}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Hi {state.name}!", "Hi Ann!"),
        ("{state.name}{state.name}", "AnnAnn"),
        ("{state.n} {state.zero} {state.no} {state.empty}.", "3 0 False ."),
        ("{state.user.city.zip}", "8010"),
        ("{state.user.city}", "{'zip': 8010}"),
        ("{state.missing}", "{state.missing}"),
        ("{state.nothing}", "{state.nothing}"),
        ("{state.user.street}", "{state.user.street}"),
        ("{state.name.first}", "{state.name.first}"),
        ("{{pr_number}} {{state}} {state}", "{{pr_number}} {{state}} {state}"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("def f(): return {1: '{x}'}", "def f(): return {1: '{x}'}"),
        ("{{state.name}}", "{Ann}"),
        ("{ state.name }", "{ state.name }"),
        ("{state.}", "{state.}"),
        ("{state..name}", "{state..name}"),
        ("{state.name!r} {state.name:>5}", "{state.name!r} {state.name:>5}"),
        ("", ""),
    ],
)
def test_filling(template: str, text: str) -> None:
    assert fill(template, STATE) == text


@searched
@given(st.text())
def test_text_without_placeholder_stays(text: str) -> None:
    if "{state." not in text:
        assert fill(text, STATE) == text


@searched
@given(st.text())
def test_a_value_is_not_filled_again(value: str) -> None:
    assert fill("<{state.v}>", {"v": value + "{state.name}", "name": "x"}) == f"<{value}{{state.name}}>"
