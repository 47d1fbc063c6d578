"""The decisions of a run: what to do next, and where the run stands afterwards.

Pure: no client, clock or sandbox. The walk asks `decide`, does what it says, and stores the cursor that `advance`
returns; a worker that takes the run over asks again and gets the same answer. Loops and parallel steps are entered and
left here; entering needs no checkpoint, since it follows from where the run stands.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

from synapse_worker.engine.frames import (
    Asked,
    BranchFrame,
    Cursor,
    CursorUnreadable,
    Frame,
    LoopFrame,
    MainFrame,
    ParallelFrame,
    Path,
    Stack,
)
from synapse_worker.engine.json_values import JsonObject, JsonValue, as_stored
from synapse_worker.engine.model import CONTAINERS, Definition, Step, StepType


@dataclass(frozen=True, slots=True)
class Task:
    """A step that is to be done.

    Attributes:
        visit: counts from 1 and, with run and step id, is the step's idempotency key.
        path: the stack of the cursor that the step moves.
        loop: the loop whose body the step is directly in.
        in_loop: whether it is somewhere inside a loop.
    """

    step: Step
    visit: int
    path: Path = ()
    loop: LoopFrame | None = None
    in_loop: bool = False


@dataclass(frozen=True, slots=True)
class Execute(Task):
    """Do this step."""


@dataclass(frozen=True, slots=True)
class Enter(Task):
    """Begin this loop or parallel step."""


@dataclass(frozen=True, slots=True)
class Leave(Task):
    """All steps inside this loop or parallel step have finished; now it has."""

    began: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask(Task):
    """A human has to answer before the step has finished."""


@dataclass(frozen=True, slots=True)
class LimitReached:
    """The transition to `step` is refused, it has run `iterations` times; `cursor` has moved on behind it."""

    step: Step
    iterations: int
    max_iterations: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is completed."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed, for good; `sentence` says why."""

    sentence: str


Decision: TypeAlias = Execute | Enter | Leave | Ask | LimitReached | Finish | Fail


def begin(definition: Definition) -> Cursor:
    """Return the cursor of a run that has done nothing yet."""
    return Cursor((MainFrame(definition.entry_step_id),))


def resume_paused(run_id: str, step_id: str, history: Sequence[Mapping[str, object]]) -> Cursor:
    """Return the cursor of a run that was paused at a human step of the main flow and has a history and no cursor."""
    visits = Counter(str(entry.get("step_id")) for entry in history if entry.get("status") == "completed")
    return Cursor((MainFrame(step_id),), dict(visits), visits.total(), Asked(run_id, step_id, visits[step_id] + 1, 0.0))


def resume(definition: Definition, history: Sequence[Mapping[str, object]]) -> Cursor:
    """Return the cursor of a run that has a history and no cursor: it stands at the step that failed last.

    Raises:
        CursorUnreadable: steps have finished and none has failed, so nothing says where the run stands.
    """
    visits = Counter(str(entry.get("step_id")) for entry in history if entry.get("status") == "completed")
    failed = [entry.get("step_id") for entry in history if entry.get("status") == "failed"]
    if not failed and visits:
        raise CursorUnreadable("The run has finished steps and no checkpoint, so it cannot be continued.")
    at = str(failed[-1]) if failed else definition.entry_step_id
    return Cursor((MainFrame(at),), dict(visits), visits.total())


def initial_state(definition: Definition, user_input: object, initial: Mapping[str, object] | None) -> JsonObject:
    """Return the state that a run starts with: schema defaults, then `user_input`, then the caller's own keys."""
    state: JsonObject = {
        key: copy.deepcopy(entry["default"])
        for key, entry in definition.state_schema.items()
        if isinstance(entry, dict) and "default" in entry
    }
    state["user_input"] = cast(JsonValue, user_input)
    state.update(cast(JsonObject, initial or {}))
    return cast(JsonObject, as_stored(state))


def decide(definition: Definition, cursor: Cursor) -> Sequence[Decision]:
    """Return what the run does next; several steps where branches run side by side, in the order of the branches.

    A step stays among them until `advance` was told that it has finished. None of Finish, Fail and LimitReached comes
    beside another decision.
    """
    found = list(_at(definition, cursor, cursor.frames, (), (), False))
    for decision in found:
        if isinstance(decision, Fail):
            return [decision]
    begun = cursor.steps_done + _open(cursor.frames)
    for place, task in enumerate([task for task in found if isinstance(task, Execute | Enter | Ask)]):
        if begun + place >= definition.max_total_turns:
            return [
                Fail(
                    f"The run has done {begun + place} steps and {task.step.title} would be one more; "
                    f"max_total_turns of {definition.title} is {definition.max_total_turns}."
                )
            ]
    return found


def enter(cursor: Cursor, task: Enter, *, since: int, began: float) -> Cursor:
    """Return the cursor inside a loop or parallel step; for the numbers see its frame."""
    step = task.step
    frame: Frame = (
        LoopFrame(step.id, since, began)
        if step.type is StepType.LOOP
        else ParallelFrame(step.id, began, tuple((BranchFrame(),) for _ in step.parallel_branches))
    )
    return cursor.with_stack(task.path, (*cursor.stack(task.path), frame))


def advance(definition: Definition, cursor: Cursor, task: Execute | Leave | Ask, next_step_id: str | None) -> Cursor:
    """Return the cursor behind a finished step.

    Args:
        next_step_id: where the main flow goes on; inside loops and branches the order of the lists counts.
    """
    step = task.step
    after = replace(
        cursor,
        visits={**cursor.visits, step.id: cursor.visits_of(step.id) + 1},
        steps_done=cursor.steps_done + 1,
    )
    if step.type is StepType.END:  # wherever it stands
        return after.with_stack((), (MainFrame(None),))
    stack = cursor.stack(task.path)
    if isinstance(task, Leave):
        stack = stack[:-1]
    return after.with_stack(task.path, (*stack[:-1], _moved(definition, stack[-1], next_step_id)))


def iteration_begun(definition: Definition, cursor: Cursor, path: Path) -> LoopFrame | None:
    """Return the loop on top of a stack when the next step is the first of an iteration."""
    if len(path) and not isinstance(cursor.frames[-1], ParallelFrame):  # an end step has ended all branches
        return None
    top = cursor.stack(path)[-1]
    if isinstance(top, LoopFrame) and top.index == 0 and top.iteration <= definition.steps[top.step_id].loop_count:
        return top
    return None


def _at(
    definition: Definition, cursor: Cursor, stack: Stack, path: Path, chain: Sequence[str], in_loop: bool
) -> Iterator[Decision]:
    """What one stack does next; nothing for a branch that is done. `chain` is the branch's list of steps."""
    top = stack[-1]
    in_loop = in_loop or any(isinstance(frame, LoopFrame) for frame in stack[:-1])
    match top:
        case MainFrame():
            yield _in_main(definition, cursor, top)
        case BranchFrame():
            if top.index < len(chain):
                yield _task(definition, cursor, chain[top.index], path, None, in_loop)
        case LoopFrame():
            loop = definition.steps.get(top.step_id)
            if loop is None:
                yield _unknown(definition, top.step_id)
            elif top.iteration <= loop.loop_count and top.index < len(loop.loop_step_ids):
                yield _task(definition, cursor, loop.loop_step_ids[top.index], path, top, True)
            else:
                yield _leave(cursor, loop, stack, path, in_loop, top.began)
        case ParallelFrame():
            parallel = definition.steps.get(top.step_id)
            if parallel is None or len(parallel.parallel_branches) != len(top.branches):
                yield _unknown(definition, top.step_id)
                return
            inner = [
                decision
                for number, branch in enumerate(top.branches)
                for decision in _at(
                    definition, cursor, branch, (*path, number), parallel.parallel_branches[number], in_loop
                )
            ]
            yield from inner or [_leave(cursor, parallel, stack, path, in_loop, top.began)]


def _in_main(definition: Definition, cursor: Cursor, frame: MainFrame) -> Decision:
    if frame.step_id is None:
        return Finish()
    step = definition.steps.get(frame.step_id)
    if step is not None and _exhausted(step, cursor.visits):
        behind = cursor.with_stack((), (MainFrame(_behind(definition, cursor, step)),))
        return LimitReached(step, cursor.visits_of(step.id), step.max_iterations, behind)
    return _task(definition, cursor, frame.step_id, (), None, False)


def _task(
    definition: Definition, cursor: Cursor, step_id: str, path: Path, loop: LoopFrame | None, in_loop: bool
) -> Decision:
    step = definition.steps.get(step_id)
    if step is None:
        return _unknown(definition, step_id)
    kind: type[Enter | Ask | Execute] = Ask if step.type is StepType.HUMAN else Execute
    if step.type in CONTAINERS:
        kind = Enter
    return kind(step, cursor.visits_of(step_id) + 1, path, loop, in_loop)


def _leave(cursor: Cursor, step: Step, stack: Stack, path: Path, in_loop: bool, began: float) -> Leave:
    below = stack[-2] if len(stack) > 1 else None
    loop = below if isinstance(below, LoopFrame) else None
    return Leave(step, cursor.visits_of(step.id) + 1, path, loop, in_loop, began)


def _unknown(definition: Definition, step_id: str) -> Fail:
    return Fail(f"The run stands at step {step_id!r}, which {definition.title} does not have.")


def _moved(definition: Definition, frame: Frame, next_step_id: str | None) -> Frame:
    match frame:
        case MainFrame():
            return MainFrame(next_step_id)
        case BranchFrame():
            return BranchFrame(frame.index + 1)
        case LoopFrame():
            if frame.index + 1 < len(definition.steps[frame.step_id].loop_step_ids):
                return replace(frame, index=frame.index + 1)
            return replace(frame, iteration=frame.iteration + 1, index=0)
        case ParallelFrame():
            raise AssertionError("unreachable: a parallel step is left, never moved on")


def _open(stack: Stack) -> int:
    """How many loops and parallel steps are under way: each has its own place in max_total_turns."""
    inner = sum(_open(branch) for branch in stack[-1].branches) if isinstance(stack[-1], ParallelFrame) else 0
    return inner + sum(isinstance(frame, LoopFrame | ParallelFrame) for frame in stack)


def _exhausted(step: Step, visits: Mapping[str, int]) -> bool:
    return visits.get(step.id, 0) >= step.max_iterations


def _behind(definition: Definition, cursor: Cursor, step: Step) -> str | None:
    """The step behind a refused one; None when the way behind it leads back through refused steps only.

    Without the second rule, a circle of exhausted steps would be skipped round and round.
    """
    seen = {step.id}
    target = step.next_step_id
    while target is not None:
        if target in seen:
            return None
        seen.add(target)
        following = definition.steps.get(target)
        if following is None or not _exhausted(following, cursor.visits):
            break
        target = following.next_step_id
    return step.next_step_id
