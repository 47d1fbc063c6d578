"""The tool step: one named tool is called, with arguments that a model chooses."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine import prompts
from synapse_worker.engine.errors import DefinitionError, ModelMisled
from synapse_worker.engine.json_values import JsonValue, NotJson, loads
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, event, stored
from synapse_worker.engine.steps.conversation import Conversation
from synapse_worker.engine.tools import open_tools

_ATTEMPTS = 3
"""Answers that the model has to get a call right: one, and two more that know what was wrong."""


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Have the tool called once; what it gives back is the output, as JSON where it is JSON."""
    means = context.for_models
    conversation = Conversation(step, context, means.providers.endpoint(step.model))
    conversation.say(prompts.task(step, step.prompt_template, state, context.definition, context.past))
    wrong = "the model did not call it"
    snapshot = means.snapshot.for_orchestration(context.definition.id)
    async with open_tools([step.forced_tool], (), snapshot, means.secrets, context.sandbox, means.vault) as toolbox:
        if toolbox.missing or not toolbox.specs:
            raise DefinitionError(
                f"there is no tool {step.forced_tool!r}: neither a custom tool nor an MCP server has one of that name"
            )
        for _ in range(_ATTEMPTS):
            answer = await conversation.ask(toolbox, must_call=True)
            if not answer.calls:
                conversation.say(prompts.NO_CALL)
                continue
            for number, call in enumerate(answer.calls):
                if number > 0:
                    conversation.refuse(call, "Only one call is made.")
                    continue
                result = await conversation.call(toolbox, call)
            if not result.failed:
                return conversation.outcome(
                    StepOutcome(
                        step.next_step_id,
                        stored(step, _value(result.content)),
                        [event("final", step, response=result.content)],
                        f"called {step.forced_tool}",
                    )
                )
            wrong = result.content
    raise ModelMisled(f"the tool {step.forced_tool!r} was not called with success: {wrong}")


def _value(content: str) -> JsonValue:
    try:
        return loads(content)
    except NotJson:
        return content
