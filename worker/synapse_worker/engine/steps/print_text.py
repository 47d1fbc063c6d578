"""The print step: a text with state filled in, stored at output_key."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, event, stored
from synapse_worker.engine.templates import fill


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Fill the text; the `final` event carries it, as for every step that answers something."""
    text = fill(step.print_content, state)
    return StepOutcome(
        next_step_id=step.next_step_id,
        output=stored(step, text),
        events=[event("final", step, response=text)],
        summary=f"printed {len(text)} characters",
    )
