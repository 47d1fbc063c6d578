"""The cheap questions whether anything has changed answer as the whole ones do."""

from __future__ import annotations

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_redis
from synapse_worker.errors import StoreRefused
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import queue_figures
from synapse_worker.queueing.emptiness import holding, none_exists
from synapse_worker.routing import Topology
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from synapse_worker.store.overview import overview, pulse, work_due
from tests.support.servers import RedisCluster

DAYS = 10
QUEUES = [keys.queue("default"), keys.queue("acme")]
NAMES = [name for queue in QUEUES for name in holding(queue)]
CHANGES = {
    "a worker": "INSERT INTO workers (worker_id, hostname, status, active_jobs, max_jobs, last_heartbeat,"
    " registered_at) VALUES ('w', 'w', 'online', 1, 7, now(), now())",
    "a letter": "INSERT INTO dead_letter_queue (id, job_function, job_payload, error_message, attempt_count,"
    " first_failed_at, last_failed_at, resolved) VALUES (gen_random_uuid(), 'f', '{}', 'e', 1, now(), now(), false)",
    "an overdue run": "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state,"
    " step_history, deadline) VALUES ('r', 'o', 't', 'paused', '{}', '[]', now() - interval '1 s')",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_the_pulse_changes_with_what_it_stands_for(database: Database, change: str) -> None:
    before = await pulse(database, DAYS)
    await database.execute(CHANGES[change])
    after = await pulse(database, DAYS)
    assert before is not None
    assert after is not None
    assert before != after
    assert (after.totals, after.work_due) == (await overview(database), await work_due(database, DAYS))


async def test_the_pulse_changes_with_the_topology(database: Database) -> None:
    before = await pulse(database, DAYS)
    await topology.write(database, None, Topology(2, isolation=False), enabled=True, owner_uid="u")
    after = await pulse(database, DAYS)
    assert before is not None
    assert after is not None
    assert (before.epoch, after.epoch) == (0, 1)


async def test_older_tables_have_no_pulse(database: Database) -> None:
    await database.execute("UPDATE synapse_scale_schema SET version = 0")
    assert await pulse(database, DAYS) is None
    await database.execute("DROP TABLE synapse_scale_schema")
    with pytest.raises(StoreRefused):
        await pulse(database, DAYS)


@pytest.mark.parametrize("name", NAMES)
async def test_a_queue_that_holds_something_is_not_empty(redis_client: Redis, name: str) -> None:
    assert await none_exists(redis_client, NAMES)
    if name in [keys.parked(queue) for queue in QUEUES]:
        await redis_client.hset(name, "tenant", "1")
    else:
        await redis_client.zadd(name, {"job": 1})
    assert not await none_exists(redis_client, NAMES)
    assert any(not figure.empty for figure in (await queue_figures(redis_client, QUEUES)).values())


async def test_queues_in_several_slots_of_a_cluster_are_asked_for_too(redis_cluster: RedisCluster) -> None:
    client = open_redis(SecretStr(redis_cluster.url))
    try:
        assert await none_exists(client, NAMES)
        await client.zadd(keys.leases(QUEUES[1]), {"job": 1})
        assert not await none_exists(client, NAMES)
    finally:
        await client.aclose()
