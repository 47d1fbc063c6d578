"""What any worker does now and then for all of them: bring back lost queue entries, note silent workers.

Each batch runs under a Postgres transaction lock, so one process at a time does it, whichever it is; a process
that finds the lock taken does nothing. The sweep is what makes a run durable: whatever happens to Redis between
the ledger's commit and the queue entry, or afterwards, the entry is written again from the ledger's envelope.
"""

from __future__ import annotations

import asyncio
import logging
import random

from redis.asyncio import Redis

from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.client import put
from synapse_worker.store import ledger
from synapse_worker.store.database import Database
from synapse_worker.store.workers import mark_silent

log = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0
OVERDUE_SECONDS = 60.0
"""How long an open job is left alone: a producer may be between its two writes, an owner between two heartbeats."""
BATCH = 200


class Housekeeper:
    """Run `keep` as a task."""

    def __init__(self, database: Database, client: Redis, gate: StoreGate) -> None:
        self._database = database
        self._client = client
        self._gate = gate
        self._cursor = ""
        self.swept = 0
        """Queue entries that this process has written again."""

    async def keep(self) -> None:
        """Keep house for ever, while both stores answer."""
        while True:
            await asyncio.sleep(PERIOD_SECONDS * random.uniform(0.7, 1.3))  # noqa: S311 - spreads the workers
            if not self._gate.is_open:
                continue
            try:
                await mark_silent(self._database)
                await self.sweep()
            except (StoreUnavailable, StoreRefused) as error:
                self._gate.trip(error)
            except Exception:
                log.exception("housekeeping met an unexpected error; it goes on")

    async def sweep(self, overdue_seconds: float = OVERDUE_SECONDS) -> int:
        """Write queue entries again for open jobs that have none; returns how many.

        One bounded batch a call, by a cursor that moves through the open jobs and starts anew behind the last.
        """
        added = 0
        async with self._database.transaction() as transaction:
            if not await ledger.lock_sweep(transaction):
                return 0
            overdue = await ledger.overdue(transaction, overdue_seconds, after=self._cursor, limit=BATCH)
            for job in overdue:
                # Looks in the queue, among what was given back or parked, and among the leases, before it adds.
                if await put(self._client, job.queue, job.job_id, job.envelope, job.tenant_id):
                    added += 1
                    log.info("job %s had no queue entry any more; it is queued again", job.job_id)
        self._cursor = overdue[-1].job_id if len(overdue) == BATCH else ""
        self.swept += added
        return added
