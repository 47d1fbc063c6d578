"""The sub-checkpoints inside a step: what a step that talks to a model does turn by turn, each done once.

A step asks for turn 1, 2, 3, ... in an order that depends on nothing but earlier turns; what a former owner of the run
has stored is given back without being done again. Storing, and telling, is the job's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from synapse_worker.engine.json_values import JsonObject


@dataclass(frozen=True, slots=True)
class Done:
    """What a turn gave: a value that is enough to go on from, and what it cost."""

    value: JsonObject
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)


class Turns(Protocol):
    """The turns of one visit of a step."""

    @property
    def tokens(self) -> int:
        """Tokens of all its turns so far, those of former owners included."""

    @property
    def cost_usd(self) -> Decimal:
        """What they cost."""

    async def once(
        self, turn: int, do: Callable[[], Awaitable[Done]], say: Callable[[JsonObject], Sequence[JsonObject]]
    ) -> JsonObject:
        """Return the value of a turn; `do` it, store it and then tell what `say` makes of it, unless that was done.

        Raises:
            Halted: the run is to be given back instead of doing more.
            CostLimit: the run has cost more than it may.
            OwnershipLost: another claim owns the run.
        """
