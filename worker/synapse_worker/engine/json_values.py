"""JSON as a type, and the one place that turns it to text for the sandbox and back.

State, outputs and cursors are JSON from end to end: they are stored as jsonb and sent in events. What JSON or
jsonb cannot hold is refused here with a sentence, never changed on the way. Sizes are judged by the callers.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import TypeAlias

JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | int | float | bool | None"
JsonObject: TypeAlias = dict[str, JsonValue]

MAX_DEPTH = 100
"""Deepest nesting of a value that a step may produce; the sandbox itself reads 200 levels."""


class NotJson(ValueError):
    """The value or text is not JSON that we can store; `str()` says why, as the end of a sentence."""


def dumps(value: object) -> str:
    """Return `value` as compact JSON text.

    Raises:
        NotJson: it holds something that is no JSON, or nests too deeply to be written.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise NotJson("it nests too deeply") from None
    except (TypeError, ValueError) as error:
        raise NotJson(str(error)) from None


def loads(text: str) -> JsonValue:
    """Return the value of a JSON text that a user's code wrote.

    Raises:
        NotJson: it is no JSON, or holds NaN, an infinity, a zero byte, a number of thousands of digits, or more
            than MAX_DEPTH levels.
    """
    try:
        value: JsonValue = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except NotJson:
        raise
    except RecursionError:
        raise NotJson(f"it nests deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise NotJson(str(error)) from None
    # Both checks look at the text first, so that most values need not be walked.
    if text.count("[") + text.count("{") > MAX_DEPTH and depth_exceeds(value, MAX_DEPTH):
        raise NotJson(f"it nests deeper than {MAX_DEPTH} levels")
    if "\\u0000" in text or "\\ud" in text.lower():
        _refuse_unstorable_text(value)
    return value


def as_stored(value: JsonValue) -> JsonValue:
    """Return the value as it comes back from jsonb: keys in its order, numbers in its form.

    A step sees the same whether the worker that it runs on has done the steps before or read them.
    """
    if isinstance(value, dict):
        return {key: as_stored(value[key]) for key in sorted(value, key=_key_order)}
    if isinstance(value, list):
        return [as_stored(item) for item in value]
    if isinstance(value, float):
        # 1e+22 comes back as a whole number, -0.0 without its sign.
        return int(Decimal(repr(value))) if value.is_integer() and "e" in repr(value) else value + 0.0
    return value


def _key_order(key: str) -> tuple[int, bytes]:
    raw = key.encode(errors="surrogatepass")
    return len(raw), raw


def depth_exceeds(value: JsonValue, limit: int) -> bool:
    """Whether lists and objects nest deeper than `limit` levels; walks level by level, so depth costs no stack."""
    level: list[JsonValue] = [value]
    for _ in range(limit + 1):
        inner: list[JsonValue] = []
        containers = 0
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
                containers += 1
            elif isinstance(item, list):
                inner.extend(item)
                containers += 1
        if not containers:
            return False
        level = inner
    return True


def _refuse_unstorable_text(value: JsonValue) -> None:
    pending: list[JsonValue] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
        elif isinstance(item, str):
            if "\x00" in item:
                raise NotJson("it holds a zero byte, which cannot be stored")
            if any("\ud800" <= character <= "\udfff" for character in item):
                raise NotJson("it holds half of a surrogate pair, which is no text")


def _no_constant(name: str) -> float:
    raise NotJson(f"it holds {name}, which JSON has no number for")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NotJson(f"it holds {digits[:20]}, which is out of range")
    return number
