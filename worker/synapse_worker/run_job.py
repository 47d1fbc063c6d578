"""One run under one lease and one claim: where it stands, how long it may take, and how it ends.

The ways are: it has ended (the lease is released), it is given back, or it is somebody else's (nothing more is
written). Its steps are `run_walk`'s; what a batch of claimed jobs needs before they can run is `jobs`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from synapse_worker import model_work, run_events, tracing
from synapse_worker.claimed_job import ClaimedJob
from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.endings import whole
from synapse_worker.engine import runner
from synapse_worker.engine.checks import check_code
from synapse_worker.engine.errors import EngineError, NewerCursor
from synapse_worker.engine.frames import Cursor
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.model import Definition
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, PayloadError, StoreRefused, StoreUnavailable
from synapse_worker.job_payloads import named, result, retried_as
from synapse_worker.nested_runs import run_nested
from synapse_worker.queueing import keys, stops
from synapse_worker.queueing.client import ANSWER_FUNCTION, RUN_FUNCTION
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, StopReason
from synapse_worker.queueing.payload import JobPayload, decode
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.run_walk import Answer, Walk, Walked, parsed
from synapse_worker.store import claims, nested, pauses, runs
from synapse_worker.store.claims import ClaimRequest, OwnedRun, State
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter
from synapse_worker.surroundings import Surroundings

log = logging.getLogger(__name__)

_NEWER_CURSOR_DELAY_MS = 5_000


class RunJob(ClaimedJob):
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
        ids = RunningJob(run.run_id, run.job_id)
        name = f"run {run.run_id}"
        super().__init__(lease, payload, run, surroundings, running, ids, tenant_id=request.tenant_id, name=name)
        self.unwanted: StopReason | None = None
        """Why it is to end before it starts, if it is."""
        self._writer = writer
        self._run = run
        self._document = definition
        self._walk: Walk | None = None

    async def _unwanted(self) -> StopReason | None:
        return self.unwanted

    async def _work(self, control: Control) -> Ending:
        definition, walk = await self._prepare()
        if walk is None:
            return HandBack(self.lease, _NEWER_CURSOR_DELAY_MS) if await self._give_back(failed=False) else None
        self._walk = walk
        left = await self._seconds_left(definition)
        await walk.announce()

        def halts() -> bool:
            # Alone and past where its owner had crashed, it may run beside others, and others need the room.
            return control.hand_over or (self.lease.alone and walk.steps_done > self._run.steps_done)

        try:
            async with asyncio.timeout(left) as timer:
                walked = await walk.go(halts)
        except TimeoutError:
            if not timer.expired():
                raise
            raise JobFailed(
                f"the run took longer than the timeout_minutes ({definition.timeout_minutes:g}) of {definition.title}"
            ) from None
        match walked:
            case Walked.FINISHED:
                return await whole(self._complete(definition, walk))
            case Walked.HALTED:
                return await whole(self._hand_over())
            case Walked.PAUSED:
                return await whole(self._pause(walk))

    async def _seconds_left(self, definition: Definition) -> float | None:
        """Return how long the run may still take by its orchestration's timeout_minutes; None = no limit."""
        if definition.timeout_minutes is None:
            return None
        seconds = definition.timeout_minutes * 60
        left = await self._with.persist(lambda: runs.start_clock(self._with.database, self._run, seconds))
        if left is None:
            raise OwnershipLost(self._run.run_id)
        return left

    async def _prepare(self) -> tuple[Definition, Walk | None]:
        """Return the run's definition and where it stands; None when a newer release has to go on with it."""
        if self._document is None:
            raise JobFailed(
                f"orchestration {self._run.orchestration_id!r} does not exist; sync it, then enqueue the run again"
            )
        document, work = self._document, None
        try:
            definition = parsed(document)
            if self._run.cursor is None:
                await check_code(definition, self._with.sandbox)
                cursor, state = await self._first_cursor(definition)
            else:
                cursor, state = Cursor.from_json(self._run.cursor), dict(self._run.state)
            if definition.asks_models:
                work = await model_work.prepare(self._with, definition, document)
                document = work.document
            answer = None
            if self._payload.function == ANSWER_FUNCTION and cursor.asked is not None:
                answer = Answer(cast(JsonValue, self._payload.arguments["human_response"]), cursor.asked)
                await self._forget_answers()
        except NewerCursor:
            return definition, None
        except EngineError as error:
            raise (JobFailed if error.final else JobRetry)(str(error)) from None
        walk = Walk(
            self._run,
            definition,
            document,
            cursor,
            state,
            self._with,
            self._writer,
            run_nested,
            answer=answer,
            model_work=work,
        )
        return definition, walk

    async def _first_cursor(self, definition: Definition) -> tuple[Cursor, State]:
        """Return where a run without a checkpoint starts, and the state that it starts with."""
        arguments = self._payload.arguments
        if self._payload.function == ANSWER_FUNCTION and self._run.current_step_id is not None:
            at = self._run.current_step_id
            return runner.resume_paused(self._run.run_id, at, self._run.history), dict(self._run.state)
        if self._payload.function != RUN_FUNCTION:
            if self._run.state:
                return runner.resume(definition, self._run.history), dict(self._run.state)
            arguments = await self._first_arguments()
        initial = arguments.get("initial_state")
        given = initial if isinstance(initial, Mapping) else None
        state = runner.initial_state(definition, arguments.get("initial_input"), given)
        return runner.begin(definition), dict(state)

    async def _first_arguments(self) -> Mapping[str, object]:
        """Return the arguments that the run was first enqueued with: its first job has the run's own id."""
        envelope = await claims.envelope_of(self._with.database, self._run.run_id)
        if envelope is None:
            raise JobFailed("the run's input is not kept any more; enqueue the orchestration again")
        try:
            return named(decode(envelope)).arguments
        except PayloadError as error:
            raise JobFailed(str(error)) from None

    async def _complete(self, definition: Definition, walk: Walk) -> Ending:
        if not await self._end(RunStatus.COMPLETED, None, None):
            return None
        response = run_events.response(definition, walk.history, walk.state)
        await self._say_last(
            run_events.completed(self._run.run_id, state=walk.state, history=walk.history, response=response)
        )
        return Release(self.lease, result(self.lease, self._payload, success=True, text="completed"))

    async def _pause(self, walk: Walk) -> Ending:
        """Let the run wait for its human; nothing of it is left here."""
        run, why, active = self._run, walk.why_paused, self._active()
        if not await self._with.persist(lambda: pauses.pause(self._with.database, run, why, active_seconds=active)):
            return None
        tracing.note(run_status=RunStatus.PAUSED.value)
        await self._forget_answers()
        said = run_events.asks(run.run_id, why.question, claim=run.claim)
        self._with.events.hand(run.run_id, run.claim, said)
        await self._with.events.written(run.run_id)
        return Release(self.lease, result(self.lease, self._payload, success=True, text="paused"))

    async def _forget_answers(self) -> None:
        """Remove what a main instance may have left: it would be taken for the answer to the next question there."""
        with suppress(StoreUnavailable, StoreRefused), redis_errors_as_ours():
            await self._with.client.delete(keys.human_input(self._run.run_id))

    async def _fail(self, sentence: str) -> Ending:
        log.warning("%s failed: %s", self._name, sentence)
        letter = DeadLetter(*retried_as(self._payload), sentence, self._failures + 1)
        if not await self._end(RunStatus.FAILED, sentence, letter):
            return None
        await self._say_last([run_events.failed(self._run.run_id, sentence)])
        return Release(self.lease, result(self.lease, self._payload, success=False, text=sentence))

    async def _cancel(self, reason: StopReason) -> Ending:
        if not await self._end(RunStatus.CANCELLED, "cancelled", None):
            return None
        with suppress(StoreUnavailable, StoreRefused):  # the marks run out by themselves
            await stops.settle(self._with.client, self._ids)
        await self._say_last([run_events.failed(self._run.run_id, "cancelled")])
        # Only who aborted the job waits for this exception; elsewhere it would look like a cancellation of its own.
        said = asyncio.CancelledError("cancelled") if reason is StopReason.ABORTED else "cancelled"
        return Release(self.lease, result(self.lease, self._payload, success=False, text=said))

    async def _write_back(self, active_seconds: float, *, failed: bool) -> bool:
        return await claims.give_back(
            self._with.database, self._run, active_seconds=active_seconds, failed=failed, alone=self.lease.alone
        )

    async def _end(self, status: RunStatus, error: str | None, letter: DeadLetter | None) -> bool:
        active = self._active()
        if self._control is not None:
            self._control.ends()
        if self._walk is None or self._walk.definition.nests:  # an earlier owner may have walked it
            # Before the run itself: what a crash leaves in between is taken up again with it.
            await self._with.persist(lambda: nested.end_with(self._with.database, self._run, status))
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
            tracing.ended(status.value, error)
            self._with.metrics.runs_completed(self._run.tenant_id, status.value)
            self._with.metrics.run_duration(self._run.tenant_id, self._run.active_seconds + active)
        return ended

    async def _say_last(self, events: list[State]) -> None:
        events = [*events, run_events.done(self._run.run_id)]
        self._with.events.hand(self._run.run_id, self._run.claim, events)
        await self._with.events.written(self._run.run_id)

    def _whole(self) -> Folded:
        if self._walk is not None:
            return self._walk.folded
        return Folded(self._run.state, self._run.history, self._run.steps_done)
