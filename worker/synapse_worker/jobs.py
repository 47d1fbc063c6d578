"""From a leased job to the end of its run: decode, own the run, run its steps, end it one way.

This is where the queue, the engine and the stores meet; each of them knows nothing of the others. Whatever
happens ends in exactly one of: done (the lease is released), given back, or lost (nothing more is written).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeVar

import tenacity
from redis.asyncio import Redis

from synapse_worker import tracing
from synapse_worker.connections import read_each
from synapse_worker.engine import runner
from synapse_worker.engine.checks import check_code
from synapse_worker.engine.errors import EngineError, NewerCursor
from synapse_worker.engine.frames import ENGINE_VERSION, Cursor
from synapse_worker.engine.model import Definition, Step
from synapse_worker.engine.runner import Execute, Fail, Finish, LimitReached
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, PayloadError, StoreRefused, StoreUnavailable
from synapse_worker.events import EventWriter
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys, stops
from synapse_worker.queueing.client import RESUME_FUNCTION, RUN_FUNCTION
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, Job, StopReason
from synapse_worker.queueing.payload import EXPIRED, JobPayload, decode, encode_result
from synapse_worker.queueing.reservations import Reservations
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.run_traces import traced
from synapse_worker.settings import Settings
from synapse_worker.store import claims, definitions, runs
from synapse_worker.store.claims import ClaimRequest, OwnedRun, State, Verdict
from synapse_worker.store.database import Database, to_jsonb
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter, StepRow
from synapse_worker.telemetry import Metrics

log = logging.getLogger(__name__)

T = TypeVar("T")

_FOLD_SECONDS = 3.0
_RETRY_BASE_SECONDS = 1.0
_RETRY_MOST_SECONDS = 300.0
_NEWER_CURSOR_DELAY_MS = 5_000
_CANCEL_POLL_SECONDS = 0.5
_LAST_WRITE_SECONDS = 2.0
_MAX_ID = 255

CRASH_LIMIT = 3
"""Crashes of a job that ran alone, without a step finished in between, until it is given up."""

_PARAMETERS = {
    RUN_FUNCTION: (
        "run_id",
        "orch_id",
        "initial_input",
        "session_id",
        "initial_state",
        "webhook_url",
        "webhook_secret",
        "tenant_id",
        "api_key_id",
    ),
    RESUME_FUNCTION: ("run_id",),
}
"""The functions of this release, each with its arguments in the order of upstream's function."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a job works with; one per process."""

    database: Database
    client: Redis
    gate: StoreGate
    events: EventWriter
    sandbox: Sandbox
    reservations: Reservations
    metrics: Metrics
    settings: Settings

    async def persist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until Postgres answers it; a store's outage suspends a run, it never fails one."""
        try:
            return await call()
        except (StoreUnavailable, StoreRefused) as error:
            self.gate.trip(error)
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((StoreUnavailable, StoreRefused)),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2.0),
            reraise=True,
        ):
            with attempt:
                try:
                    return await call()
                except (StoreUnavailable, StoreRefused) as error:
                    self.gate.trip(error)
                    raise
        raise AssertionError("unreachable: the retry above has no end")


class Jobs:
    """The claim loop's handler for the job functions that this release runs."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._with = surroundings
        self._writer = RunWriter(surroundings.database)
        self._running: dict[RunningJob, Control] = {}
        self._aborts = True  # until it is known that nobody aborts anything

    async def watch_cancels(self) -> None:
        """Stop runs that somebody cancelled or aborted: two calls for all of them, twice a second, for ever."""
        while True:
            await asyncio.sleep(_CANCEL_POLL_SECONDS)
            running = list(self._running)
            if not self._with.gate.is_open:
                continue
            try:
                self._aborts = await stops.any_aborted(self._with.client)
                wanted = await stops.wanted(self._with.client, running) if running else {}
            except (StoreUnavailable, StoreRefused) as error:
                self._with.gate.trip(error)
                continue
            for job, reason in wanted.items():
                if job in self._running:
                    self._running[job].stop(reason)

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        """Read payloads, give every job a claim number and its run; see `Handler.begin`."""
        started: list[Job | Release | HandBack] = []
        requests: dict[str, tuple[Lease, JobPayload, ClaimRequest]] = {}
        # A run's first job has the run's id; whether others are to be cancelled `watch_cancels` finds out.
        found_keys = await read_each(
            self._with.client,
            [*(keys.job(lease.job_id) for lease in leases), *(keys.cancel(lease.job_id) for lease in leases)],
        )
        raws, cancels = found_keys[: len(leases)], found_keys[len(leases) :]
        unwanted = {
            RunningJob(lease.job_id, lease.job_id): StopReason.CANCELLED
            for lease, cancel in zip(leases, cancels, strict=True)
            if cancel is not None
        }
        for lease, raw in zip(leases, raws, strict=True):
            envelope, payload = raw, None
            try:
                if not _storable(lease.job_id):
                    raise PayloadError(f"the job's id is not a text of 1 to {_MAX_ID} characters")
                envelope = raw or await claims.envelope_of(self._with.database, lease.job_id)
                if envelope is None:
                    raise PayloadError(EXPIRED)
                payload = _named(decode(envelope))
                request = _request(lease, envelope, payload, self._with.settings.default_tenant_id)
            except PayloadError as error:
                started.append(await self._reject(lease, envelope, payload, str(error)))
            else:
                requests[lease.job_id] = (lease, payload, request)
        await self._name_tenants(requests)
        started += await self._park_what_is_over(requests)
        if requests:
            asked = [request for _, _, request in requests.values()]
            if self._aborts:
                unwanted |= await self._aborted(asked)
            taken = await claims.take(self._with.database, self._with.settings.worker_id, asked)
            owned = [answer.run for answer in taken if answer.run is not None]
            # Owned from here on: an outage now must not make it look as if this process had crashed over them.
            whole, found = await self._with.persist(lambda: self._read(owned))
            for answer in taken:
                lease, payload, request = requests[answer.request.job_id]
                if answer.run is None:
                    self._with.reservations.free(lease.job_id, request.tenant_id)
                    if answer.verdict is Verdict.MISSING:
                        sentence = f"there is no run {request.run_id!r} to go on with"
                        started.append(await self._reject(lease, request.envelope, payload, sentence))
                    else:
                        started.append(await self._already_ended(lease, payload, request, answer.verdict))
                    continue
                run = whole[answer.run.run_id]
                stop = unwanted.get(RunningJob(request.run_id, request.job_id))
                if stop is None and run.suspect and not lease.alone and run.crashes < CRASH_LIMIT:
                    self._with.reservations.free(lease.job_id, request.tenant_id)
                    started.append(await self._set_apart(lease, run))
                    continue
                definition = run.definition or found.get(run.orchestration_id)
                job = RunJob(lease, payload, request, run, definition, self._with, self._writer, self._running)
                job.unwanted = stop
                started.append(traced(job, payload, run, lease_seconds=self._with.settings.lease_seconds))
        return started

    async def _name_tenants(self, requests: dict[str, tuple[Lease, JobPayload, ClaimRequest]]) -> None:
        """Give jobs that go on with a run that run's tenant; they name none themselves."""
        resumed = [request.run_id for _, _, request in requests.values() if not request.orchestration_id]
        known = await claims.tenants_of(self._with.database, resumed) if resumed else {}
        for job_id, (lease, payload, request) in requests.items():
            if not request.orchestration_id and request.run_id in known:
                requests[job_id] = (lease, payload, replace(request, tenant_id=known[request.run_id]))

    async def _park_what_is_over(self, requests: dict[str, tuple[Lease, JobPayload, ClaimRequest]]) -> list[HandBack]:
        """Take out of `requests` the jobs of tenants that run as many as they may, before anything is written."""
        wanted = sorted((lease.score, job_id, request.tenant_id) for job_id, (lease, _, request) in requests.items())
        refused = await self._with.reservations.reserve((job_id, tenant) for _, job_id, tenant in wanted)
        parked: list[HandBack] = []
        full: dict[str, set[str]] = defaultdict(set)
        for job_id in refused:
            lease, _, request = requests.pop(job_id)
            parked.append(HandBack(lease, None, parked_for=request.tenant_id))
            full[lease.queue_key].add(request.tenant_id)
        for queue_key, tenants in full.items():
            self._with.reservations.park_backlog(queue_key, tenants)
        return parked

    async def _read(self, owned: Sequence[OwnedRun]) -> tuple[dict[str, OwnedRun], dict[str, State]]:
        """Return the runs with their finished steps, by run id, and the definitions that they have not kept, by id."""
        fresh = sorted({run.orchestration_id for run in owned if run.definition is None})
        return (
            await claims.with_steps(self._with.database, owned),
            await definitions.read_orchestrations(self._with.database, fresh) if fresh else {},
        )

    async def _set_apart(self, lease: Lease, run: OwnedRun) -> HandBack:
        """Give a run whose owner crashed over it to the suspects, which are run where nothing else runs."""
        log.warning("run %s: its worker ended over it without a finished step; it is run alone next", run.run_id)
        await self._with.persist(lambda: claims.give_back(self._with.database, run, active_seconds=0.0))
        return HandBack(lease, None, suspect=True)

    async def _aborted(self, requests: Sequence[ClaimRequest]) -> dict[RunningJob, StopReason]:
        """Return the jobs that need not start; what cannot be asked now is asked again while they run."""
        try:
            return await stops.wanted(
                self._with.client, [RunningJob(request.run_id, request.job_id) for request in requests]
            )
        except (StoreUnavailable, StoreRefused):
            return {}

    async def _reject(self, lease: Lease, envelope: bytes | None, payload: JobPayload | None, sentence: str) -> Release:
        job_id = lease.job_id
        if not _storable(job_id):  # a name for it that the ledger can hold, the same each time
            job_id = "unusable_" + hashlib.sha256(job_id.encode(errors="surrogateescape")).hexdigest()[:32]
        log.warning("job %s cannot be run: %s", job_id, sentence)
        letter = DeadLetter(
            function=payload.function if payload and _storable(payload.function) else "unknown",
            payload=payload.arguments if payload else {},
            error=sentence,
            attempts=1,
        )
        named = payload.arguments.get("run_id") if payload else None
        run_id = named if isinstance(named, str) and _storable(named) else job_id
        ended = await runs.reject(
            self._with.database,
            job_id=job_id,
            run_id=run_id,
            queue=lease.queue_key,
            envelope=envelope,
            letter=letter,
            outcome="expired" if sentence == EXPIRED else "failed",
        )
        self._with.metrics.runs_completed("unknown", "failed")
        if ended:
            error: State = {"type": "orchestration_error", "error": sentence, "event_id": f"{run_id}:error:1:0"}
            claim = await claims.claim_of(self._with.database, run_id)
            self._with.events.hand(run_id, claim, [error, _sentinel(run_id)])
        return Release(lease, _result(lease, payload, success=False, text=sentence))

    async def _already_ended(
        self, lease: Lease, payload: JobPayload, request: ClaimRequest, verdict: Verdict
    ) -> Release:
        """Release a job whose end was committed by an owner that died before it could say so."""
        if verdict is Verdict.ENDED:
            claim = await claims.claim_of(self._with.database, request.run_id)
            self._with.events.hand(request.run_id, claim, [_sentinel(request.run_id)])
        log.info("job %s is released without running: %s", lease.job_id, verdict.value)
        return Release(lease, _result(lease, payload, success=True, text=verdict.value))


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
                    with tracing.step(decision.step.id, decision.step.type, decision.visit):
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
            return _named(decode(envelope)).arguments
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
                outcome = await EXECUTORS[step.type](step, self._state, StepContext(self._with.sandbox, prefix))
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
        return Release(self.lease, _result(self.lease, self._payload, success=True, text="completed"))

    async def _fail(self, sentence: str) -> Ending:
        log.warning("run %s failed: %s", self._run.run_id, sentence)
        letter = DeadLetter(self._payload.function, self._payload.arguments, sentence, self._run.failures + 1)
        if not await self._end(RunStatus.FAILED, sentence, letter):
            return None
        await self._say_last(
            [{"type": "orchestration_error", "error": sentence, "event_id": f"{self._run.run_id}:error:1:0"}]
        )
        return Release(self.lease, _result(self.lease, self._payload, success=False, text=sentence))

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
        return Release(self.lease, _result(self.lease, self._payload, success=False, text=said))

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
            tracing.ended(status.value, error)
            self._with.metrics.runs_completed(self._run.tenant_id, status.value)
            self._with.metrics.run_duration(self._run.tenant_id, self._run.active_seconds + active)
        return ended

    async def _say_last(self, events: list[State]) -> None:
        self._hand([*events, _sentinel(self._run.run_id)])
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


def _named(payload: JobPayload) -> JobPayload:
    """Return the job with its positional arguments under their names; what a name is given for wins."""
    names = _PARAMETERS.get(payload.function, ())
    given = dict(zip(names, payload.positional, strict=False))
    return replace(payload, arguments={**given, **payload.arguments}, positional=payload.positional[len(names) :])


def _storable(text: str, most: int = _MAX_ID) -> bool:
    """Whether PostgreSQL can hold a text in a column of so many characters, and a key of Redis name it."""
    try:
        return len(text.encode()) > 0 and len(text) <= most and "\x00" not in text
    except UnicodeEncodeError:
        return False


def _request(lease: Lease, envelope: bytes, payload: JobPayload, default_tenant: str) -> ClaimRequest:
    """Check a job's arguments and return what it asks for.

    Raises:
        PayloadError: the function is not run by this release, or an argument is missing or of the wrong kind.
    """
    if payload.function not in _PARAMETERS:
        raise PayloadError(
            f"unknown job function {payload.function[:80]!r}; this release runs {' and '.join(_PARAMETERS)}"
        )
    arguments = payload.arguments
    if set("{}") & set(str(arguments.get("run_id"))):
        # On a Redis Cluster the run's stream and the claim on it would live in different hash slots.
        raise PayloadError("the job's argument run_id must not hold braces")

    def text(name: str, *, required: bool = False, most: int = _MAX_ID) -> str | None:
        value = arguments.get(name)
        if value is None and not required:
            return None
        if not isinstance(value, str) or not _storable(value, most):
            raise PayloadError(f"the job's argument {name} must be a text of 1 to {most} characters")
        return value

    if arguments.get("initial_state") is not None and not isinstance(arguments["initial_state"], dict):
        raise PayloadError("the job's argument initial_state must be a mapping of state keys")
    return ClaimRequest(
        job_id=lease.job_id,
        run_id=str(text("run_id", required=True)),
        queue=lease.queue_key,
        envelope=envelope,
        enqueued_ms=payload.enqueued_ms or (int(lease.score) if 0 < lease.score < 2**42 else 0),
        orchestration_id=str(text("orch_id", required=True)) if payload.function == RUN_FUNCTION else "",
        session_id=text("session_id"),
        tenant_id=text("tenant_id") or default_tenant,
        webhook_url=text("webhook_url", most=8192),
        webhook_secret=text("webhook_secret", most=8192),
        alone=lease.alone,
    )


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


def _sentinel(run_id: str) -> State:
    return {"type": "done", "event_id": f"{run_id}:done"}


def _result(lease: Lease, payload: JobPayload | None, *, success: bool, text: str | BaseException) -> bytes:
    return encode_result(
        payload or JobPayload("unknown", {}),
        job_id=lease.job_id,
        queue_key=lease.queue_key,
        success=success,
        result=text,
        now_ms=int(time.time() * 1000),
    )
