"""The end step: the run is completed."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """End the run, also where the step names a next one."""
    return StepOutcome(next_step_id=None, summary="end of the run")
