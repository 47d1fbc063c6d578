"""Where a run stands: a small value that is stored with every checkpoint and read by whichever worker goes on.

The cursor is a stack of frames, outermost first: the main flow, then each loop that is under way inside it. A parallel
step is the top of its stack and holds a stack for each branch. What steps produced is not in here, so that the value
stays small however long a loop runs. Decisions over it are in `runner`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeAlias, TypeGuard

from synapse_worker.engine.errors import EngineError, NewerCursor
from synapse_worker.engine.json_values import JsonObject, JsonValue

ENGINE_VERSION = 2
"""Raised when a cursor written from now on cannot be continued correctly by older code."""

MAIN, LOOP, PARALLEL, BRANCH = "main", "loop", "parallel", "branch"


class CursorUnreadable(EngineError):
    """A stored cursor that no release has written: the run cannot be continued."""


@dataclass(frozen=True, slots=True)
class MainFrame:
    """The main flow: `step_id` is the step to do next, None when the run is over."""

    step_id: str | None


@dataclass(frozen=True, slots=True)
class LoopFrame:
    """A loop under way.

    Attributes:
        step_id: the loop step's.
        since: how many steps of the run had finished when it began; its body's come after them.
        began: when it began, in seconds since 1970.
        iteration: the one under way, from 1.
        index: finished steps of the body in this iteration.
    """

    step_id: str
    since: int
    began: float
    iteration: int = 1
    index: int = 0


@dataclass(frozen=True, slots=True)
class BranchFrame:
    """A branch of a parallel step: `index` steps of its chain have finished."""

    index: int = 0


@dataclass(frozen=True, slots=True)
class ParallelFrame:
    """A parallel step under way: the stack of each branch, and when it began (seconds since 1970)."""

    step_id: str
    began: float
    branches: tuple[Stack, ...]


Frame: TypeAlias = MainFrame | LoopFrame | BranchFrame | ParallelFrame
Stack: TypeAlias = tuple[Frame, ...]
Path: TypeAlias = tuple[int, ...]
"""Which stack: () is the run's own, (1,) that of the second branch of its parallel step, and so on inwards."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The human step, by id and visit, that the run was paused for, and since when (seconds since 1970).

    `run_id` is the run whose step it is: the paused one itself, or one that is nested in it.
    """

    run_id: str
    step_id: str
    visit: int
    since: float


@dataclass(frozen=True, slots=True)
class Cursor:
    """A run's position.

    Attributes:
        frames: the run's own stack, outermost first, never empty.
        visits: step id -> how many times that step has finished in this run.
        steps_done: finished steps of the whole run.
        asked: what the run was paused for last.
        engine_version: the engine that wrote the cursor.
    """

    frames: Stack
    visits: Mapping[str, int] = field(default_factory=dict)
    steps_done: int = 0
    asked: Asked | None = None
    engine_version: int = ENGINE_VERSION

    @property
    def current_step_id(self) -> str | None:
        """The step of the main flow that is under way or to do next; None when the run is over."""
        return self.frames[0].step_id if isinstance(self.frames[0], MainFrame) else None

    def visits_of(self, step_id: str) -> int:
        """How many times the step has finished."""
        return self.visits.get(step_id, 0)

    def stack(self, path: Path) -> Stack:
        """The stack at a path of this cursor."""
        frames = self.frames
        for number in path:
            top = frames[-1]
            assert isinstance(top, ParallelFrame)  # noqa: S101 - paths come from `runner.decide`
            frames = top.branches[number]
        return frames

    def with_stack(self, path: Path, stack: Stack) -> Cursor:
        """The same run with another stack at a path."""
        return replace(self, frames=_put(self.frames, path, stack), engine_version=ENGINE_VERSION)

    def loops(self) -> Iterator[LoopFrame]:
        """Every loop that is under way."""
        yield from _loops(self.frames)

    def to_json(self) -> JsonObject:
        """The stored form."""
        return {
            "engine_version": self.engine_version,
            "frames": [_stored(frame) for frame in self.frames],
            "visits": dict(self.visits),
            "steps_done": self.steps_done,
            **({} if self.asked is None else {"asked": asdict(self.asked)}),
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
        visits, steps_done = stored.get("visits"), stored.get("steps_done")
        if not (isinstance(visits, Mapping) and _is_count(steps_done)):
            raise CursorUnreadable("The run's cursor is incomplete, so the run cannot be continued.")
        return cls(
            _read_stack(stored.get("frames"), MainFrame),
            {step_id: count for step_id, count in visits.items() if isinstance(step_id, str) and _is_count(count)},
            steps_done,
            _read_asked(stored.get("asked")),
        )


def _put(frames: Stack, path: Path, stack: Stack) -> Stack:
    if not path:
        return stack
    top = frames[-1]
    assert isinstance(top, ParallelFrame)  # noqa: S101 - paths come from `runner.decide`
    branches = list(top.branches)
    branches[path[0]] = _put(branches[path[0]], path[1:], stack)
    return (*frames[:-1], replace(top, branches=tuple(branches)))


def _loops(frames: Stack) -> Iterator[LoopFrame]:
    for frame in frames:
        if isinstance(frame, LoopFrame):
            yield frame
        elif isinstance(frame, ParallelFrame):
            for branch in frame.branches:
                yield from _loops(branch)


def _stored(frame: Frame) -> JsonValue:
    match frame:
        case MainFrame():
            return {"kind": MAIN, "step_id": frame.step_id}
        case BranchFrame():
            return {"kind": BRANCH, "index": frame.index}
        case LoopFrame():
            return {
                "kind": LOOP,
                "step_id": frame.step_id,
                "since": frame.since,
                "began": frame.began,
                "iteration": frame.iteration,
                "index": frame.index,
            }
        case ParallelFrame():
            return {
                "kind": PARALLEL,
                "step_id": frame.step_id,
                "began": frame.began,
                "branches": [[_stored(inner) for inner in branch] for branch in frame.branches],
            }


def _read_stack(stored: object, outermost: type[MainFrame | BranchFrame]) -> Stack:
    if not (isinstance(stored, Sequence) and not isinstance(stored, str) and stored):
        raise CursorUnreadable("The run's cursor is incomplete, so the run cannot be continued.")
    frames = tuple(_read_frame(item) for item in stored)
    fits = isinstance(frames[0], outermost)
    fits = fits and all(isinstance(frame, LoopFrame) for frame in frames[1:-1])
    fits = fits and (len(frames) == 1 or isinstance(frames[-1], LoopFrame | ParallelFrame))
    if not fits:
        raise CursorUnreadable("The run's cursor has frames in a wrong order, so the run cannot be continued.")
    return frames


def _read_frame(stored: object) -> Frame:
    fields = stored if isinstance(stored, Mapping) else {}
    kind, step_id, began = fields.get("kind"), fields.get("step_id"), fields.get("began")
    index, iteration, since = fields.get("index"), fields.get("iteration"), fields.get("since")
    if kind == MAIN and (step_id is None or isinstance(step_id, str)):
        return MainFrame(step_id)
    if kind == BRANCH and _is_count(index):
        return BranchFrame(index)
    if isinstance(step_id, str) and isinstance(began, int | float):
        if kind == LOOP and _is_count(index) and _is_count(iteration) and _is_count(since):
            return LoopFrame(step_id, since, float(began), iteration, index)
        branches = fields.get("branches")
        if kind == PARALLEL and isinstance(branches, Sequence) and not isinstance(branches, str):
            return ParallelFrame(step_id, float(began), tuple(_read_stack(branch, BranchFrame) for branch in branches))
    raise CursorUnreadable("The run's cursor has a frame of an unknown kind, so the run cannot be continued.")


def _read_asked(stored: object) -> Asked | None:
    if isinstance(stored, Mapping):
        run_id, step_id = stored.get("run_id"), stored.get("step_id")
        visit, since = stored.get("visit"), stored.get("since")
        if isinstance(run_id, str) and isinstance(step_id, str) and _is_count(visit) and isinstance(since, int | float):
            return Asked(run_id, step_id, visit, float(since))
    return None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
