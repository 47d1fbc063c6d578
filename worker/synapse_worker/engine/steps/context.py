"""What a step may use, and the shape of the function that does it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.models import Message, Models
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.providers import Providers
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.snapshot import Snapshot
from synapse_worker.engine.tools import ToolSecrets, Vault
from synapse_worker.engine.turns import Turns

EXPRESSION_SECONDS = 2.0
"""Running time of one condition or switch expression; they take milliseconds, this is for hostile ones."""

TRANSFORM_SECONDS = 10.0
"""Running time of one transform; a step's shorter timeout_seconds wins."""


@dataclass(frozen=True, slots=True)
class ModelMeans:
    """What a step that talks to a model has besides.

    Attributes:
        models: asks them.
        providers: where a model's name is asked, by the settings of this job's start.
        snapshot: the definitions that the run keeps, and `secrets` what those do without.
        vault: the files of the run's tenant.
        turns: does each turn of this visit once.
        before: what was said before the task, as a chat's earlier turns.
        images: base64 data URLs of the images that come with the task.
    """

    models: Models
    providers: Providers
    snapshot: Snapshot
    secrets: ToolSecrets
    vault: Vault
    turns: Turns
    before: Sequence[Message] = ()
    images: Sequence[str] = ()


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
        past: the run's step_history before this visit, oldest first.
        means: given to steps that talk to a model.
    """

    definition: Definition
    sandbox: Sandbox
    idempotency_key: str
    nested: Nested
    past: Sequence[Mapping[str, object]] = ()
    means: ModelMeans | None = None

    @property
    def for_models(self) -> ModelMeans:
        """The means of a step that talks to a model."""
        if self.means is None:
            raise RuntimeError("a step that talks to a model was given no means for it")
        return self.means


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
