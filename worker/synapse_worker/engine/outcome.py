"""What a step leaves behind: the one value that steps hand to the run's decisions and its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from synapse_worker.engine.json_values import JsonObject


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The result of one finished step.

    Attributes:
        next_step_id: where the run goes on; None ends it as completed.
        output: the top-level state keys that the step sets.
        events: what the step says, in order, in the stream's names; without `event_id`, which the checkpoint adds.
        summary: one short line for logs and listings.
        history: further fields of the step's entry in step_history.
        tokens: what its model requests took, and `cost_usd` what they cost.
    """

    next_step_id: str | None
    output: JsonObject = field(default_factory=dict)
    events: Sequence[JsonObject] = ()
    summary: str = ""
    history: JsonObject = field(default_factory=dict)
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)
