"""The events that a run says about itself, in the form in which they go into its stream; steps say their own.

Pure: an `event_id` follows from what is said, so that an event which is written twice can be told from two events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from synapse_worker.engine.model import Definition, Step, StepType
from synapse_worker.engine.runner import LimitReached
from synapse_worker.store.claims import State
from synapse_worker.store.pauses import Question


def picked_up(run_id: str, *, claim: int, worker_id: str) -> State:
    """A worker has taken the run."""
    return {
        "type": "worker_picked_up",
        "worker_id": worker_id,
        "run_id": run_id,
        "event_id": f"{run_id}:worker:{claim}:0",
    }


def started(run_id: str, definition: Definition) -> State:
    """The run begins."""
    return {
        "type": "orchestration_start",
        "run_id": run_id,
        "orchestration_id": definition.id,
        "orchestration_name": definition.name,
        "event_id": f"{run_id}:start:1:0",
    }


def numbered(run_id: str, step: Step, visit: int, said: Iterable[Mapping[str, object]], *, first: int) -> list[State]:
    """What a visit of a step says, with ids counted from `first`; 0 is its step_start."""
    return [{**event, "event_id": f"{run_id}:{step.id}:{visit}:{number}"} for number, event in enumerate(said, first)]


def step_start(run_id: str, step: Step, visit: int) -> State:
    """A step begins."""
    said = {"type": "step_start", "orch_step_id": step.id, "step_name": step.name, "step_type": step.type}
    return numbered(run_id, step, visit, [said], first=0)[0]


def step_complete(step: Step, duration: float) -> State:
    """A step has finished after so many seconds; not numbered yet."""
    return {
        "type": "step_complete",
        "orch_step_id": step.id,
        "step_name": step.name,
        "duration_seconds": round(duration, 3),
    }


def step_error(run_id: str, step: Step, visit: int, sentence: str, *, claim: int) -> State:
    """A step has failed under a claim; under another it may be done again."""
    return {
        "type": "step_error",
        "orch_step_id": step.id,
        "error": sentence,
        "event_id": f"{run_id}:{step.id}:{visit}:error:{claim}",
    }


def entered(run_id: str, step: Step, visit: int) -> list[State]:
    """A loop or parallel step begins."""
    if step.type is StepType.LOOP:
        return [step_start(run_id, step, visit), iteration(run_id, step, visit, 1)]
    count = len(step.parallel_branches)
    about: State = {"orch_step_id": step.id, "branch_count": count}
    said: list[State] = [{"type": "parallel_start", **about}]
    said += [{"type": "branch_start", **about, "branch_index": number} for number in range(count)]
    return [step_start(run_id, step, visit), *numbered(run_id, step, visit, said, first=1)]


def iteration(run_id: str, step: Step, visit: int, number: int) -> State:
    """A loop begins its body once more, for the `number`th time."""
    said: State = {
        "type": "loop_iteration",
        "orch_step_id": step.id,
        "iteration": number,
        "total": step.loop_count,
    }
    return numbered(run_id, step, visit, [said], first=number)[0]


def left(run_id: str, step: Step, visit: int, duration: float) -> list[State]:
    """All that a loop or parallel step consists of has finished."""
    if step.type is StepType.LOOP:
        first = step.loop_count + 1
        said: State = {"type": "loop_complete", "orch_step_id": step.id, "iterations_completed": step.loop_count}
    else:
        count = len(step.parallel_branches)
        first = count + 2
        said = {"type": "parallel_complete", "orch_step_id": step.id, "branch_count": count}
    return numbered(run_id, step, visit, [said, step_complete(step, duration)], first=first)


def limit_reached(run_id: str, refused: LimitReached) -> State:
    """A transition is refused, its target has run as often as it may; it may be refused again some steps later."""
    return {
        "type": "loop_limit_reached",
        "orch_step_id": refused.step.id,
        "iterations": refused.iterations,
        "max_iterations": refused.max_iterations,
        "event_id": f"{run_id}:{refused.step.id}:{refused.iterations}:limit:{refused.cursor.steps_done}",
    }


def response(definition: Definition, history: Sequence[State], state: Mapping[str, object]) -> str:
    """Return what a run says in the end: the output of the last step that had one, as text."""
    for entry in reversed(history):
        key = entry["output_key"]
        if isinstance(key, str) and state.get(key) is not None:
            value = state[key]
            return value if isinstance(value, str) else str(value)
    return f"{definition.name} completed"


def completed(run_id: str, *, state: State, history: Sequence[State], response: str) -> list[State]:
    """The run is completed; `response` is what it says in the end."""
    status = "completed"
    return [
        {
            "type": "orchestration_complete",
            "run_id": run_id,
            "status": status,
            "final_state": state,
            "event_id": f"{run_id}:complete:1:0",
        },
        {
            "type": "final",
            "response": response,
            "intent": "orchestration",
            "data": {"run_id": run_id, "status": status, "step_history": history, "shared_state": state},
            "event_id": f"{run_id}:final:1:0",
        },
    ]


def failed(run_id: str, sentence: str) -> State:
    """The run has failed or was cancelled."""
    return {"type": "orchestration_error", "error": sentence, "event_id": f"{run_id}:error:1:0"}


def asks(run_id: str, why: Question, *, claim: int) -> list[State]:
    """A human is asked, and the sentinel: nothing comes before the answer."""
    step_id = why.step_id
    return [
        {
            "type": "human_input_required",
            "orch_step_id": step_id,
            "prompt": why.prompt,
            "fields": [dict(field) for field in why.fields],
            "run_id": run_id,
            "agent_context": why.context,
            "nested_run_id": why.nested_run_id,
            "nested_orch_id": why.nested_orchestration_id,
            "event_id": f"{run_id}:{step_id}:asked:{claim}",
        },
        {"type": "paused", "event_id": f"{run_id}:{step_id}:paused:{claim}"},
    ]


def done(run_id: str) -> State:
    """The sentinel: nothing comes after it."""
    return {"type": "done", "event_id": f"{run_id}:done"}
