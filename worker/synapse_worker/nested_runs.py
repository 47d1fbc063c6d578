"""An orchestration inside a step: a run with checkpoints of its own, in the job, slot and claim of the one around it.

It is never a job of its own: with all slots taken by the runs around, nobody would be left for those inside.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping

from synapse_worker import run_events
from synapse_worker.engine import runner
from synapse_worker.engine.checks import check_code
from synapse_worker.engine.errors import StepFailed
from synapse_worker.engine.frames import Cursor
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.runner import Execute
from synapse_worker.engine.steps import NestedResult
from synapse_worker.engine.steps.suspension import Halted
from synapse_worker.errors import JobFailed, OwnershipLost
from synapse_worker.run_walk import Walk, Walked, parsed
from synapse_worker.store import claims, nested, pauses, runs
from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.runs import RunStatus

MAX_DEPTH = 3
"""Runs inside each other; an orchestration whose agents lead back to it would never come to an end."""
_MAX_ID = 255


def nested_run_id(run_id: str, step_id: str, visit: int, number: int) -> str:
    """Return the id of a nested run: it says where it is from, as long as that fits a column and a key of Redis."""
    whole = f"{run_id}.{step_id}.{visit}.{number}"
    if len(whole) <= _MAX_ID and not set("{}") & set(whole):
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:32]
    return re.sub(r"[{}]", "_", whole)[: _MAX_ID - 1 - len(digest)] + "." + digest


async def run_nested(
    around: Walk, task: Execute, document: Mapping[str, object], given: JsonValue, number: int
) -> NestedResult:
    """Run an orchestration inside a step of `around`; see `steps.context.Nested`."""
    if around.depth >= MAX_DEPTH:
        raise StepFailed(f"orchestrations are nested in each other deeper than {MAX_DEPTH} levels")
    inside = await _stand(around, task, document, given, number)
    if isinstance(inside, NestedResult):
        return inside
    run, persist = inside.run, around.surroundings.persist
    left = await _seconds_left(inside)
    await inside.announce()
    try:
        async with asyncio.timeout(left) as timer:
            walked = await inside.go(around.halts)
    except JobFailed as error:
        raise await _failed(inside, str(error)) from None
    except TimeoutError:
        if not timer.expired():
            raise
        minutes = inside.definition.timeout_minutes
        raise await _failed(inside, f"it took longer than its timeout_minutes ({minutes:g})") from None
    match walked:
        case Walked.HALTED:
            raise Halted
        case Walked.PAUSED:
            await _pause(inside)
            assert inside.asks is not None  # noqa: S101 - what a walk is paused for
            raise inside.asks
        case Walked.FINISHED:
            done = await persist(
                lambda: inside.writer.finish(run, RunStatus.COMPLETED, folded=inside.folded, active_seconds=0.0)
            )
            if not done:
                raise OwnershipLost(run.run_id)
            result = NestedResult(run_events.response(inside.definition, inside.history, inside.state), inside.state)
            said = run_events.completed(
                run.run_id, state=inside.state, history=inside.history, response=result.response
            )
            around.surroundings.events.hand(run.run_id, run.claim, [*said, run_events.done(run.run_id)])
            return result


async def _stand(
    around: Walk, task: Execute, document: Mapping[str, object], given: JsonValue, number: int
) -> Walk | NestedResult:
    """Return the walk of the nested run from where it stands; its result when it was completed before."""
    means = around.surroundings
    definition = parsed(document)
    run_id = nested_run_id(around.run.run_id, task.step.id, task.visit, number)
    adopted = await means.persist(
        lambda: nested.adopt(means.database, around.root, run_id=run_id, orchestration_id=definition.id)
    )
    if adopted is None:
        raise OwnershipLost(run_id)
    run: OwnedRun = (await means.persist(lambda: claims.with_steps(means.database, [adopted.run])))[run_id]
    if run.definition is not None:
        document, definition = run.definition, parsed(run.definition)
    if adopted.completed:
        return NestedResult(run_events.response(definition, run.history, run.state), run.state)
    if run.cursor is None:
        await check_code(definition, means.sandbox)
        cursor: Cursor = runner.begin(definition)
        state: State = dict(runner.initial_state(definition, given, None))
    else:
        cursor, state = Cursor.from_json(run.cursor), dict(run.state)
    return Walk(
        run,
        definition,
        dict(document),
        cursor,
        state,
        means,
        around.writer,
        run_nested,
        answer=around.answer,
        around=around,
    )


async def _seconds_left(inside: Walk) -> float | None:
    minutes, means = inside.definition.timeout_minutes, inside.surroundings
    if minutes is None:
        return None
    left = await means.persist(lambda: runs.start_clock(means.database, inside.run, minutes * 60))
    if left is None:
        raise OwnershipLost(inside.run.run_id)
    return left


async def _failed(inside: Walk, sentence: str) -> StepFailed:
    run, means = inside.run, inside.surroundings
    ended = await means.persist(
        lambda: inside.writer.finish(run, RunStatus.FAILED, folded=inside.folded, active_seconds=0.0, error=sentence)
    )
    if not ended:
        raise OwnershipLost(run.run_id)
    means.events.hand(run.run_id, run.claim, [run_events.failed(run.run_id, sentence), run_events.done(run.run_id)])
    return StepFailed(f"{inside.definition.title} failed: {sentence}")


async def _pause(inside: Walk) -> None:
    """Let the nested run wait; how long is the run's to say that has the job."""
    run, means, why = inside.run, inside.surroundings, inside.why_paused
    if not await means.persist(lambda: pauses.pause(means.database, run, why, active_seconds=0.0)):
        raise OwnershipLost(run.run_id)
