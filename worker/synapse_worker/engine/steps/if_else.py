"""The if_else step: a condition over state picks one of two ways."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import CodeFailed
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import EXPRESSION_SECONDS, StepContext, event, stored


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Decide; a way that has no step of its own is next_step_id.

    A condition that raises is false, with a warning: definitions are written for that (`state.score > 5` before
    there is a score), and a main instance does the same.
    """
    seconds = min(EXPRESSION_SECONDS, step.timeout_seconds)
    events = []
    try:
        truth = await context.sandbox.test(step.if_condition, state, seconds)
    except CodeFailed as error:
        truth = False
        events.append(event("step_warning", step, message=f"The condition counts as false: {error}"))
    target = (step.if_true_step_id if truth else step.if_false_step_id) or step.next_step_id
    decision = "true" if truth else "false"
    events.append(
        event(
            "if_decision",
            step,
            condition=step.if_condition,
            result=decision,
            decision=decision,
            target_step_id=target,
        )
    )
    return StepOutcome(target, stored(step, truth), events, f"condition is {decision}")
