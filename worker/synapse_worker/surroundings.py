"""What every job of this process works with, and how a call of it outlasts an outage of PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity
from redis.asyncio import Redis

from synapse_worker.engine.models import Models
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.events import EventWriter
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.reservations import Reservations
from synapse_worker.settings import Settings
from synapse_worker.store.blobs import Blobs
from synapse_worker.store.database import Database
from synapse_worker.telemetry import Metrics

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a job works with; one per process."""

    database: Database
    client: Redis
    gate: StoreGate
    events: EventWriter
    chat_events: EventWriter
    sandbox: Sandbox
    models: Models
    blobs: Blobs
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
