"""The evaluator step: a model picks one of the step's routes and says why."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from synapse_worker.engine import prompts
from synapse_worker.engine.errors import ModelMisled
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.model import Step
from synapse_worker.engine.models import Answer, ToolSpec, json_arguments
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import StepContext, event, stored
from synapse_worker.engine.steps.conversation import Conversation

_PREFIX = "route_"
_ATTEMPTS = 2
_WASTE_LIMIT = 1_000_000
"""Characters of an answer that are read for nothing: braces within braces would cost a square of them."""
_TOO_DEEP_COSTS = 100_000
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_WHY: JsonObject = {"type": "string", "description": "Why this route; whoever works on it next reads it."}


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Have a route chosen; a choice that is none is asked for once more, then the step fails."""
    means = context.for_models
    labels = _labels(step)
    conversation = Conversation(step, context, means.providers.endpoint(step.model))
    task = prompts.task(step, step.evaluator_prompt or step.prompt_template, state, context.definition, context.past)
    conversation.say(f"{task}\n\n{prompts.routes(labels, step.route_descriptions)}")
    specs = tuple(
        ToolSpec(
            tool,
            step.route_descriptions.get(label) or f"Go on with {label}.",
            {"type": "object", "properties": {"reasoning": _WHY}, "required": ["reasoning"]},
        )
        for tool, label in labels.items()
    )
    for _ in range(_ATTEMPTS):
        answer = await conversation.ask(specs=specs)
        chosen, reasoning, said = _choice(answer, labels)
        if chosen is not None:
            target = step.route_map[chosen]
            outcome = StepOutcome(
                target,
                stored(step, {"decision": chosen, "reasoning": reasoning}),
                [event("routing_decision", step, decision=chosen, reasoning=reasoning, target_step_id=target)],
                f"route {chosen!r}",
                {"routed_to": target, "decision": chosen, "reasoning": reasoning},
            )
            return conversation.outcome(outcome)
        again = prompts.unknown_route(said, labels)
        for call in answer.calls:
            conversation.refuse(call, again)
        if not answer.calls:
            conversation.say(again)
    raise ModelMisled(
        f"the model chose {said[:200]!r}, which is no route; accepted are {', '.join(step.route_map)}"
        if said
        else f"the model chose no route; accepted are {', '.join(step.route_map)}"
    )


def _labels(step: Step) -> dict[str, str]:
    """Name of each route's tool -> label."""
    labels: dict[str, str] = {}
    for number, label in enumerate(step.route_map):
        name = _PREFIX + _NOT_IN_NAMES.sub("_", label)[:50]
        labels[name if name not in labels else f"{name}_{number}"] = label
    return labels


def _choice(answer: Answer, labels: Mapping[str, str]) -> tuple[str | None, str, str]:
    """Return (label, reasoning, what was said in the place of a label)."""
    for call in answer.calls:
        label = _label(call.tool, labels)
        if label is not None:
            reasoning = (json_arguments(call) or {}).get("reasoning")
            return label, reasoning if isinstance(reasoning, str) else answer.text, call.tool
    said = answer.calls[0].tool if answer.calls else answer.text.strip()
    found = _json_choice(answer.text)
    if found is not None:
        tool, reasoning_given = found
        return _label(tool, labels), reasoning_given, tool
    return _label(said, labels), "", said


def _label(said: str, labels: Mapping[str, str]) -> str | None:
    """The label that a tool's name, or the label itself, stands for."""
    said = said.strip()
    if said in labels:
        return labels[said]
    plain = said.removeprefix(_PREFIX)
    return next((label for label in labels.values() if label in (said, plain)), None)


def _json_choice(text: str) -> tuple[str, str] | None:
    """The first JSON object in a text that names a tool, prose around it or not."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    wasted = 0
    while start >= 0 and wasted < _WASTE_LIMIT:
        value: object = None
        try:
            value, end = decoder.raw_decode(text, start)
            wasted += end - start
        except json.JSONDecodeError as error:
            wasted += error.pos - start
        except (ValueError, RecursionError):  # a number without end, or nesting
            wasted += _TOO_DEEP_COSTS
        if isinstance(value, dict) and isinstance(value.get("tool"), str):
            arguments = value.get("arguments")
            given = arguments.get("reasoning") if isinstance(arguments, dict) else value.get("reasoning")
            return value["tool"], given if isinstance(given, str) else ""
        start = text.find("{", start + 1)
    return None
