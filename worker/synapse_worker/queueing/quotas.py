"""What the V2 API counts in Redis, so that limits hold over all its replicas: requests, queued jobs, all jobs.

Each check is one script, so two requests never share the last place. What is allowed, in which order checks are made
and what a refusal says is `api.admission`'s. A worker that reserves a place for a job takes it out of its tenant's
queued ones (reserve.lua).

The number of all jobs is what the queues held when they were last counted, and what was enqueued through the API
since. Jobs leave the queues in other hash slots, so they are counted anew every few seconds. A count during which a
job was admitted could count it twice or not at all, and is dropped; only after `FORCED_SECONDS` of steady admissions
one holds as it is, with the jobs that are being enqueued added to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.contract import STORE_TIMEOUT_SECONDS
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import readable_figures
from synapse_worker.queueing.lease import load_script
from synapse_worker.store import ledger
from synapse_worker.store.database import Database

FORCED_SECONDS = 60.0
STALE_SECONDS = 60.0
"""How long a place is kept for a job of which PostgreSQL knows nothing: whoever took it may still be writing."""
_PENDING_SECONDS = 3 * STORE_TIMEOUT_SECONDS
"""How long an enqueue may take; what is pending for longer was left by a process that has died."""
_SLICE_MS = 25
_SLICES = 1000 // _SLICE_MS + 1
"""Slices of which the oldest is cut: together they are never less than a second."""
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Rate:
    """Whether a request is within its tenant's rate; `remaining` more are now, else the next in `wait_ms`."""

    allowed: bool
    limit: int
    remaining: int
    wait_ms: int


class Quotas:
    """The counts. All calls raise `StoreUnavailable` or `StoreRefused`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._rate = load_script(client, "rate")
        self._take_place = load_script(client, "take_place")
        self._admit = load_script(client, "admit")
        self._settle = load_script(client, "settle")
        self._rebase = load_script(client, "rebase")

    async def request(self, tenant_id: str, limit: int) -> Rate:
        """Count a request of a tenant, if fewer than `limit` have come within the last second."""
        with redis_errors_as_ours():
            allowed, remaining, wait_ms = await self._rate(
                keys=[keys.rate(tenant_id)], args=[limit, _SLICE_MS, _SLICES]
            )
        return Rate(bool(allowed), limit, remaining, wait_ms)

    async def take_place(self, tenant_id: str, job_id: str, limit: int) -> bool:
        """Take a place among the queued jobs of a tenant; False when `limit` are taken."""
        with redis_errors_as_ours():
            return bool(await self._take_place(keys=[keys.queued(tenant_id)], args=[limit, job_id]))

    async def leave_place(self, tenant_id: str, job_ids: Sequence[str]) -> None:
        """Give places back, where there are any."""
        if job_ids:
            with redis_errors_as_ours():
                await self._client.zrem(keys.queued(tenant_id), *job_ids)

    async def admit(self, job_id: str, limit: int) -> bool | None:
        """Count a job that is about to be enqueued.

        Returns:
            False when `limit` jobs are in the queues or about to be; None when nobody has counted the queues yet
            (`rebase`).
        """
        with redis_errors_as_ours():
            answer = await self._admit(keys=[keys.ADMISSION, keys.ADMISSION_PENDING], args=[limit, job_id])
        return None if answer < 0 else bool(answer)

    async def settle(self, job_id: str, *, enqueued: bool) -> None:
        """Say whether a job that was admitted is in a queue now."""
        with redis_errors_as_ours():
            await self._settle(keys=[keys.ADMISSION, keys.ADMISSION_PENDING], args=[job_id, int(enqueued)])

    async def rebase(self, queue_keys: Sequence[str]) -> bool:
        """Count the jobs in all queues anew; False when the count was dropped, since jobs came meanwhile."""
        with redis_errors_as_ours():
            version: bytes | None = await self._client.hget(keys.ADMISSION, "version")  # type: ignore[misc]
        jobs = 0
        for start in range(0, len(queue_keys), _PAGE):
            figures = await readable_figures(self._client, queue_keys[start : start + _PAGE])
            jobs += sum(queue.queued + queue.active for queue in figures.values())
        with redis_errors_as_ours():
            done = await self._rebase(
                keys=[keys.ADMISSION, keys.ADMISSION_PENDING],
                args=[version or b"", jobs, int(FORCED_SECONDS * 1000), int(_PENDING_SECONDS * 1000)],
            )
        return bool(done)

    async def forget_gone(self, database: Database, tenant_ids: Sequence[str]) -> int:
        """Give back the places of jobs that are over or that a worker has without a reservation; returns how many.

        A worker that does not know of a tenant's limit yet reserves nothing for its jobs.
        """
        with redis_errors_as_ours():
            seconds, micros = await self._client.time()
            before = seconds * 1000 + micros // 1000 - int(STALE_SECONDS * 1000)
            pipeline = self._client.pipeline(transaction=False)
            for tenant_id in tenant_ids:
                pipeline.zrangebyscore(keys.queued(tenant_id), "-inf", before, start=0, num=_PAGE)
            answers: list[list[bytes]] = await pipeline.execute()
        old = {
            tenant_id: [job_id.decode(errors="surrogateescape") for job_id in ids]
            for tenant_id, ids in zip(tenant_ids, answers, strict=True)
            if ids
        }
        waiting = await ledger.waiting(database, [job_id for ids in old.values() for job_id in ids]) if old else set()
        gone = 0
        for tenant_id, ids in old.items():
            over = [job_id for job_id in ids if job_id not in waiting]
            await self.leave_place(tenant_id, over)
            gone += len(over)
        return gone
