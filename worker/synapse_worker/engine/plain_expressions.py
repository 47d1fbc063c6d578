"""Conditions that only compare what is in the state, evaluated here and at once.

Most conditions are of the kind `state.score > 0.8 and state.kind == 'bug'`: they call nothing of the user's, so nothing
needs to be kept from them, and a call of the sandbox costs half of a small run's processor time. Read is what `dialect`
makes of them, so one module decides what dots and brackets mean. Whatever is not certain to be the same in the sandbox
is left to it: other syntax, values that are no JSON, and everything that raises, whose sentence is then the sandbox's.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from synapse_worker.engine.json_values import JsonValue

Read = Callable[[object], object]
"""From the state to a value."""

_LONGEST_TEXT = 100_000
_LONGEST_LIST = 1_000
_LARGEST_INT = 2**53
"""Up to here an int and a float compare alike in any implementation."""
_DEEPEST = 20

# Whether two values can be compared at all is only known by trying it.
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, place: operator.contains(place, value),
    ast.NotIn: lambda value, place: not operator.contains(place, value),
}


class NotPlain(Exception):
    """The sandbox has to say what the expression is."""


def evaluate(source: str, state: Mapping[str, object]) -> JsonValue:
    """Return the value of a prepared expression over `state`: a text, a number, True, False or None.

    Args:
        source: as `dialect.prepare_expression` has written it.

    Raises:
        NotPlain: it is no plain expression, or has no value over this state.
    """
    read = _compiled(source)
    if read is None:
        raise NotPlain
    try:
        return _scalar(read(state))
    except Exception as error:
        raise NotPlain from error


@lru_cache(maxsize=1024)
def _compiled(source: str) -> Read | None:
    try:
        return _read(ast.parse(source, mode="eval").body, _DEEPEST)
    except (NotPlain, SyntaxError, ValueError, RecursionError):
        return None


def _read(node: ast.expr, deepest: int) -> Read:
    if deepest == 0:
        raise NotPlain
    match node:
        case ast.Constant(value=constant):
            value = _scalar(constant)
            return lambda _: value
        case ast.Name(id="state"):
            return lambda state: state
        case ast.Call(func=ast.Name(id="_get" | "_item"), args=[place, ast.Constant(value=str(key))], keywords=[]):
            return _member(_read(place, deepest - 1), key)
        case ast.BoolOp(op=ast.And()):
            return _up_to([_read(each, deepest - 1) for each in node.values], truth=False)
        case ast.BoolOp(op=ast.Or()):
            return _up_to([_read(each, deepest - 1) for each in node.values], truth=True)
        case ast.UnaryOp(op=ast.Not()):
            operand = _read(node.operand, deepest - 1)
            return lambda state: not operand(state)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return lambda _: -number
        case ast.Call(func=ast.Name(id="len"), args=[place], keywords=[]):
            measured = _read(place, deepest - 1)
            return lambda state: len(_sized(measured(state)))
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip((left, *rights), ops, rights, strict=False)
            compared = [_comparison(_read(one, deepest - 1), op, other, deepest) for one, op, other in pairs]
            return _up_to(compared, truth=False)
    raise NotPlain


def _member(place: Read, key: str) -> Read:
    def read(state: object) -> object:
        held = place(state)
        if held is None:
            return None
        if not isinstance(held, Mapping):
            raise NotPlain  # a method's name, or a mistake
        value = held.get(key)
        return value if isinstance(value, dict | list) else _scalar(value)

    return read


def _sized(value: object) -> str | dict[str, object] | list[object]:
    if not isinstance(value, str | dict | list):
        raise NotPlain
    return value


def _up_to(parts: list[Read], *, truth: bool) -> Read:
    """Return what reads one part after the other, up to the first that is as true as that, as `and` and `or` do."""

    def read(state: object) -> object:
        value: object = None
        for part in parts:
            value = part(state)
            if bool(value) is truth:
                break
        return value

    return read


def _comparison(left: Read, op: ast.cmpop, right: ast.expr, deepest: int) -> Read:
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))):
            raise NotPlain  # of these alone there is one each
        wanted, same = right.value, isinstance(op, ast.Is)
        return lambda state: (left(state) is wanted) is same
    compare, other = _COMPARISONS[type(op)], _read(right, deepest - 1)
    within = isinstance(op, ast.In | ast.NotIn)

    def read(state: object) -> object:
        value, place = left(state), other(state)
        # Whether a key is in a dict is known without a look at what else there is.
        return compare(_comparable(value), place if within and isinstance(place, dict) else _comparable(place))

    return read


def _comparable(value: object) -> object:
    """Let through what costs next to nothing to compare: of lists and dicts only small and flat ones."""
    if isinstance(value, dict | list):
        if len(value) > _LONGEST_LIST:
            raise NotPlain
        for each in value.values() if isinstance(value, dict) else value:
            _scalar(each)
    return value


def _scalar(value: object) -> JsonValue:
    """Return a text, a number, True, False or None that is the same everywhere; else raise NotPlain."""
    match value:
        case None | bool():
            return value
        case str() if len(value) <= _LONGEST_TEXT and (value.isascii() or _is_unicode(value)):
            return value
        case int() if abs(value) <= _LARGEST_INT:
            return value
        case float() if math.isfinite(value):
            return value
    raise NotPlain


def _is_unicode(text: str) -> bool:
    """Whether a text has no half of a character, which the sandbox is given as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
