"""A claimed job as a part of its trace: how long it waited, how it was taken, and all that it does then.

The trace of a run, or of a chat's turn, began where it was enqueued, and the payload says where: it is kept in the
ledger, so what another worker continues stays in its trace. A payload without that (a main instance's) begins the trace
here, with an id that follows from the run's, or from the turn's job's.
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
from synapse_worker.store.chat_turns import OwnedTurn
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.database import Database
from synapse_worker.tracing import Kind


def traced(job: Job, payload: JobPayload, owned: OwnedRun | OwnedTurn, *, lease_seconds: int) -> Job:
    """Return the job with a span around all it does, where tracing is on; else the job itself."""
    return _TracedJob(job, payload, owned, lease_seconds) if tracing.is_on() else job


async def traceparent_of(database: Database, run_id: str) -> str:
    """Return where a run's or turn's trace began, for what it is owed outside of its jobs; "" = off, or unknown.

    Args:
        run_id: the run's; of a turn, its job's.

    Raises:
        StoreUnavailable, StoreRefused: PostgreSQL does not say.
    """
    envelope = await claims.envelope_of(database, run_id) if tracing.is_on() else None
    try:
        return "" if envelope is None else tracing.well_formed(decode(envelope).extras.get("traceparent"))
    except PayloadError:
        return ""


class _TracedJob:
    def __init__(self, job: Job, payload: JobPayload, owned: OwnedRun | OwnedTurn, lease_seconds: int) -> None:
        self._job = job
        self._payload = payload
        self._owned = owned
        held = asyncio.get_running_loop().time() - (job.lease.expires - lease_seconds)
        self._claimed_ns = time.time_ns() - max(0, int(held * 1e9))

    @property
    def lease(self) -> Lease:
        """The job's lease."""
        return self._job.lease

    async def run(self, control: Control) -> Ending:
        """Run the job; see `Job.run`."""
        lease = self._job.lease
        name, key, attributes = _about(self._owned)
        waited_since = min(self._payload.enqueued_ms * 1_000_000, self._claimed_ns)
        with tracing.begin(
            name,
            Kind.CONSUMER,
            {
                **attributes,
                "tenant_id": self._owned.tenant_id,
                "claim": self._owned.claim,
                "messaging.system": "redis",
                "messaging.destination.name": lease.queue_key,
                "messaging.message.id": lease.job_id,
                "messaging.operation.type": "process",
            },
            parent=tracing.well_formed(self._payload.extras.get("traceparent")),
            key=key,
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
        owned = self._owned
        run_went_on = isinstance(owned, OwnedRun) and owned.cursor is not None and self.lease.job_id == owned.run_id
        return not (run_went_on or owned.suspect or owned.failures or owned.active_seconds)


def _about(owned: OwnedRun | OwnedTurn) -> tuple[str, str, dict[str, tracing.Value]]:
    """Return the span's name, the text from which a new trace has its id, and the span's own attributes."""
    if isinstance(owned, OwnedTurn):
        return (
            f"chat {owned.agent_id}",
            owned.job_id,
            {"job_id": owned.job_id, "session_id": owned.session_id, "agent_id": owned.agent_id},
        )
    return (
        f"run {owned.orchestration_id}",
        owned.run_id,
        {
            "run_id": owned.run_id,
            "orchestration_id": owned.orchestration_id,
            "steps_done_before": owned.steps_done,
        },
    )


def _how(ending: Ending) -> str:
    match ending:
        case Release():
            return "released"
        case HandBack():
            return "given back"
        case None:
            return "lost"
