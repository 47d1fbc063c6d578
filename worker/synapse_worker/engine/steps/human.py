"""The human step: what is asked, and what an answer sets. Pausing and going on are the walk's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps.context import stored
from synapse_worker.engine.templates import fill

RESPONSE_KEY = "human_response"
"""The state key that holds the newest answer, beside the step's own output_key."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody is asked: a text, and the fields to fill in (none where a text is wanted)."""

    step: Step
    visit: int
    prompt: str
    fields: Sequence[Mapping[str, JsonValue]]
    context: str | None
    """What the answer may be about, as text: the first of input_keys that state has."""


def question(step: Step, visit: int, state: Mapping[str, object]) -> Question:
    """Return what is asked, with state filled in."""
    about = next((str(state[key]) for key in step.input_keys if state.get(key)), None)
    return Question(step, visit, fill(step.human_prompt, state), step.human_fields, about)


def answered(step: Step, answer: JsonValue) -> StepOutcome:
    """Return the outcome of an answered step; the answer is a text, or an object of the fields."""
    return StepOutcome(step.next_step_id, {RESPONSE_KEY: answer, **stored(step, answer)}, summary="answered")
