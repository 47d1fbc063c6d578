"""The agent step: a model works on a task with the agent's tools until it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synapse_worker.engine import prompts
from synapse_worker.engine.errors import ModelMisled
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.asking import endpoint_of_agent
from synapse_worker.engine.steps.context import StepContext, event, stored
from synapse_worker.engine.steps.conversation import Conversation
from synapse_worker.engine.tools import open_tools

DEFAULT_MAX_TURNS = 15


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Give the agent its task; its last answer is the output.

    An agent that is an orchestration has its task as that one's user input, and as output what its run says.
    """
    means = context.for_models
    agent = means.snapshot.agent_of(step)
    task = prompts.task(step, step.prompt_template, state, context.definition, context.past)
    if agent.orchestration_id is not None:
        result = await context.nested(means.snapshot.orchestrations[agent.orchestration_id], task, 1)
        return _answered(step, result.response, [])
    conversation = Conversation(step, context, endpoint_of_agent(step, agent, means), agent.system_prompt)
    conversation.say(task, means.images)
    most = step.max_turns or agent.max_turns or DEFAULT_MAX_TURNS
    async with open_tools(
        agent.tools,
        step.allowed_tools,
        means.snapshot.for_agent(agent.id),
        means.secrets,
        context.sandbox,
        means.vault,
    ) as toolbox:
        warnings = [
            event("step_warning", step, message=f"The tool {name!r} of agent {agent.name!r} is not there.")
            for name in toolbox.missing
        ]
        for _ in range(most):
            answer = await conversation.ask(toolbox)
            if not answer.calls:
                return conversation.outcome(_answered(step, answer.text, warnings))
            for call in answer.calls:
                await conversation.call(toolbox, call)
    raise ModelMisled(f"the agent {agent.name!r} still called tools in its answer {most}, and max_turns is {most}")


def _answered(step: Step, text: str, warnings: Sequence[JsonObject]) -> StepOutcome:
    said = [*warnings, event("final", step, response=text)]
    return StepOutcome(step.next_step_id, stored(step, text), said, f"answered {len(text)} characters")
