"""From claimed leases to jobs that can run: payloads read, tenants' places reserved, runs owned, a batch at a time.

This is where the queue and the stores meet before a run starts; what happens to it then is `run_job`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence

from synapse_worker import chat_job, run_events
from synapse_worker.claimed_job import CRASH_LIMIT
from synapse_worker.errors import PayloadError, StoreRefused, StoreUnavailable
from synapse_worker.job_payloads import MAX_ID, claim_request, is_a_sessions, named, result, storable
from synapse_worker.queueing import stops
from synapse_worker.queueing.client import CHAT_FUNCTION
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Job, StopReason
from synapse_worker.queueing.payload import EXPIRED, JobPayload, decode
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.run_job import RunJob
from synapse_worker.run_traces import traced
from synapse_worker.store import chats, claims, definitions, pauses, runs
from synapse_worker.store.claims import ClaimRequest, OwnedRun, State, Verdict
from synapse_worker.store.runs import DeadLetter, RunWriter
from synapse_worker.surroundings import Surroundings

log = logging.getLogger(__name__)

_CANCEL_POLL_SECONDS = 0.5


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
            except Exception:
                log.exception("looking for cancelled jobs met an unexpected error; it goes on")
                continue
            for job, reason in wanted.items():
                if job in self._running:
                    self._running[job].stop(reason)

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        """Decode payloads, give every job a claim number and its run; see `Handler.begin`."""
        started: list[Job | Release | HandBack] = []
        requests: dict[str, tuple[Lease, JobPayload, ClaimRequest]] = {}
        # A run's first job has the run's id; whether others are to be cancelled `watch_cancels` finds out.
        unwanted = {RunningJob(lease.job_id, lease.job_id): StopReason.CANCELLED for lease in leases if lease.cancelled}
        for lease in leases:
            envelope, payload = lease.payload, None
            try:
                if not storable(lease.job_id):
                    raise PayloadError(f"the job's id is not a text of 1 to {MAX_ID} characters")
                envelope = envelope or await claims.envelope_of(self._with.database, lease.job_id)
                if envelope is None:
                    raise PayloadError(EXPIRED)
                payload = named(decode(envelope))
                request = claim_request(lease, envelope, payload, self._with.settings.default_tenant_id)
            except PayloadError as error:
                started.append(await self._reject(lease, envelope, payload, str(error)))
            else:
                requests[lease.job_id] = (lease, payload, request)
        await self._name_tenants(requests)
        started += await self._park_what_is_over(requests)
        turns = [job_id for job_id, (_, payload, _) in requests.items() if payload.function == CHAT_FUNCTION]
        started += await chat_job.begin(self._with, self._running, [requests.pop(job_id) for job_id in turns])
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
                requests[job_id] = (lease, payload, request._replace(tenant_id=known[request.run_id]))

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
        session_id = await self._session_of(job_id, payload) if storable(job_id) else None
        if session_id is not None:
            return await chat_job.reject(self._with, lease, envelope, payload, session_id, sentence)
        if not storable(job_id):  # a name for it that the ledger can hold, the same each time
            job_id = "unusable_" + hashlib.sha256(job_id.encode(errors="surrogateescape")).hexdigest()[:32]
        log.warning("job %s cannot be run: %s", job_id, sentence)
        letter = DeadLetter(
            function=payload.function if payload and storable(payload.function) else "unknown",
            payload=payload.arguments if payload else {},
            error=sentence,
            attempts=1,
        )
        named = payload.arguments.get("run_id") if payload else None
        run_id = named if isinstance(named, str) and storable(named) else job_id
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
            claim = await claims.claim_of(self._with.database, run_id)
            self._with.events.hand(run_id, claim, [run_events.failed(run_id, sentence), run_events.done(run_id)])
        return Release(lease, result(lease, payload, success=False, text=sentence))

    async def _session_of(self, job_id: str, payload: JobPayload | None) -> str | None:
        """Return the chat session that a job is a turn of, from its payload or else as its producer noted it."""
        if payload is None:
            return await chats.session_of(self._with.database, job_id)
        return str(payload.arguments["session_id"]) if is_a_sessions(payload) else None

    async def _already_ended(
        self, lease: Lease, payload: JobPayload, request: ClaimRequest, verdict: Verdict
    ) -> Release:
        """Release a job whose end was committed by an owner that died before it could say so."""
        run_id = request.run_id
        if verdict is Verdict.ENDED:
            if (asked := await pauses.waiting(self._with.database, run_id)) is not None:
                claim, question = asked
                self._with.events.hand(run_id, claim, run_events.asks(run_id, question, claim=claim))
            elif await claims.has_ended(self._with.database, run_id):
                claim = await claims.claim_of(self._with.database, run_id)
                self._with.events.hand(run_id, claim, [run_events.done(run_id)])
        log.info("job %s is released without running: %s", lease.job_id, verdict.value)
        return Release(lease, result(lease, payload, success=True, text=verdict.value))
