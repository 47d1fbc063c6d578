"""What steps say to models; pure.

A prompt is the step's template with state filled in, then the values of its input_keys under the names of the steps
that made them, then, for a step that runs again, its previous output and why it runs again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.templates import fill

USER_INPUT = "user_input"

NO_CALL = "You have to call the tool that you are given; answer with a tool call and nothing else."


def task(
    step: Step, template: str, state: Mapping[str, object], definition: Definition, past: Sequence[Mapping[str, object]]
) -> str:
    """Return the prompt of one visit of a step.

    Args:
        step: the step.
        template: its own text; "" = the user input is the task.
        state: the run's state.
        definition: the step's orchestration, for the names of steps.
        past: the run's step_history so far, oldest first.
    """
    main = fill(template, state) if template.strip() else _text(state.get(USER_INPUT))
    parts = [main, *_inputs(step, template, state, definition, past)]
    parts += _again(step, state, definition, past)
    return "\n\n".join(part for part in parts if part)


def routes(labels: Mapping[str, str], descriptions: Mapping[str, str]) -> str:
    """Return how an evaluator tells its choice: `labels` is the name of each route's tool -> label."""
    lines = [f"- {tool}: {descriptions.get(label) or label}" for tool, label in labels.items()]
    example = json.dumps({"tool": next(iter(labels)), "arguments": {"reasoning": "why"}})
    return (
        "Decide how to go on. Choose exactly one of these routes by calling its tool:\n"
        + "\n".join(lines)
        + f"\nIf you cannot call tools, answer with one JSON object and nothing else, such as {example}."
    )


def unknown_route(said: str, labels: Mapping[str, str]) -> str:
    """Return what an evaluator is told that chose nothing it was offered."""
    chosen = f"{said[:200]!r} is none of the routes." if said else "You have chosen no route."
    return f"{chosen} Choose exactly one of: {', '.join(labels)}."


def _inputs(
    step: Step, template: str, state: Mapping[str, object], definition: Definition, past: Sequence[Mapping[str, object]]
) -> list[str]:
    found: list[str] = []
    for key in step.input_keys:
        value = state.get(key)
        # Without a template the user input is the prompt itself.
        if value is None or (key == USER_INPUT and not template.strip()):
            continue
        found.append(f"[{definition.source_of(key, past)}]:\n{_text(value)}")
    return ["Context:", *found] if found else []


def _again(
    step: Step, state: Mapping[str, object], definition: Definition, past: Sequence[Mapping[str, object]]
) -> list[str]:
    done = [number for number, entry in enumerate(past) if entry.get("step_id") == step.id]
    if not done:
        return []
    parts = [f"You have worked on this before; this is run {len(done) + 1} of the step {step.name!r}."]
    previous = state.get(step.output_key) if step.output_key else None
    if previous is not None:
        parts.append(f"[Your previous output]:\n{_text(previous)}")
    since = past[done[-1] + 1 :]
    sent = next((entry for entry in reversed(since) if entry.get("routed_to") == step.id), None)
    if sent is not None and sent.get("reasoning"):
        parts.append(f"[Why it runs again, from {sent.get('step_name')}]:\n{_text(sent['reasoning'])}")
    elif since:
        parts.append(f"It runs again because the flow came back to it from {since[-1].get('step_name')!r}.")
    return parts


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
