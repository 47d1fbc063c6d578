"""Where a run stands: a small value that is stored with every checkpoint and read by whichever worker goes on.

The cursor is a stack of frames, outermost first. The main flow is the only kind of frame today; the body of a loop
and the branches of a parallel step are to be further kinds on top of it. Decisions over it are in `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from synapse_worker.engine.errors import EngineError, NewerCursor
from synapse_worker.engine.json_values import JsonObject

ENGINE_VERSION = 1
"""Raised when a cursor written from now on cannot be continued correctly by older code."""

MAIN = "main"


class CursorUnreadable(EngineError):
    """A stored cursor that no release has written: the run cannot be continued."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One level of the run: `kind` is MAIN; `step_id` is the step to do next, None when the level is done."""

    kind: str
    step_id: str | None


@dataclass(frozen=True, slots=True)
class Cursor:
    """A run's position.

    Attributes:
        frames: outermost first, never empty.
        visits: step id -> how many times that step has finished in this run.
        steps_done: finished steps of the whole run.
        engine_version: the engine that wrote the cursor.
    """

    frames: tuple[Frame, ...]
    visits: Mapping[str, int] = field(default_factory=dict)
    steps_done: int = 0
    engine_version: int = ENGINE_VERSION

    @property
    def current_step_id(self) -> str | None:
        """The step to do next; None when the run is over."""
        return self.frames[-1].step_id

    def visits_of(self, step_id: str) -> int:
        """How many times the step has finished."""
        return self.visits.get(step_id, 0)

    def moved_to(self, step_id: str | None) -> Cursor:
        """The same run, with another step to do next in the innermost frame."""
        innermost = Frame(self.frames[-1].kind, step_id)
        return Cursor((*self.frames[:-1], innermost), self.visits, self.steps_done)

    def finished(self, step_id: str, next_step_id: str | None) -> Cursor:
        """The run after one more finished visit of a step."""
        visits = {**self.visits, step_id: self.visits_of(step_id) + 1}
        innermost = Frame(self.frames[-1].kind, next_step_id)
        return Cursor((*self.frames[:-1], innermost), visits, self.steps_done + 1)

    def to_json(self) -> JsonObject:
        """The stored form."""
        return {
            "engine_version": self.engine_version,
            "frames": [{"kind": frame.kind, "step_id": frame.step_id} for frame in self.frames],
            "visits": dict(self.visits),
            "steps_done": self.steps_done,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Cursor:
        """Read the stored form.

        Raises:
            NewerCursor: a newer engine wrote it.
            CursorUnreadable: it has not the stored form.
        """
        version = stored.get("engine_version")
        if not _is_count(version):
            raise CursorUnreadable("The run's cursor has no engine version, so the run cannot be continued.")
        if version > ENGINE_VERSION:
            raise NewerCursor(
                f"The run was last moved by engine version {version}, this worker has version {ENGINE_VERSION}."
            )
        frames, visits, steps_done = stored.get("frames"), stored.get("visits"), stored.get("steps_done")
        if not (isinstance(frames, list) and frames and isinstance(visits, Mapping) and _is_count(steps_done)):
            raise CursorUnreadable("The run's cursor is incomplete, so the run cannot be continued.")
        return cls(
            tuple(_frame(item) for item in frames),
            {step_id: count for step_id, count in visits.items() if isinstance(step_id, str) and _is_count(count)},
            steps_done,
        )


def _frame(stored: object) -> Frame:
    if isinstance(stored, Mapping) and stored.get("kind") == MAIN:
        step_id = stored.get("step_id")
        if step_id is None or isinstance(step_id, str):
            return Frame(MAIN, step_id)
    raise CursorUnreadable("The run's cursor has a frame of an unknown kind, so the run cannot be continued.")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
