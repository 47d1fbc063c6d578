"""Conditions that are evaluated without the sandbox say what the sandbox says, and leave the rest to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import pytest

from synapse_worker.engine import plain_expressions
from synapse_worker.engine.dialect import prepare_expression
from synapse_worker.engine.errors import CodeFailed
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.plain_expressions import NotPlain
from synapse_worker.engine.sandbox import Sandbox

STATE: Mapping[str, object] = {
    "score": 0.9,
    "count": 3,
    "zero": 0,
    "kind": "bug",
    "empty": "",
    "word": "Straße",
    "yes": True,
    "no": False,
    "nothing": None,
    "tags": ["a", "b", 3, None],
    "user": {"name": "Ada", "address": {"city": "London"}, "age": 36},
    "flat": {"a": 1},
    "nested": [[1], [2]],
}
OPERANDS = [
    "state.score",
    "state.count",
    "state.zero",
    "state.kind",
    "state.empty",
    "state.word",
    "state.yes",
    "state.nothing",
    "state.missing",
    "state.tags",
    "state['user']['name']",
    "state.user.address.city",
    "state.flat",
    "'bug'",
    "3",
    "-1",
    "0.9",
    "True",
    "None",
]
OPERATORS = ["==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or"]
PLAIN = [
    "state.score > 0.8 and state.kind == 'bug'",
    "state.score > 0.8 and not state.no or state.missing",
    "(state.score or 0) >= 0.9",
    "(state.missing or 0) >= 0.9",
    "state.missing is None",
    "state.yes is True",
    "state.count is not None and state.count > 2",
    "'a' in state.tags",
    "'name' in state.user",
    "state.user.address.city == 'London'",
    "state.missing.further.still == None",
    "state.kind",
    "state.zero or state.empty or state.nothing",
    "not state.tags",
    "'ß' in state.word",
    "state['user']['age'] == 36",
    "len(state.tags) > 2",
    "len(state.word) == 6 and len(state.user) == 3",
    "1 < state.count < 5",
    "5 > state.count > 3 > state.missing",
    "state.zero <= state.score <= state.yes",
]
LEFT_TO_THE_SANDBOX = [
    "len(state.count) > 2",
    "len(state.missing)",
    "len(state.tags, 1)",
    "state.user.name.lower() == 'ada'",
    "state.count + 1 == 4",
    "state.count is 3",
    "state.tags[0] == 'a'",
    "3 < state.count + 1 < 5",
    "any(tag == 'a' for tag in state.tags)",
    "f'{state.kind}' == 'bug'",
    "state.user",
    "state.tags",
    "state.nested == [[1], [2]]",
    "state.kind > 3",
    "state.kind in 3",
    "state.kind.name == 'x'",
    "state.big == 1",
    "state.half == 'x'",
    "state.long == 'x'",
    "state.many == 'x'",
    "1e400 > 1",
    "__import__('os')",
    "'a' if state.yes else 'b'",
    "not " * 40 + "state.yes",
]
HARD: Mapping[str, object] = {
    "big": 2**60,
    "half": "\ud800",
    "long": "x" * 200_000,
    "many": [0] * 2_000,
}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for a sandbox that lives for the module."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def sandbox(runner: asyncio.Runner) -> Iterator[Sandbox]:
    """The interpreter that is the measure."""
    sandbox = Sandbox()
    runner.run(sandbox.__aenter__())
    yield sandbox
    runner.run(sandbox.__aexit__(None, None, None))


def plainly(expression: str, state: Mapping[str, object] = STATE) -> JsonValue:
    return plain_expressions.evaluate(prepare_expression(expression).source, state)


@pytest.fixture
def in_the_sandbox(runner: asyncio.Runner, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, which is asked although there would be a shorter way."""

    def never(*_: object) -> JsonValue:
        raise NotPlain

    monkeypatch.setattr(plain_expressions, "evaluate", never)
    return sandbox


@pytest.mark.parametrize("expression", PLAIN)
def test_a_plain_condition_is_what_the_sandbox_says(
    expression: str, runner: asyncio.Runner, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    value = plainly(expression)
    judge: Sandbox = request.getfixturevalue("in_the_sandbox")
    said = runner.run(judge.evaluate(expression, STATE, 5))
    assert (type(value), value) == (type(said), said)


def test_no_pair_of_values_is_compared_in_another_way_than_in_the_sandbox(
    runner: asyncio.Runner, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    expressions = [f"{left} {each} {right}" for left in OPERANDS for each in OPERATORS for right in OPERANDS]
    values: dict[str, JsonValue] = {}
    for expression in expressions:
        try:
            values[expression] = plainly(expression)
        except NotPlain:
            continue
    judge: Sandbox = request.getfixturevalue("in_the_sandbox")

    async def judged(expression: str) -> JsonValue:
        try:
            return await judge.evaluate(expression, STATE, 5)
        except CodeFailed as error:
            return f"refused: {error}"

    async def all_judged() -> list[JsonValue]:
        return [await judged(expression) for expression in values]

    said = dict(zip(values, runner.run(all_judged()), strict=True))
    differing = {
        expression: (value, said[expression])
        for expression, value in values.items()
        if (type(value), value) != (type(said[expression]), said[expression])
    }
    assert differing == {}
    assert len(values) > len(expressions) / 2


@pytest.mark.parametrize("expression", LEFT_TO_THE_SANDBOX)
def test_what_is_not_certain_is_left_to_the_sandbox(expression: str) -> None:
    with pytest.raises(NotPlain):
        plainly(expression, {**STATE, **HARD})


def test_a_condition_is_true_as_if_sees_it(runner: asyncio.Runner, sandbox: Sandbox) -> None:
    assert runner.run(sandbox.test("state.kind", STATE, 5)) is True
    assert runner.run(sandbox.test("state.empty", STATE, 5)) is False
