"""kill -9 of the API right after each of its writes, and under load: every 202 is run once, and a retry is safe."""

from __future__ import annotations

import asyncio
import sys

import httpx2
import pytest
from redis.asyncio import Redis

from synapse_worker.api import process
from synapse_worker.api.sse import Streams
from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.settings import load
from synapse_worker.store.database import Database
from tests.page.support import printing
from tests.support.api import ApiProcess, StartApi
from tests.support.dying_api import POINTS
from tests.support.runs import eventually, store, until
from tests.support.servers import RedisServer, free_port
from tests.support.workers import StartWorker, environment

RUN = "/orchestrations/hello/run"


class DyingApi(ApiProcess):
    """An API process that dies right after a write."""

    def __init__(self, redis_url: str, postgres_url: str, point: str) -> None:
        super().__init__(redis_url, postgres_url)
        self.COMMAND = (sys.executable, "-m", "tests.support.dying_api", point)


async def test_killed_after_each_write_a_retry_is_run_once(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    start_api: StartApi,
    start_worker: StartWorker,
) -> None:
    await store(database, printing("hello"))
    await database.execute("INSERT INTO tenants (tenant_id, max_queued_runs) VALUES ('acme', 100)")
    dying = [DyingApi(redis_server.url, postgres_url, point) for point in POINTS]
    try:
        dying[0].start()
        for process, following in zip(dying, [*dying[1:], None], strict=True):
            await asyncio.to_thread(process.wait_ready)
            if following is not None:
                following.start()  # it takes seconds
            async with process.client() as client:
                headers = {"Idempotency-Key": process.COMMAND[-1]}
                with pytest.raises(httpx2.TransportError):
                    await client.post(RUN, json={"tenant_id": "acme"}, headers=headers)
            await asyncio.to_thread(process.wait)
    finally:
        for process in dying:
            process.close()
    left = await database.fetch("SELECT run_id FROM orchestration_runs")
    assert len(left) == 3  # those after the row
    api = await asyncio.to_thread(start_api)
    accepted = set()
    async with api.client() as client:
        for point in POINTS:
            answer = await client.post(RUN, json={"tenant_id": "acme"}, headers={"Idempotency-Key": point})
            assert answer.status_code == 202, answer.text
            accepted.add(answer.json()["run_id"])
    assert len(accepted) == len(POINTS)
    start_worker()
    keeper = Housekeeper(database, redis_client, StoreGate(database, redis_client))

    async def all_completed() -> bool:
        await keeper.sweep(overdue_seconds=0.5)  # a minute in the product
        rows = await database.fetch("SELECT run_id, status FROM orchestration_runs")
        assert {row["run_id"] for row in rows} == accepted
        return all(row["status"] == "completed" for row in rows)

    await eventually("all are completed", all_completed)
    assert_once = await database.fetch("SELECT run_id, count(*) AS steps FROM run_steps GROUP BY run_id")
    assert {row["steps"] for row in assert_once} == {1}
    assert await redis_client.zcard(keys.queued("acme")) == 0


async def test_killed_under_load_every_202_is_run_once(
    database: Database, redis_client: Redis, start_api: StartApi, start_worker: StartWorker
) -> None:
    await store(database, printing("hello"))
    start_worker()
    stays = await asyncio.to_thread(start_api)
    accepted: list[str] = []

    async def ask(process: ApiProcess, until_it_dies: bool) -> None:
        async with process.client() as client:
            for _ in range(10_000 if until_it_dies else 40):
                try:
                    answer = await client.post(RUN, json={})
                except httpx2.TransportError:
                    return
                if answer.status_code == 202:
                    accepted.append(answer.json()["run_id"])

    for _ in range(3):
        goes = await asyncio.to_thread(start_api)
        before = len(accepted)
        asking = [asyncio.create_task(ask(goes, True)) for _ in range(4)]
        asking.append(asyncio.create_task(ask(stays, False)))
        await eventually("some are accepted", lambda before=before: len(accepted) > before + 60)
        goes.kill()
        await asyncio.gather(*asking)
    keeper = Housekeeper(database, redis_client, StoreGate(database, redis_client))

    async def all_ended() -> bool:
        await keeper.sweep(overdue_seconds=0.5)
        return not await database.fetch("SELECT 1 FROM orchestration_runs WHERE status <> 'completed'")

    await eventually("all are completed", all_ended, seconds=60)
    rows = await database.fetch("SELECT run_id, count(*) AS steps FROM run_steps GROUP BY run_id")
    assert set(accepted) <= {row["run_id"] for row in rows}
    assert {row["steps"] for row in rows} == {1}
    await until(database, accepted[0], "completed")


async def test_a_process_that_can_read_no_streams_any_more_ends(
    database: Database, redis_server: RedisServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer, and send nobody an event: it is to be started anew."""

    async def broken(streams: Streams) -> None:
        await asyncio.sleep(0.1)
        raise ZeroDivisionError

    monkeypatch.setattr(Streams, "read", broken)
    settings = load(environment(redis_server.url, postgres_url, API_PORT=str(free_port())))
    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await process.ApiProcess(settings).run()
