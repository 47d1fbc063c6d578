"""Scale mode off: the API process runs the jobs itself, and a worker finishes those of one that died."""

from __future__ import annotations

import asyncio
import signal

import httpx2
import pytest
from redis.asyncio import Redis

from synapse_worker.routing import ONE_QUEUE
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from tests.page.support import printing
from tests.support.api import ApiProcess, StartApi
from tests.support.runs import assert_each_step_once, eventually, said_done, steps_reach, store, until
from tests.support.workers import StartWorker, chain, slow_steps


@pytest.fixture
async def api(database: Database, redis_client: Redis, start_api: StartApi) -> ApiProcess:
    """An API without keys, scale mode off, orchestrations `hello` and `slow` (8 steps), leases of 3 s."""
    await store(database, printing("hello"), chain("slow", slow_steps(8, 0.3)))
    await topology.write(database, None, ONE_QUEUE, enabled=False, owner_uid="scale")
    return await asyncio.to_thread(start_api, WORKER_LEASE_SECONDS="3")


async def the_run(database: Database) -> str:
    """Poll until there is a run; returns its id."""

    async def there() -> bool:
        return bool(await database.fetch("SELECT 1 FROM orchestration_runs"))

    await eventually("there is a run", there)
    (row,) = await database.fetch("SELECT run_id FROM orchestration_runs")
    return str(row["run_id"])


async def test_the_answer_is_the_finished_run(database: Database, redis_client: Redis, api: ApiProcess) -> None:
    async with api.client() as client:
        answers = await asyncio.gather(
            *(client.post("/orchestrations/hello/run", json={"message": "you"}) for _ in "ab")
        )
        for answer in answers:
            assert answer.status_code == 200, answer.text
            run = answer.json()
            assert (run["status"], run["shared_state"]["said"]) == ("completed", "hello you")
            assert run["worker_id"].startswith("api-")
            await said_done(redis_client, run["run_id"])
    rows = await database.fetch("SELECT outcome, owner, claim IS NOT NULL AS claimed FROM job_ledger")
    assert [tuple(row) for row in rows] == [("completed", None, True)] * 2


async def test_a_run_whose_process_died_is_finished_by_a_worker(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    async with api.client() as client:
        asking = asyncio.create_task(client.post("/orchestrations/slow/run", json={}))
        run_id = await the_run(database)
        await steps_reach(database, run_id, 2)
        api.kill()
        with pytest.raises(httpx2.TransportError):
            await asking
    start_worker(WORKER_LEASE_SECONDS="3")
    view = await until(database, run_id, "completed")
    assert not str(view.worker_id).startswith("api-")
    assert_each_step_once(await said_done(redis_client, run_id), 8)


async def test_a_stop_gives_the_run_back(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    async with api.client() as client:
        asking = asyncio.create_task(client.post("/orchestrations/slow/run", json={}))
        run_id = await the_run(database)
        await steps_reach(database, run_id, 1)
        api.signal(signal.SIGTERM)
        answer = await asking
    assert (answer.status_code, answer.json()["run_id"]) == (202, run_id)
    assert await asyncio.to_thread(api.wait) == 0
    await until(database, run_id, "queued")
    start_worker()
    await until(database, run_id, "completed")
    assert_each_step_once(await said_done(redis_client, run_id), 8)
