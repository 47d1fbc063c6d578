"""The page's section Worker concurrency."""

from __future__ import annotations

import asyncio
import os

import pytest
from redis.asyncio import Redis

from synapse_operator.api import crd
from synapse_operator.api.scale import SCALE_RESOURCE
from synapse_worker import settings
from synapse_worker.contract import BY_NAME
from synapse_worker.errors import ConfigurationError
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, eventually, store_setting
from tests.support.runs import store
from tests.support.workers import StartWorker, chain, slow_steps

REQUIRED = {"REDIS_URL": "redis://r", "SCALE_POSTGRES_URL": "postgresql://p/d"}


def test_default_and_range() -> None:
    """Default 10, range 1 - 100."""
    assert settings.load(REQUIRED).concurrency == 10
    assert settings.load({**REQUIRED, "WORKER_CONCURRENCY": "100"}).concurrency == 100
    for outside in ("0", "101"):
        with pytest.raises(ConfigurationError, match="accepted: a whole number from 1 to 100"):
            settings.load({**REQUIRED, "WORKER_CONCURRENCY": outside})
    workers = crd.structural_schema(SCALE_RESOURCE.spec)["properties"]["workers"]["properties"]
    assert (workers["concurrency"]["minimum"], workers["concurrency"]["maximum"]) == (1, 100)


async def test_the_most_jobs_that_one_process_executes_concurrently(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """The maximum number of jobs a single worker process executes concurrently."""
    await store(database, chain("slow", slow_steps(1, 0.1)))
    run_ids = [await enqueue(database, redis_client, "slow") for _ in range(6)]
    await start_here(WORKER_CONCURRENCY="2")
    views = await completed(database, run_ids)
    starts = [view.started_at for view in views if view.started_at]
    at_once = [
        sum(1 for view in views if view.started_at and view.ended_at and view.started_at <= start < view.ended_at)
        for start in starts
    ]
    assert len(starts) == 6
    assert max(at_once) == 2


async def test_it_is_stored_in_postgres_and_read_at_startup(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    """This setting is stored in Postgres and read by workers at startup (scale_settings, worker_concurrency)."""
    assert BY_NAME["WORKER_CONCURRENCY"].stored == "worker_concurrency"
    await store_setting(database, "worker_concurrency", 3)
    start_worker().wait_ready()
    row = await database.fetchrow("SELECT max_jobs, status FROM workers")
    assert row is not None
    assert tuple(row) == (3, "online")


async def test_a_stored_value_out_of_range_is_refused(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Range 1 - 100 holds for the stored setting too; the sentence names it."""
    await store_setting(database, "worker_concurrency", 101)
    with pytest.raises(ConfigurationError) as refused:
        await (await start_here()).ended()
    assert str(refused.value) == (
        "the stored setting worker_concurrency is 101; accepted: a whole number from 1 to 100."
    )


async def test_jobs_are_coroutines_not_threads(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """Workers use asyncio for concurrency - concurrent jobs run as coroutines, not threads."""
    await store(database, chain("slow", slow_steps(1, 0.15)))
    await (await start_here(WORKER_CONCURRENCY="8")).ready()
    await completed(database, [await enqueue(database, redis_client, "slow")])
    threads = len(os.listdir("/proc/self/task"))
    run_ids = [await enqueue(database, redis_client, "slow") for _ in range(8)]

    async def all_run() -> bool:
        """A task of this loop is named after each job."""
        return set(run_ids) <= {task.get_name() for task in asyncio.all_tasks()}

    await eventually("all eight jobs run at once", all_run)
    assert len(os.listdir("/proc/self/task")) < threads + len(run_ids)
    await completed(database, run_ids)


async def test_worker_instances_may_differ(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """Can be overridden per worker instance using WORKER_CONCURRENCY: pools with different concurrency levels."""
    await store_setting(database, "worker_concurrency", 5)
    for extra in ({"WORKER_CONCURRENCY": "2"}, {"WORKER_CONCURRENCY": "20"}, {}):
        worker = await (await start_here(**extra)).ready()
        expected = int(extra.get("WORKER_CONCURRENCY", "5"))
        assert (await worker.health())["max_jobs"] == expected
        await worker.close()
    assert await runs.recent(database, limit=10, status=None) == []
