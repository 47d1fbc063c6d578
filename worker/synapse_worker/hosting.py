"""What a process needs beside queues and stores to run jobs: opened together, closed together.

Workers are such processes (`lifecycle`), and where scale mode is off those of the API. Which jobs they take, and when
they stop, is theirs to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from synapse_worker.engine.locked_python import LockedPython
from synapse_worker.engine.models import Models
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.events import EventWriter
from synapse_worker.gate import StoreGate
from synapse_worker.jobs import Jobs
from synapse_worker.queueing import keys
from synapse_worker.queueing.reservations import Reservations
from synapse_worker.queueing.served import Served
from synapse_worker.settings import Settings
from synapse_worker.store import tenants
from synapse_worker.store.blobs import Blobs
from synapse_worker.store.database import Database
from synapse_worker.surroundings import Surroundings
from synapse_worker.telemetry import Metrics

_SANDBOX_PROCESSES = 4


@dataclass(frozen=True, slots=True)
class Host:
    """The handler of claimed jobs, and the places that they take up.

    Attributes:
        beside: what runs beside the jobs and ends only by an error of ours; without it no job goes on.
    """

    jobs: Jobs
    reservations: Reservations
    beside: Sequence[asyncio.Task[None]]


@asynccontextmanager
async def hosting(
    database: Database,
    client: Redis,
    gate: StoreGate,
    blobs: Blobs,
    served: Served,
    settings: Settings,
    known_tenants: Mapping[str, tenants.Tenant],
    metrics: Metrics,
) -> AsyncIterator[Host]:
    """Open it; what runs beside the jobs (events, cancels, reservations) runs while the block lasts."""
    events = EventWriter(client, ttl_seconds=settings.event_ttl)
    chat_events = EventWriter(
        client, ttl_seconds=settings.event_ttl, stream=keys.chat_events, length=keys.CHAT_STREAM_MAX_LENGTH
    )
    async with (
        LockedPython() as whole,
        Sandbox(processes=min(settings.concurrency, _SANDBOX_PROCESSES), whole=whole) as sandbox,
        Models() as models,
    ):
        reservations = Reservations(
            client,
            gate,
            served,
            partial(tenants.read_all, database),
            known_tenants,
            worker_id=settings.worker_id,
            lease_seconds=settings.lease_seconds,
            default_tenant=settings.default_tenant_id,
        )
        jobs = Jobs(
            Surroundings(
                database, client, gate, events, chat_events, sandbox, models, blobs, reservations, metrics, settings
            )
        )
        works = (events.write(), chat_events.write(), jobs.watch_cancels(), reservations.keep())
        beside = [asyncio.create_task(work) for work in works]
        try:
            yield Host(jobs, reservations, beside)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
