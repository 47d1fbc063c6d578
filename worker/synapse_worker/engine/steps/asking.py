"""Which endpoint a step asks: by its own model, its agent's, or the stored default."""

from __future__ import annotations

from synapse_worker.engine.model import Step, StepType
from synapse_worker.engine.providers import Endpoint, is_default
from synapse_worker.engine.snapshot import Agent
from synapse_worker.engine.steps.context import ModelMeans


def endpoint_of(step: Step, means: ModelMeans) -> Endpoint | None:
    """Return where a step's model is asked; None = its agent is an orchestration, which asks for itself.

    Raises:
        DefinitionError: there is no such agent.
        ModelRefused: nobody answers for the model; says what to set.
    """
    if step.type is not StepType.AGENT:
        return means.providers.endpoint(step.model)
    agent = means.snapshot.agent_of(step)
    return endpoint_of_agent(step, agent, means) if agent.orchestration_id is None else None


def endpoint_of_agent(step: Step, agent: Agent, means: ModelMeans) -> Endpoint:
    """Return where an agent's model is asked; its provider holds for the model that it names itself."""
    own = step.model is None or is_default(step.model)
    return means.providers.endpoint(step.model, agent.model, provider=agent.provider if own else None)
