"""The merge step: the values of several state keys as one, each with the step that produced it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, event, stored


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Combine what is in state, in the order of input_keys; a key that is not there is left out."""
    found = [
        (context.definition.source_of(key, context.past), cast(JsonValue, state[key]))
        for key in step.input_keys
        if key in state
    ]
    return StepOutcome(
        next_step_id=step.next_step_id,
        output=stored(step, _merged(step.merge_strategy, found)),
        events=[event("merge_complete", step, input_count=len(found), strategy=step.merge_strategy)],
        summary=f"merged {len(found)} values",
    )


def _merged(strategy: str, found: list[tuple[str, JsonValue]]) -> JsonValue:
    if strategy == "concat":
        return "\n\n".join(f"[{label}]:\n{value}" for label, value in found)
    if strategy == "dict":
        return dict(found)
    return [{"source": label, "data": value} for label, value in found]
