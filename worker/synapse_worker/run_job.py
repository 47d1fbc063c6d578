"""One run under one lease and one claim: walk its steps with a checkpoint each, end it one way.

The ways are: it has ended (the lease is released), it is given back, or it is somebody else's (nothing more is
written). What a batch of claimed jobs needs before they can run is `jobs`'.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache

from synapse_worker.engine import runner
from synapse_worker.engine.checks import check_code
from synapse_worker.engine.errors import EngineError, NewerCursor
from synapse_worker.engine.frames import ENGINE_VERSION, Cursor
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.runner import Execute, Fail, Finish, LimitReached
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, PayloadError, StoreRefused, StoreUnavailable
from synapse_worker.job_payloads import named, result
from synapse_worker.queueing import stops
from synapse_worker.queueing.client import RESUME_FUNCTION
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, StopReason
from synapse_worker.queueing.payload import JobPayload, decode
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.run_events import done
from synapse_worker.store import claims, runs
from synapse_worker.store.claims import ClaimRequest, OwnedRun, State
from synapse_worker.store.database import to_jsonb
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter, StepRow
from synapse_worker.surroundings import Surroundings

log = logging.getLogger(__name__)

_FOLD_SECONDS = 3.0
_RETRY_BASE_SECONDS = 1.0
_RETRY_MOST_SECONDS = 300.0
_NEWER_CURSOR_DELAY_MS = 5_000
_LAST_WRITE_SECONDS = 2.0

CRASH_LIMIT = 3
"""Crashes of a job that ran alone, without a step finished in between, until it is given up."""


class RunJob:
    """One run under one lease and one claim."""

    def __init__(
        self,
        lease: Lease,
        payload: JobPayload,
        request: ClaimRequest,
        run: OwnedRun,
        definition: State | None,
        surroundings: Surroundings,
        writer: RunWriter,
        running: dict[RunningJob, Control],
    ) -> None:
        self.lease = lease
        self.unwanted: StopReason | None = None
        """Why it is to end before it starts, if it is."""
        self._ids = RunningJob(run.run_id, run.job_id)
        self._writer = writer
        self._running = running
        self._payload = payload
        self._reserved_for = request.tenant_id
        self._run = run
        self._document = definition
        self._with = surroundings
        self._state: State = dict(run.state)
        # A run that had failed does its failed step again; only the new try stays in its history.
        self._history: list[State] = [entry for entry in run.history if entry.get("status") != "failed"]
        self._steps_done = run.steps_done
        self._folded_at = time.monotonic()
        self._began = time.monotonic()

    async def run(self, control: Control) -> Ending:
        """Run to the end, a step boundary of a drain, or a stop; see `Job.run`."""
        self._with.reservations.hold(self.lease.job_id, self._reserved_for)
        budget = max(0.0, self._with.settings.job_timeout - self._run.active_seconds)
        self._with.metrics.active_runs.inc()
        self._running[self._ids] = control
        try:
            if self.unwanted is not None:
                return await self._cancel(self.unwanted)
            try:
                async with asyncio.timeout(budget) as timer:
                    return await self._work(control)
            except TimeoutError:
                if not timer.expired():
                    raise
                raise JobFailed(
                    f"the job took over {self._with.settings.job_timeout} active seconds (WORKER_JOB_TIMEOUT)"
                ) from None
        except asyncio.CancelledError:
            return await self._stopped(control)
        except JobFailed as error:
            return await self._fail(str(error))
        except JobRetry as error:
            return await self._retry(str(error))
        except OwnershipLost:
            log.warning("run %s has another owner; this one stops", self._run.run_id)
            return None
        except Exception as error:
            log.exception("run %s met an unexpected error", self._run.run_id)
            return await self._retry(f"internal error: {type(error).__name__}")
        finally:
            self._with.reservations.free(self.lease.job_id, self._reserved_for)
            self._with.metrics.active_runs.dec()
            if self._running.get(self._ids) is control:
                del self._running[self._ids]

    async def _work(self, control: Control) -> Ending:
        if self._run.suspect and self._run.crashes - self.lease.alone >= CRASH_LIMIT:
            raise JobFailed(
                f"CrashLoop: its worker process ended {CRASH_LIMIT} times while it ran nothing but this job, and no"
                " step was finished; the last log lines of the worker's pods say more"
            )
        definition, cursor = await self._prepare()
        if cursor is None:
            return HandBack(self.lease, _NEWER_CURSOR_DELAY_MS) if await self._give_back(failed=False) else None
        left = await self._seconds_left(definition)
        await self._announce(definition)
        try:
            async with asyncio.timeout(left) as timer:
                return await self._walk(definition, cursor, control)
        except TimeoutError:
            if not timer.expired():
                raise
            raise JobFailed(
                f"the run took longer than the timeout_minutes ({definition.timeout_minutes:g}) of {definition.title}"
            ) from None

    async def _seconds_left(self, definition: Definition) -> float | None:
        """Return how long the run may still take by its orchestration's timeout_minutes; None = no limit."""
        if definition.timeout_minutes is None:
            return None
        seconds = definition.timeout_minutes * 60
        left = await self._with.persist(lambda: runs.start_clock(self._with.database, self._run, seconds))
        if left is None:
            raise OwnershipLost(self._run.run_id)
        return left

    async def _walk(self, definition: Definition, cursor: Cursor, control: Control) -> Ending:
        while True:
            if control.hand_over:
                return await self._hand_over()
            decision = runner.decide(definition, cursor)
            match decision:
                case Fail():
                    raise JobFailed(decision.sentence)
                case Finish():
                    return await self._complete(definition)
                case LimitReached():
                    cursor = decision.cursor
                    self._hand(
                        [
                            {
                                "type": "loop_limit_reached",
                                "orch_step_id": decision.step.id,
                                "iterations": decision.iterations,
                                "max_iterations": decision.max_iterations,
                                "event_id": f"{self._run.run_id}:{decision.step.id}:{decision.iterations}:limit",
                            }
                        ]
                    )
                case Execute():
                    if self.lease.alone and self._steps_done > self._run.steps_done:
                        # It got past where its owner had crashed: it may run beside others, and others need the room.
                        return await self._hand_over()
                    cursor = await self._step(definition, cursor, decision.step, decision.visit)

    async def _prepare(self) -> tuple[Definition, Cursor | None]:
        """Return the run's definition and where it stands; None when a newer release has to go on with it."""
        if self._document is None:
            raise JobFailed(
                f"orchestration {self._run.orchestration_id!r} does not exist; sync it, then enqueue the run again"
            )
        try:
            definition = _parsed(to_jsonb(self._document))
            if self._run.cursor is None:
                await check_code(definition, self._with.sandbox)
                return definition, await self._first_cursor(definition)
            return definition, Cursor.from_json(self._run.cursor)
        except NewerCursor:
            return definition, None
        except EngineError as error:
            raise (JobFailed if error.final else JobRetry)(str(error)) from None

    async def _first_cursor(self, definition: Definition) -> Cursor:
        """Return where a run without a checkpoint starts, and set the state that it starts with."""
        arguments = self._payload.arguments
        if self._payload.function == RESUME_FUNCTION:
            if self._run.state:
                return runner.resume(definition, self._run.history)
            arguments = await self._first_arguments()
        initial = arguments.get("initial_state")
        given = initial if isinstance(initial, Mapping) else None
        self._state = dict(runner.initial_state(definition, arguments.get("initial_input"), given))
        return runner.begin(definition)

    async def _first_arguments(self) -> Mapping[str, object]:
        """Return the arguments that the run was first enqueued with: its first job has the run's own id."""
        envelope = await claims.envelope_of(self._with.database, self._run.run_id)
        if envelope is None:
            raise JobFailed("the run's input is not kept any more; enqueue the orchestration again")
        try:
            return named(decode(envelope)).arguments
        except PayloadError as error:
            raise JobFailed(str(error)) from None

    async def _announce(self, definition: Definition) -> None:
        """Publish who took the run, and again what a crashed owner may not have got into the stream."""
        run = self._run
        picked_up: State = {
            "type": "worker_picked_up",
            "worker_id": self._with.settings.worker_id,
            "run_id": run.run_id,
            "event_id": f"{run.run_id}:worker:{run.claim}:0",
        }
        if run.cursor is None:
            start: State = {
                "type": "orchestration_start",
                "run_id": run.run_id,
                "orchestration_id": definition.id,
                "orchestration_name": definition.name,
                "event_id": f"{run.run_id}:start:1:0",
            }
            self._hand([picked_up, start])
            return
        missing: list[State] = []
        if run.last_events:
            try:
                seen = await self._with.events.tail_ids(run.run_id)
            except (StoreUnavailable, StoreRefused):
                seen = set()  # an event twice with the same id does no harm, a missing one does
            missing = [event for event in run.last_events if event.get("event_id") not in seen]
        self._hand([*missing, picked_up])

    async def _step(self, definition: Definition, cursor: Cursor, step: Step, visit: int) -> Cursor:
        run_id = self._run.run_id
        prefix = f"{run_id}:{step.id}:{visit}"
        self._hand(
            [
                {
                    "type": "step_start",
                    "orch_step_id": step.id,
                    "step_name": step.name,
                    "step_type": step.type,
                    "event_id": f"{prefix}:0",
                }
            ]
        )
        started_at, began = datetime.now(UTC), time.monotonic()
        try:
            async with asyncio.timeout(step.timeout_seconds) as timer:
                context = StepContext(definition=definition, sandbox=self._with.sandbox, idempotency_key=prefix)
                outcome = await EXECUTORS[step.type](step, self._state, context)
        except TimeoutError:
            if not timer.expired():
                raise
            sentence = f"{step.title} took longer than its timeout_seconds ({step.timeout_seconds:g})"
            raise self._step_failed(step, visit, started_at, sentence) from None
        except EngineError as error:
            sentence = f"{step.title}: {error}"
            if not error.final:
                raise JobRetry(sentence) from None
            raise self._step_failed(step, visit, started_at, sentence) from None
        duration = time.monotonic() - began
        ended_at = datetime.now(UTC)
        self._with.metrics.step_duration(step.type, duration)
        events: list[State] = [
            {**event, "event_id": f"{prefix}:{number}"} for number, event in enumerate(outcome.events, start=1)
        ]
        events.append(
            {
                "type": "step_complete",
                "orch_step_id": step.id,
                "step_name": step.name,
                "duration_seconds": round(duration, 3),
                "event_id": f"{prefix}:{len(events) + 1}",
            }
        )
        after = runner.advance(cursor, step, outcome)
        self._state.update(outcome.output)
        self._steps_done += 1
        entry = _history_entry(step, "completed", started_at, ended_at, duration, None)
        self._history.append(entry)
        row = StepRow(step.id, visit, self._steps_done, dict(outcome.output), entry, events, started_at, ended_at)
        # The first checkpoint also keeps what the run started with: its state and its definition.
        first = self._run.definition is None and self._steps_done == 1
        fold = first or time.monotonic() - self._folded_at > _FOLD_SECONDS
        written = await self._with.persist(
            lambda: self._writer.checkpoint(
                self._run,
                row,
                cursor=dict(after.to_json()),
                engine_version=ENGINE_VERSION,
                current_step_id=after.current_step_id,
                definition=self._document if first else None,
                folded=self._whole() if fold else None,
            )
        )
        if not written:
            raise OwnershipLost(run_id)
        if fold:
            self._folded_at = time.monotonic()
        self._hand(events)
        return after

    def _step_failed(self, step: Step, visit: int, started_at: datetime, sentence: str) -> JobFailed:
        now = datetime.now(UTC)
        duration = (now - started_at).total_seconds()
        self._history.append(_history_entry(step, "failed", started_at, now, duration, sentence))
        self._hand(
            [
                {
                    "type": "step_error",
                    "orch_step_id": step.id,
                    "error": sentence,
                    "event_id": f"{self._run.run_id}:{step.id}:{visit}:error:{self._run.claim}",
                }
            ]
        )
        return JobFailed(sentence)

    async def _complete(self, definition: Definition) -> Ending:
        run_id = self._run.run_id
        if not await self._end(RunStatus.COMPLETED, None, None):
            return None
        data = {
            "run_id": run_id,
            "status": RunStatus.COMPLETED.value,
            "step_history": self._history,
            "shared_state": self._state,
        }
        await self._say_last(
            [
                {
                    "type": "orchestration_complete",
                    "run_id": run_id,
                    "status": RunStatus.COMPLETED.value,
                    "final_state": self._state,
                    "event_id": f"{run_id}:complete:1:0",
                },
                {
                    "type": "final",
                    "response": _response(definition, self._history, self._state),
                    "intent": "orchestration",
                    "data": data,
                    "event_id": f"{run_id}:final:1:0",
                },
            ]
        )
        return Release(self.lease, result(self.lease, self._payload, success=True, text="completed"))

    async def _fail(self, sentence: str) -> Ending:
        log.warning("run %s failed: %s", self._run.run_id, sentence)
        letter = DeadLetter(self._payload.function, self._payload.arguments, sentence, self._run.failures + 1)
        if not await self._end(RunStatus.FAILED, sentence, letter):
            return None
        await self._say_last(
            [{"type": "orchestration_error", "error": sentence, "event_id": f"{self._run.run_id}:error:1:0"}]
        )
        return Release(self.lease, result(self.lease, self._payload, success=False, text=sentence))

    async def _cancel(self, reason: StopReason) -> Ending:
        if not await self._end(RunStatus.CANCELLED, "cancelled", None):
            return None
        with suppress(StoreUnavailable, StoreRefused):  # the marks run out by themselves
            await stops.settle(self._with.client, self._ids)
        await self._say_last(
            [{"type": "orchestration_error", "error": "cancelled", "event_id": f"{self._run.run_id}:error:1:0"}]
        )
        # Only who aborted the job waits for this exception; elsewhere it would look like a cancellation of its own.
        said = asyncio.CancelledError("cancelled") if reason is StopReason.ABORTED else "cancelled"
        return Release(self.lease, result(self.lease, self._payload, success=False, text=said))

    async def _retry(self, sentence: str) -> Ending:
        """Count a failed execution; give the run back with back-off, or end it when the retries are used up."""
        failures = self._run.failures + 1
        if failures > self._with.settings.max_retries:
            return await self._fail(f"{sentence} (after {failures} executions)")
        log.warning(
            "run %s will be tried again (%d of %d): %s",
            self._run.run_id,
            failures,
            self._with.settings.max_retries,
            sentence,
        )
        if not await self._give_back(failed=True):
            return None
        delay = min(_RETRY_MOST_SECONDS, _RETRY_BASE_SECONDS * 2 ** (failures - 1))
        # Half of the delay is jitter, so that what failed together does not come back together.
        spread = 0.5 + (hash((self._run.run_id, failures)) % 1000) / 2000
        return HandBack(self.lease, int(delay * spread * 1000))

    async def _hand_over(self) -> Ending:
        return HandBack(self.lease, None) if await self._give_back(failed=False) else None

    async def _stopped(self, control: Control) -> Ending:
        """End a job that was interrupted; what it was doing inside its step is left without a trace."""
        if control.stop_reason in (StopReason.CANCELLED, StopReason.ABORTED):
            return await self._cancel(control.stop_reason)
        if control.stop_reason is StopReason.INTERRUPTED:
            return await self._hand_over()
        # The lease is lost, the run may still be ours: the fence decides. Given back here, it need not wait for
        # somebody to notice; whether its queue entry is still there the sweep finds out.
        with suppress(StoreUnavailable, StoreRefused, TimeoutError):
            async with asyncio.timeout(_LAST_WRITE_SECONDS):
                await claims.give_back(
                    self._with.database, self._run, active_seconds=self._active(), alone=self.lease.alone
                )
        return None

    async def _give_back(self, *, failed: bool) -> bool:
        active = self._active()
        return await self._with.persist(
            lambda: claims.give_back(
                self._with.database, self._run, active_seconds=active, failed=failed, alone=self.lease.alone
            )
        )

    async def _end(self, status: RunStatus, error: str | None, letter: DeadLetter | None) -> bool:
        active = self._active()
        ended = await self._with.persist(
            lambda: self._writer.finish(
                self._run,
                status,
                folded=self._whole(),
                active_seconds=active,
                error=error,
                dead_letter=letter,
            )
        )
        if ended:
            self._with.metrics.runs_completed(self._run.tenant_id, status.value)
            self._with.metrics.run_duration(self._run.tenant_id, self._run.active_seconds + active)
        return ended

    async def _say_last(self, events: list[State]) -> None:
        self._hand([*events, done(self._run.run_id)])
        await self._with.events.written(self._run.run_id)

    def _hand(self, events: Sequence[State]) -> None:
        self._with.events.hand(self._run.run_id, self._run.claim, events)

    def _whole(self) -> Folded:
        return Folded(self._state, self._history, self._steps_done)

    def _active(self) -> float:
        return time.monotonic() - self._began


@lru_cache(maxsize=128)
def _parsed(text: str) -> Definition:
    """Read a definition once for all runs of the same content."""
    return Definition.parse(json.loads(text))


def _history_entry(
    step: Step, status: str, started_at: datetime, ended_at: datetime, duration: float, error: str | None
) -> State:
    return {
        "step_id": step.id,
        "step_name": step.name,
        "step_type": step.type,
        "status": status,
        "started_at": started_at.isoformat(),
        "ended_at": ended_at.isoformat(),
        "duration_seconds": round(duration, 3),
        "output_key": step.output_key,
        "error": error,
    }


def _response(definition: Definition, history: Sequence[State], state: State) -> str:
    """Return what the run says in the end: the output of the last step that had one, as text."""
    for entry in reversed(history):
        key = entry["output_key"]
        if isinstance(key, str) and state.get(key) is not None:
            value = state[key]
            return value if isinstance(value, str) else str(value)
    return f"{definition.name} completed"
