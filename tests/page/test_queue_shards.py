"""The page's section Queue shards."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from synapse_operator.api import crd
from synapse_operator.api.scale import SCALE_RESOURCE
from synapse_operator.desired.shards import wanted_topology
from synapse_worker import settings
from synapse_worker.contract import BY_NAME
from synapse_worker.errors import ConfigurationError
from synapse_worker.queueing import keys
from synapse_worker.store import runs, topology
from synapse_worker.store.database import Database
from tests.builders import a_scale
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, enqueue_stock, printing, until
from tests.support.runs import store
from tests.support.servers import RedisServer
from tests.support.workers import command


def test_default_and_range() -> None:
    """Default 1, range 1 - 64."""
    shards = BY_NAME["NUM_QUEUE_SHARDS"]
    assert (shards.default, shards.minimum, shards.maximum) == ("1", 1, 64)
    field = crd.structural_schema(SCALE_RESOURCE.spec)["properties"]["queue"]["properties"]["shards"]
    assert (field["default"], field["minimum"], field["maximum"]) == (1, 1, 64)
    required = {"REDIS_URL": "redis://r", "SCALE_POSTGRES_URL": "postgresql://p/d"}
    for outside in ("0", "65"):
        with pytest.raises(ConfigurationError, match="accepted: a whole number from 1 to 64"):
            settings.load({**required, "NUM_QUEUE_SHARDS": outside})


async def test_a_single_shard_is_one_sorted_set(database: Database, redis_client: Redis) -> None:
    """With a single shard, all jobs go into one Redis sorted set (synapse:orchestrations:default)."""
    run_ids = {await enqueue(database, redis_client, "any", tenant=tenant) for tenant in ("default", "a", "b")}
    assert await redis_client.type("synapse:orchestrations:default") == b"zset"
    members = await redis_client.zrange("synapse:orchestrations:default", 0, -1)
    assert {member.decode() for member in members} == run_ids


async def test_many_shards_are_a_sorted_set_each(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_here: StartHere
) -> None:
    """With multiple shards, jobs are distributed across synapse:orchestrations:0, synapse:orchestrations:1, etc."""
    await store(database, printing("hello"))
    words = ("enqueue", "hello", "--count", "40")
    done = await asyncio.to_thread(command, redis_server.url, postgres_url, *words, NUM_QUEUE_SHARDS="4")
    assert done.returncode == 0, done.stderr
    run_ids = done.stdout.split()
    depths = [await redis_client.zcard(f"synapse:orchestrations:{shard}") for shard in range(4)]
    assert sum(depths) == len(run_ids) == 40
    assert min(depths) > 0
    for shards in ("0,1", "2,3"):
        await start_here(WORKER_QUEUE_SHARD=shards)
    await completed(database, run_ids)


async def test_a_worker_can_be_pinned_to_a_shard(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_here: StartHere
) -> None:
    """Each worker can be pinned to a specific shard via the WORKER_QUEUE_SHARD environment variable."""
    await store(database, printing("hello"))
    elsewhere = await enqueue(database, redis_client, "hello")
    await enqueue_stock(redis_server.port, "run_000000000003_1", "hello", queue="synapse:orchestrations:3")
    worker = await (await start_here(WORKER_QUEUE_SHARD="3")).ready()
    await until(database, "run_000000000003_1", "completed")
    health = await worker.health()
    assert (health["shard"], health["queues"]) == ("3", ["synapse:orchestrations:3"])
    assert [run.status for run in await runs.get(database, [elsewhere])] == ["queued"]
    assert await redis_client.zcard(keys.queue("default")) == 1


async def test_worker_capacity_can_be_dedicated(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """This allows you to dedicate certain worker capacity to specific tenants or job priorities."""
    await store(database, printing("hello"))
    routes = [{"shard": 1, "tenants": ["acme"]}, {"shard": 2, "minPriority": 5}]
    pools = [{"name": "dedicated", "shards": [1, 2], "replicas": 3}]
    scale = a_scale(spec={"queue": {"shards": 3, "routes": routes}, "pools": pools})
    assert [scale.spec.workers_of(shard).replicas for shard in range(3)] == [1, 3, 3]
    await topology.write(database, None, wanted_topology(scale), enabled=True, owner_uid=scale.metadata.uid)
    others = [await enqueue(database, redis_client, "hello", tenant=f"t{number}") for number in range(5)]
    acmes = await enqueue(database, redis_client, "hello", tenant="acme")
    assert [await redis_client.zcard(keys.queue(shard)) for shard in ("0", "1", "2")] == [5, 1, 0]
    await start_here(WORKER_QUEUE_SHARD="1")
    await completed(database, [acmes])
    assert {run.status for run in await runs.get(database, others)} == {"queued"}
