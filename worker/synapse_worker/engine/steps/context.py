"""What a step may use, and the shape of the function that does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.sandbox import Sandbox

EXPRESSION_SECONDS = 2.0
"""Running time of one condition or switch expression; they take milliseconds, this is for hostile ones."""

TRANSFORM_SECONDS = 10.0
"""Running time of one transform; a step's shorter timeout_seconds wins."""


@dataclass(frozen=True, slots=True)
class NestedResult:
    """How a nested run was completed: what it says in the end, and its whole state."""

    response: str
    state: Mapping[str, object]


Nested: TypeAlias = Callable[[Mapping[str, object], JsonValue, int], Awaitable[NestedResult]]
"""Runs an orchestration inside a step, as a run of its own in the same job: (document as it is stored, user input,
number). The number counts the nested runs of one visit of a step, from 1; called again with the same one by whoever
does the step again, it goes on where that run stands.

It raises an EngineError when the definition cannot be run or the nested run has failed, and a Suspended, which the
caller lets pass, when it waits for a human or is to be given back.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """The means of one visit of a step.

    Attributes:
        definition: the orchestration that the step belongs to.
        nested: runs another orchestration inside this step.
        sandbox: runs user code.
        idempotency_key: `<run_id>:<step_id>:<visit>`, the same when the visit has to be done again.
    """

    definition: Definition
    sandbox: Sandbox
    idempotency_key: str
    nested: Nested


class Executor(Protocol):
    """Does one visit of a step.

    The executor reads `state` and never changes it: what it sets is in the outcome. It raises an EngineError whose
    text is the step's error.
    """

    async def __call__(self, step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome: ...


def event(name: str, step: Step, **fields: JsonValue) -> JsonObject:
    """An event that a step says about itself."""
    return {"type": name, "orch_step_id": step.id, "step_name": step.name, **fields}


def stored(step: Step, value: JsonValue) -> JsonObject:
    """The state delta of a step's output: nothing when the step names no output_key."""
    return {} if step.output_key is None else {step.output_key: value}
