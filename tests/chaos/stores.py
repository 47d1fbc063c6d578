"""Faults of Redis and PostgreSQL and of the way there: restarted, failed over, emptied, away, cut off."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence

from pydantic import SecretStr

from synapse_worker.connections import open_redis
from tests.chaos.processes import began_nothing_more, no_try_burned
from tests.chaos.servers import Forwarder
from tests.chaos.stage import LEASE_SECONDS, Stage
from tests.page.support import PgBouncerServer

_PATIENCE = 30.0


def _through(forwarder: Forwarder) -> str:
    return f"redis://127.0.0.1:{forwarder.port}/0"


async def _forwarder(stage: Stage) -> Forwarder:
    forwarder = await Forwarder(stage.redis.port).start()
    stage.resources.push_async_callback(forwarder.close)
    return forwarder


async def redis_restarted(stage: Stage, *, outages: Sequence[float], sweep: float | None) -> None:
    """Redis stops, by SIGTERM and SIGKILL in turn, for the seconds given, and comes back with its append-only file."""
    await stage.start_workers(2, sweep=sweep)
    await stage.under_way(await stage.enqueue(8))
    async with stage.load(every=0.5):
        for number, seconds in enumerate(outages):
            await asyncio.to_thread(stage.redis.stop, signal.SIGKILL if number % 2 else signal.SIGTERM)
            await asyncio.sleep(seconds)  # the outage
            await asyncio.to_thread(stage.redis.start)
            await stage.answers()
            stage.fault()
            await stage.under_way(await stage.enqueue(1))
            stage.say(f"{number + 1} of {len(outages)} restarts")
    await stage.ended(seconds=90)
    await no_try_burned(stage)


async def redis_failed_over(stage: Stage, *, behind: float, read_only: float, sweep: float | None) -> None:
    """The primary is killed while its replica is `behind` seconds late; the replica is read-only, then promoted."""
    link = await _forwarder(stage)
    front = await _forwarder(stage)
    replica = await stage.start_redis(replica_of=link.port)
    other = open_redis(SecretStr(replica.url))
    stage.resources.push_async_callback(other.aclose)
    deadline = time.monotonic() + _PATIENCE
    while (await other.info("replication"))["master_link_status"] != "up":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the replica is not in step within {_PATIENCE:g} s")
        await asyncio.sleep(0.05)
    await stage.use_redis(_through(front))
    await stage.start_workers(2, REDIS_URL=_through(front), sweep=sweep)
    await stage.under_way(await stage.enqueue(8, rounds=4))
    async with stage.load(every=0.3):
        link.cut()
        await asyncio.sleep(behind)  # what is lost
        await asyncio.to_thread(stage.redis.stop, signal.SIGKILL)
        front.send_to(replica.port)
        await asyncio.sleep(read_only)  # the time that a sentinel takes
        await other.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
        stage.fault()
        await stage.under_way(await stage.enqueue(1))
    await stage.ended(seconds=60 + (sweep or 90))


async def redis_emptied(stage: Stage, *, sweep: float | None) -> None:
    """FLUSHALL while runs are under way and others wait; the sweep writes the queue again from PostgreSQL."""
    await stage.start_workers(2, WORKER_CONCURRENCY="4", sweep=sweep)
    first = await stage.enqueue(8, rounds=5)
    await stage.under_way(first)
    await stage.enqueue(8, rounds=1)
    await stage.client.flushall()
    stage.fault()
    await stage.ended(seconds=60 + (sweep or 90))


async def cut_off(stage: Stage) -> None:
    """Nothing passes between a worker and Redis any more, no connection closes; it comes back after the lease."""
    front = await _forwarder(stage)
    # With as many slots as runs, each worker has a half of them.
    cut = stage.start_worker(REDIS_URL=_through(front), WORKER_CONCURRENCY="4")
    await stage.start_workers(1, WORKER_CONCURRENCY="4")
    await asyncio.to_thread(cut.wait_ready)
    await stage.under_way(await stage.enqueue(8, rounds=12))  # PostgreSQL is there, so they go on until the lease ends
    owned = await stage.owned_by(cut)
    stage.fault()
    front.cut()
    began = time.monotonic()
    await stage.taken_over(owned, seconds=LEASE_SECONDS + 10.0)  # a slot has to become free, too
    front.mend()
    await stage.under_way(await stage.enqueue(1))
    await stage.ended(seconds=60)
    # It stops by itself, before anybody else may have its runs.
    began_nothing_more(stage, owned, since=began + LEASE_SECONDS)


async def postgres_stopped(stage: Stage, *, seconds: float) -> None:
    """PostgreSQL is away for so long; the leases are kept, nothing is counted as failed."""
    await stage.start_workers(2)
    await stage.under_way(await stage.enqueue(8, rounds=4))
    async with stage.load(every=0.5):
        await asyncio.to_thread(stage.postgres.stop, signal.SIGINT)
        await asyncio.sleep(seconds)  # the outage
        await asyncio.to_thread(stage.postgres.start)
        stage.fault()
        await stage.under_way(await stage.enqueue(1))
    await stage.ended(seconds=60)
    await no_try_burned(stage)


async def pgbouncer_restarted(stage: Stage, *, outages: Sequence[float]) -> None:
    """PgBouncer, through which the workers go, is killed and comes back."""
    bouncer = PgBouncerServer(stage.postgres)
    stage.resources.callback(bouncer.remove)
    await asyncio.to_thread(bouncer.start)
    await stage.start_workers(2, SCALE_POSTGRES_URL=bouncer.url(stage.postgres_url), PGBOUNCER_MODE="1")
    await stage.under_way(await stage.enqueue(8))
    async with stage.load(every=0.5):
        for seconds in outages:
            await asyncio.to_thread(bouncer.stop, signal.SIGKILL)
            await asyncio.sleep(seconds)  # the outage
            await asyncio.to_thread(bouncer.start)
            stage.fault()
            await stage.under_way(await stage.enqueue(1))
    await stage.ended(seconds=60)
    await no_try_burned(stage)
