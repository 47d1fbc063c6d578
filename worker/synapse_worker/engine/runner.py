"""The decisions of a run: what to do next, and where the run stands afterwards.

Pure: no client, clock or sandbox. The job loop asks `decide`, does what it says, and stores the cursor that
`advance` returns; a worker that takes the run over asks again and gets the same answer.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from synapse_worker.engine.frames import MAIN, Cursor, CursorUnreadable, Frame
from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.outcome import StepOutcome


@dataclass(frozen=True, slots=True)
class Execute:
    """Do this step; `visit` counts from 1 and, with run and step id, is the step's idempotency key."""

    step: Step
    visit: int


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The transition to `step` is refused, it has run `iterations` times; `cursor` has moved on behind it."""

    step: Step
    iterations: int
    max_iterations: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is completed."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed, for good; `sentence` says why."""

    sentence: str


Decision: TypeAlias = Execute | LimitReached | Finish | Fail


def begin(definition: Definition) -> Cursor:
    """Return the cursor of a run that has done nothing yet."""
    return Cursor((Frame(MAIN, definition.entry_step_id),))


def resume(definition: Definition, history: Sequence[Mapping[str, object]]) -> Cursor:
    """Return the cursor of a run that has a history and no cursor: it stands at the step that failed last.

    Raises:
        CursorUnreadable: steps have finished and none has failed, so nothing says where the run stands.
    """
    visits = Counter(str(entry.get("step_id")) for entry in history if entry.get("status") == "completed")
    failed = [entry.get("step_id") for entry in history if entry.get("status") == "failed"]
    if not failed and visits:
        raise CursorUnreadable("The run has finished steps and no checkpoint, so it cannot be continued.")
    at = str(failed[-1]) if failed else definition.entry_step_id
    return Cursor((Frame(MAIN, at),), dict(visits), visits.total())


def initial_state(definition: Definition, user_input: object, initial: Mapping[str, object] | None) -> JsonObject:
    """Return the state that a run starts with: schema defaults, then `user_input`, then the caller's own keys."""
    state: JsonObject = {
        key: copy.deepcopy(entry["default"])
        for key, entry in definition.state_schema.items()
        if isinstance(entry, dict) and "default" in entry
    }
    state["user_input"] = cast(JsonValue, user_input)
    state.update(cast(JsonObject, initial or {}))
    return state


def decide(definition: Definition, cursor: Cursor) -> Decision:
    """Return what the run does next."""
    step_id = cursor.current_step_id
    if step_id is None:
        return Finish()
    step = definition.steps.get(step_id)
    if step is None:
        return Fail(f"The run stands at step {step_id!r}, which {definition.title} does not have.")
    if _exhausted(step, cursor.visits):
        return LimitReached(
            step, cursor.visits_of(step.id), step.max_iterations, cursor.moved_to(_behind(definition, cursor, step))
        )
    if cursor.steps_done >= definition.max_total_turns:
        return Fail(
            f"The run has done {cursor.steps_done} steps and {step.title} would be one more; "
            f"max_total_turns of {definition.title} is {definition.max_total_turns}."
        )
    return Execute(step, cursor.visits_of(step.id) + 1)


def advance(cursor: Cursor, step: Step, outcome: StepOutcome) -> Cursor:
    """Return the cursor behind a finished step."""
    return cursor.finished(step.id, outcome.next_step_id)


def _exhausted(step: Step, visits: Mapping[str, int]) -> bool:
    return visits.get(step.id, 0) >= step.max_iterations


def _behind(definition: Definition, cursor: Cursor, step: Step) -> str | None:
    """The step behind a refused one; None when the way behind it leads back through refused steps only.

    Without the second rule, a circle of exhausted steps would be skipped round and round.
    """
    seen = {step.id}
    target = step.next_step_id
    while target is not None:
        if target in seen:
            return None
        seen.add(target)
        following = definition.steps.get(target)
        if following is None or not _exhausted(following, cursor.visits):
            break
        target = following.next_step_id
    return step.next_step_id
