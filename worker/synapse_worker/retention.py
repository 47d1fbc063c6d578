"""Removing what is older than RUNS_RETENTION_DAYS, so that no table grows for ever.

Done page by page, each page a transaction under a lock of its own (`store.retention`), for a few seconds at a time: a
backlog is worked off over many turns, and nothing waits behind one long statement. A job's ledger row is what keeps an
ended job from being run once more; it stays for as long as Redis holds anything by which the job could be claimed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

from redis.asyncio import Redis

from synapse_worker.queueing.client import nowhere
from synapse_worker.store import retention
from synapse_worker.store.database import Database, Transaction
from synapse_worker.store.retention import BEGINNING, ENDED

log = logging.getLogger(__name__)

TURN_SECONDS = 10.0
PAGE = 500

_OnePage = Callable[[Transaction], Awaitable[tuple[int, bool]]]
"""Removes one page; returns how many rows, and whether there may be more."""


class Retention:
    """Remembers how far it is among rows that are old and kept, so that each turn looks at others."""

    def __init__(self, database: Database, client: Redis, *, days: int) -> None:
        """Make one.

        Args:
            days: how long ended runs are kept.
        """
        self._database = database
        self._client = client
        self._days = days
        self._after: dict[str, datetime] = {}

    async def remove(self) -> int:
        """Remove what is old, for at most `TURN_SECONDS`; returns how many runs.

        Raises:
            StoreUnavailable, StoreRefused: the rest is left for another time.
        """
        deadline = asyncio.get_running_loop().time() + TURN_SECONDS
        runs = 0
        for status in ENDED:
            runs += await self._pages(partial(self._runs, status), deadline)
        if runs:
            log.info("%d runs that ended over %d days ago were removed", runs, self._days)
        for one_page in (self._jobs, self._webhooks, self._letters, self._idempotency_keys, self._workers):
            await self._pages(one_page, deadline)
        return runs

    async def _pages(self, one_page: _OnePage, deadline: float) -> int:
        removed, more = 0, True
        while more and asyncio.get_running_loop().time() < deadline:
            async with self._database.transaction() as transaction:
                if not await retention.lock(transaction):
                    return removed
                count, more = await one_page(transaction)
                removed += count
        return removed

    async def _runs(self, status: str, transaction: Transaction) -> tuple[int, bool]:
        after = self._after.pop(status, BEGINNING)
        page = await retention.remove_runs(transaction, status, days=self._days, after=after, limit=PAGE)
        if page.seen:
            self._after[status] = page.after
        return page.removed, bool(page.seen)

    async def _jobs(self, transaction: Transaction) -> tuple[int, bool]:
        after = self._after.pop("jobs", BEGINNING)
        old = await retention.old_jobs(transaction, days=self._days, after=after, limit=PAGE)
        loose = [job.job_id for job in old if not job.needed]
        gone = await nowhere(self._client, (), loose)
        if gone:
            await retention.remove_jobs(transaction, sorted(gone))
        if old:
            self._after["jobs"] = old[-1].ended_at
        return len(gone), bool(old)

    async def _webhooks(self, transaction: Transaction) -> tuple[int, bool]:
        removed = await retention.remove_webhooks(transaction, days=self._days, limit=PAGE)
        return removed, removed == PAGE

    async def _letters(self, transaction: Transaction) -> tuple[int, bool]:
        removed = await retention.remove_letters(transaction, days=self._days, limit=PAGE)
        return removed, removed == PAGE

    async def _idempotency_keys(self, transaction: Transaction) -> tuple[int, bool]:
        removed = await retention.remove_idempotency_keys(transaction, limit=PAGE)
        return removed, removed == PAGE

    async def _workers(self, transaction: Transaction) -> tuple[int, bool]:
        removed = await retention.remove_workers(transaction, limit=PAGE)
        return removed, removed == PAGE
