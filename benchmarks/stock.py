"""Stock arq, the reference: its queue filled as its producer fills it, its worker at its best settings.

Run as a module it is a worker process of its own, for figures that compare processes.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from arq import func
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import expires_extra_ms, job_key_prefix
from arq.jobs import serialize_job
from arq.worker import Worker
from redis.asyncio import Redis

FUNCTION = "run_orchestration_job"
STARTED = "bench:started:"
"""Key prefix of the time (s) at which a job's function was entered, where a figure asks for it."""

_PORT = "BENCH_REDIS_PORT"
_QUEUE = "BENCH_QUEUE"
_SLOTS = "BENCH_SLOTS"
_POLL = "BENCH_POLL_DELAY"
_NOTE_START = "BENCH_NOTE_START"


async def write_jobs(client: Redis, job_ids: Sequence[str], arguments: Mapping[str, object]) -> None:
    """Write the job keys that arq's enqueue_job would write; `queue_jobs` makes them due."""
    pipeline = client.pipeline(transaction=False)
    for job_id in job_ids:
        given: dict[str, Any] = {"run_id": job_id, **arguments}
        pipeline.psetex(job_key_prefix + job_id, expires_extra_ms, serialize_job(FUNCTION, (), given, None, _now_ms()))
    await pipeline.execute()


async def queue_jobs(client: Redis, queue: str, job_ids: Sequence[str]) -> None:
    """Put jobs into a queue, all at once, in the order given."""
    now = _now_ms()
    await client.zadd(queue, {job_id: now - len(job_ids) + number for number, job_id in enumerate(job_ids)})


async def pool_of(port: int, queue: str) -> ArqRedis:
    """Return arq's own client."""
    return await create_pool(RedisSettings(port=port), default_queue_name=queue)


def worker_of(pool: ArqRedis, function: Any, queue: str, *, slots: int, poll_delay: float) -> Worker:
    """Return a stock worker that keeps no results and logs nothing."""
    return Worker(
        [func(function, name=FUNCTION)],
        queue_name=queue,
        redis_pool=pool,
        handle_signals=False,
        poll_delay=poll_delay,
        max_jobs=slots,
        keep_result=0,
        log_results=False,
    )


async def stop(worker: Worker, running: asyncio.Task[None], *, settle: float = 0.1) -> None:
    """Stop a worker whose jobs have ended; within `settle` seconds it is between two polls."""
    worker.allow_pick_jobs = False
    await asyncio.gather(*worker.tasks.values())
    await asyncio.sleep(settle)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await worker.pool.aclose()


@contextmanager
def process(port: int, queue: str, *, slots: int, poll_delay: float, note_start: bool = False) -> Iterator[None]:
    """Run a stock worker as a process: an empty function, or one that only notes when it began."""
    environment = {
        **os.environ,
        _PORT: str(port),
        _QUEUE: queue,
        _SLOTS: str(slots),
        _POLL: str(poll_delay),
        _NOTE_START: "1" if note_start else "",
    }
    started = subprocess.Popen([sys.executable, "-m", __name__], env=environment)
    try:
        yield
    finally:
        started.kill()
        started.wait()


async def _empty(ctx: dict[str, Any], run_id: str, **arguments: object) -> None:
    """Do nothing."""


async def _note_start(ctx: dict[str, Any], run_id: str, **arguments: object) -> None:
    await ctx["redis"].set(STARTED + run_id, repr(time.time()))


async def _main() -> None:
    queue = os.environ[_QUEUE]
    pool = await pool_of(int(os.environ[_PORT]), queue)
    function = _note_start if os.environ[_NOTE_START] else _empty
    worker = worker_of(pool, function, queue, slots=int(os.environ[_SLOTS]), poll_delay=float(os.environ[_POLL]))
    await worker.async_run()


def _now_ms() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    asyncio.run(_main())
