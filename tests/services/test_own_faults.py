"""A worker in which something ends that runs beside its jobs: it does not go on without."""

from __future__ import annotations

import asyncio

import pytest

from synapse_worker.events import EventWriter
from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.lifecycle import Worker
from synapse_worker.settings import load
from synapse_worker.store.database import Database
from tests.support.servers import RedisServer, free_port
from tests.support.workers import environment


@pytest.mark.parametrize(("kind", "name"), [(EventWriter, "write"), (StoreGate, "watch"), (Housekeeper, "keep")])
async def test_a_worker_stops_with_the_error_that_ended_one_of_its_tasks(
    database: Database,
    redis_server: RedisServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    name: str,
) -> None:
    real = getattr(kind, name)

    async def fails(self: object) -> None:
        done = asyncio.ensure_future(real(self))
        await asyncio.wait({done}, timeout=1.0)
        done.cancel()
        raise ZeroDivisionError

    monkeypatch.setattr(kind, name, fails)
    worker = Worker(load(environment(redis_server.url, postgres_url, WORKER_HEALTH_PORT=str(free_port()))))
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(worker.run(), 20)
    rows = await database.fetch("SELECT status FROM workers")
    assert [row["status"] for row in rows] == ["offline"]
