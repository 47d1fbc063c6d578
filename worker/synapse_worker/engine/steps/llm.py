"""The llm step: one request to a model, no tools."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine import prompts
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, event, stored
from synapse_worker.engine.steps.conversation import Conversation


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Ask; the answer is the output."""
    means = context.for_models
    conversation = Conversation(step, context, means.providers.endpoint(step.model))
    conversation.say(prompts.task(step, step.prompt_template, state, context.definition, context.past))
    answer = await conversation.ask()
    return conversation.outcome(
        StepOutcome(
            step.next_step_id,
            stored(step, answer.text),
            [event("final", step, response=answer.text)],
            f"answered {len(answer.text)} characters",
        )
    )
