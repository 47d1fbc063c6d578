"""The extract_json step: the JSON that somebody, mostly a model, wrote into a text, with or without prose around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import cast

from synapse_worker.engine.errors import StepFailed
from synapse_worker.engine.json_values import JsonValue, NotJson, loads
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, stored

_WASTE_LIMIT = 5_000_000
"""Characters that may be read in vain: brackets nested in brackets that never close would cost a square of them."""
_TOO_DEEP_COSTS = 100_000


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Store the value found; of several, in one text or in several keys, the list of them in order.

    A key that holds no text but an object or a list counts as found.

    Raises:
        StepFailed: there is none.
    """
    found: list[JsonValue] = []
    for key in step.input_keys:
        value = cast(JsonValue, state.get(key))
        if isinstance(value, str):
            # Off the loop: a long text takes a while.
            found += await asyncio.to_thread(_json_in, value)
        elif isinstance(value, dict | list):
            found.append(value)
    if not found:
        raise StepFailed(f"there is no JSON in {' and '.join(step.input_keys)}")
    return StepOutcome(
        next_step_id=step.next_step_id,
        output=stored(step, found[0] if len(found) == 1 else found),
        summary=f"found {len(found)} values",
    )


def _json_in(text: str) -> list[JsonValue]:
    """Return the JSON objects and lists in a text, outermost and in order; or what the whole text is as JSON."""
    try:
        return [loads(text)]
    except NotJson:
        pass
    scan = json.JSONDecoder().raw_decode
    found: list[JsonValue] = []
    place = wasted = 0
    while wasted < _WASTE_LIMIT and (place := _next_opening(text, place)) >= 0:
        try:
            _, end = scan(text, place)
            found.append(loads(text[place:end]))
        except json.JSONDecodeError as error:
            wasted += error.pos - place
            place += 1
        except RecursionError:
            wasted += _TOO_DEEP_COSTS
            place += 1
        except NotJson:  # it is well-formed, but nothing that can be stored
            place = end
        else:
            place = end
    return found


def _next_opening(text: str, start: int) -> int:
    places = [place for opening in "{[" if (place := text.find(opening, start)) >= 0]
    return min(places, default=-1)
