"""What the bodies of loops under way have produced so far, which becomes lists in the state when a loop is left.

Kept in memory and found again in the run's finished steps: in the cursor or in the state it would be written anew with
each checkpoint, and a loop of a thousand steps would cost a million.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from synapse_worker.engine.frames import LoopFrame
from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.model import Definition, Step
from synapse_worker.store.claims import DoneStep


class LoopResults:
    """Loop step id -> output_key of its body -> what was stored there, in order."""

    def __init__(self, loops: Iterable[LoopFrame], steps: Sequence[DoneStep]) -> None:
        """Find the results of `loops` again in the run's finished steps."""
        self._found: dict[str, dict[str, list[JsonValue]]] = defaultdict(lambda: defaultdict(list))
        for loop in loops:
            for step in steps:
                if step.ordinal > loop.since and step.entry.get("loop_step_id") == loop.step_id:
                    key, entry = step.entry.get("output_key"), step.entry
                    if isinstance(key, str) and key in step.delta:
                        self._keep(loop.step_id, key, entry["iteration"], entry["step_name"], step.delta[key])

    def add(self, loop: LoopFrame, step: Step, output: Mapping[str, object]) -> None:
        """Keep what a step of a loop's body has stored at its output_key, if it has."""
        key = step.output_key
        if key is not None and key in output:
            self._keep(loop.step_id, key, loop.iteration, step.name, output[key])

    def of(self, loop: Step, definition: Definition) -> JsonObject:
        """Return the state keys that a loop sets in the end, and forget its results."""
        found = self._found.pop(loop.id, {})
        body = [definition.steps[step_id] for step_id in loop.loop_step_ids]
        output: JsonObject = {step.output_key: found.get(step.output_key, []) for step in body if step.output_key}
        if loop.output_key is not None:
            output[loop.output_key] = {step.name: found.get(step.output_key, []) for step in body if step.output_key}
        return output

    def _keep(self, loop_id: str, key: str, iteration: object, agent: object, result: object) -> None:
        kept = {"iteration": iteration, "agent": agent, "result": result}
        self._found[loop_id][key].append(cast(JsonValue, kept))
