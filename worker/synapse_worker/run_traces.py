"""A claimed job as a part of its run's trace: how long it waited, how it was taken, and all that it does then.

The trace began where the run was enqueued, and the payload says where: it is kept in the ledger, so a run that another
worker continues stays in its trace. A payload without that (a main instance's) begins the trace here, with an id that
follows from the run's.
"""

from __future__ import annotations

import asyncio
import time

from synapse_worker import tracing
from synapse_worker.errors import PayloadError
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, Job
from synapse_worker.queueing.payload import JobPayload, decode
from synapse_worker.store import claims
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.database import Database
from synapse_worker.tracing import Kind


def traced(job: Job, payload: JobPayload, run: OwnedRun, *, lease_seconds: int) -> Job:
    """Return the job with a span around its run, where tracing is on; else the job itself."""
    return _TracedJob(job, payload, run, lease_seconds) if tracing.is_on() else job


async def traceparent_of(database: Database, run_id: str) -> str:
    """Return where a run's trace began, for what a run is owed outside of its jobs; "" = off, or unknown.

    Raises:
        StoreUnavailable, StoreRefused: PostgreSQL does not say.
    """
    envelope = await claims.envelope_of(database, run_id) if tracing.is_on() else None
    try:
        return "" if envelope is None else tracing.well_formed(decode(envelope).extras.get("traceparent"))
    except PayloadError:
        return ""


class _TracedJob:
    def __init__(self, job: Job, payload: JobPayload, run: OwnedRun, lease_seconds: int) -> None:
        self._job = job
        self._payload = payload
        self._run = run
        held = asyncio.get_running_loop().time() - (job.lease.expires - lease_seconds)
        self._claimed_ns = time.time_ns() - max(0, int(held * 1e9))

    @property
    def lease(self) -> Lease:
        """The job's lease."""
        return self._job.lease

    async def run(self, control: Control) -> Ending:
        """Run the job; see `Job.run`."""
        run, lease = self._run, self._job.lease
        attributes: dict[str, tracing.Value] = {
            "run_id": run.run_id,
            "orchestration_id": run.orchestration_id,
            "tenant_id": run.tenant_id,
            "claim": run.claim,
            "steps_done_before": run.steps_done,
            "messaging.system": "redis",
            "messaging.destination.name": lease.queue_key,
            "messaging.message.id": lease.job_id,
            "messaging.operation.type": "process",
        }
        waited_since = min(self._payload.enqueued_ms * 1_000_000, self._claimed_ns)
        with tracing.begin(
            f"run {run.orchestration_id}",
            Kind.CONSUMER,
            attributes,
            parent=tracing.well_formed(self._payload.extras.get("traceparent")),
            key=run.run_id,
            start_ns=self._claimed_ns,
        ):
            if waited_since and self._is_first_claim:
                tracing.past("queue wait", waited_since, self._claimed_ns, queue=lease.queue_key)
            tracing.past("claim", self._claimed_ns, time.time_ns())
            ending = await self._job.run(control)
            tracing.note(lease_ends_as=_how(ending))
            return ending

    @property
    def _is_first_claim(self) -> bool:
        """Whether the job waited since it was enqueued, and not since another claim gave it back or crashed over it."""
        run = self._run
        went_on = run.cursor is not None and self._job.lease.job_id == run.run_id
        return not (went_on or run.suspect or run.failures or run.active_seconds)


def _how(ending: Ending) -> str:
    match ending:
        case Release():
            return "released"
        case HandBack():
            return "given back"
        case None:
            return "lost"
