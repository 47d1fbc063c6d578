"""The switch step: the value of an expression, as text, picks the way."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import CodeFailed
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import EXPRESSION_SECONDS, StepContext, event, stored


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Pick the case that equals the value's text (`True`, `None`, `3`), else the default; a null target ends the run.

    An expression that raises takes the default, with a warning, as a condition that raises is false.
    """
    seconds = min(EXPRESSION_SECONDS, step.timeout_seconds)
    events = []
    value: JsonValue = None
    try:
        value = await context.sandbox.evaluate(step.switch_expression, state, seconds)
    except CodeFailed as error:
        events.append(event("step_warning", step, message=f"The expression counts as None: {error}"))
    text = str(value)
    matched = text if text in step.switch_cases else None
    target = step.switch_default_step_id if matched is None else step.switch_cases[matched]
    if target is None and not step.switch_cases:
        target = step.next_step_id  # a switch without cases is a plain step
    events.append(
        event(
            "switch_decision",
            step,
            expression=step.switch_expression,
            value=text,
            matched_case=matched,
            target_step_id=target,
        )
    )
    return StepOutcome(target, stored(step, value), events, "default" if matched is None else f"case {matched!r}")
