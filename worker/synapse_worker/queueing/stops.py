"""Who wants which job stopped: the cancel keys name runs (upstream and we), arq's abort set names jobs.

Only asked here, in one round trip for many jobs; when to ask, and what stopping means, is left to `jobs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.errors import WrongKeyType
from synapse_worker.queueing import keys
from synapse_worker.queueing.loop import StopReason

ABORT_TTL_MS = 86_400_000
"""An id in arq's abort set that nobody has met for that long names a job that is over."""


class RunningJob(NamedTuple):
    """A job and its run, by their ids."""

    run_id: str
    job_id: str


async def any_aborted(client: Redis) -> bool:
    """Whether arq's abort set names any job; looked at seldom, so that a claim need not ask for each of its jobs."""
    with redis_errors_as_ours():
        return bool(await client.exists(keys.ABORT))


async def wanted(client: Redis, jobs: Sequence[RunningJob]) -> dict[RunningJob, StopReason]:
    """Return those of `jobs` that somebody wants stopped, and how they said so."""
    pipeline = client.pipeline(transaction=False)
    pipeline.zmscore(keys.ABORT, [job.job_id for job in jobs])
    for job in jobs:
        pipeline.exists(keys.cancel(job.run_id))
    with redis_errors_as_ours():
        aborts, *cancels = await pipeline.execute(raise_on_error=False)
        for answer in (aborts, *cancels):
            if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                raise answer
    if isinstance(aborts, Exception):  # somebody else's key: then nobody aborts by it
        aborts = [None] * len(jobs)
    found: dict[RunningJob, StopReason] = {}
    for job, abort, cancel in zip(jobs, aborts, cancels, strict=True):
        if abort is not None:
            found[job] = StopReason.ABORTED
        elif cancel:
            found[job] = StopReason.CANCELLED
    return found


async def settle(client: Redis, job: RunningJob) -> None:
    """Remove both marks of a job that has been stopped."""
    pipeline = client.pipeline(transaction=False)
    pipeline.zrem(keys.ABORT, job.job_id)
    pipeline.delete(keys.cancel(job.run_id))
    with redis_errors_as_ours():
        await pipeline.execute()


async def forget_old_aborts(client: Redis, now_ms: int) -> None:
    """Drop what has been in arq's abort set for over `ABORT_TTL_MS`; stock workers drop it after a minute."""
    with suppress(WrongKeyType), redis_errors_as_ours():
        await client.zremrangebyscore(keys.ABORT, "-inf", now_ms - ABORT_TTL_MS)
