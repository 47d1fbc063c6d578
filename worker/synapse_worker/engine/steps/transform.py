"""The transform step: the user's script over a copy of state; its `result` is stored at output_key."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import TRANSFORM_SECONDS, StepContext, event, stored


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Run the script; the event carries the result as text, as a main instance writes it."""
    seconds = min(TRANSFORM_SECONDS, step.timeout_seconds)
    result = await context.sandbox.transform(step.transform_code, state, seconds)
    shown = None if result is None else str(result)
    return StepOutcome(
        next_step_id=step.next_step_id,
        output=stored(step, result),
        events=[event("transform_result", step, result=shown)],
        summary=f"result is {type(result).__name__}",
    )
