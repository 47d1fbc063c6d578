"""The page's section Redis connection; what a Redis Cluster does when nodes fail is in tests/services."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_redis, ping_redis
from synapse_worker.contract import BY_NAME, MAX_SHARDS
from synapse_worker.errors import StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put
from synapse_worker.store.database import Database
from tests.page.conftest import StartHere
from tests.page.support import Q, TlsRedisServer, enqueue, printing, until
from tests.support.runs import store
from tests.support.servers import RedisCluster, RedisServer


@pytest.fixture(scope="module")
def protected_redis() -> Iterator[RedisServer]:
    """A Redis that wants a password, with a character that a URL must encode."""
    server = RedisServer(password="p@ss:word")
    server.start()
    yield server
    server.remove()


async def assert_serves(database: Database, start_here: StartHere, url: str, **extra: str) -> None:
    """A run enqueued with the URL is completed by a worker that was given the same URL."""
    await store(database, printing("hello"))
    client = open_redis(SecretStr(url), ca_file=extra.get("REDIS_CA_FILE", ""))
    try:
        run_id = await enqueue(database, client, "hello")
        await start_here(redis_url=url, **extra)
        assert (await until(database, run_id, "completed", "failed")).status == "completed"
    finally:
        await client.aclose()


async def test_single_node(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_here: StartHere
) -> None:
    """Single node: redis://hostname:6379/0."""
    await assert_serves(database, start_here, f"redis://localhost:{redis_server.port}/0")


async def test_with_password(database: Database, protected_redis: RedisServer, start_here: StartHere) -> None:
    """With password: redis://:password@hostname:6379/0."""
    await assert_serves(database, start_here, f"redis://:p%40ss%3Aword@127.0.0.1:{protected_redis.port}/0")


async def test_a_wrong_password_is_one_sentence_without_it(protected_redis: RedisServer) -> None:
    """With password: what is refused is said, and the password is not."""
    client = open_redis(SecretStr(f"redis://:hush@127.0.0.1:{protected_redis.port}/0"))
    with pytest.raises(StoreUnavailable) as caught:
        await ping_redis(client)
    await client.aclose()
    assert str(caught.value) == "Redis refuses the user name or password of its URL"


async def test_tls(database: Database, tls_redis: TlsRedisServer, start_here: StartHere) -> None:
    """TLS (rediss): rediss://hostname:6380/0."""
    await assert_serves(database, start_here, f"{tls_redis.url}/0", REDIS_CA_FILE=tls_redis.authority)


async def test_tls_checks_the_certificate(tls_redis: TlsRedisServer) -> None:
    """Most managed services use rediss:// (with double-s) for TLS: a certificate of an unknown CA is refused."""
    client = open_redis(SecretStr(tls_redis.url))
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        await ping_redis(client)
    await client.aclose()


async def test_redis_cluster(database: Database, redis_cluster: RedisCluster, start_here: StartHere) -> None:
    """Redis Cluster: redis+cluster://node1:6379,node2:6379,node3:6379."""
    await assert_serves(database, start_here, redis_cluster.url)


async def test_cluster_mode_is_detected_from_the_scheme(redis_cluster: RedisCluster) -> None:
    """Redis Cluster mode is auto-detected from the redis+cluster:// URL scheme; no separate toggle is needed."""
    assert [name for name in BY_NAME if "CLUSTER" in name] == []
    first, _, _ = redis_cluster.url.partition(",")
    client = open_redis(SecretStr(first))
    assert (await ping_redis(client)).clustered
    await client.aclose()


async def test_all_queue_shards_are_distributed_across_the_nodes(redis_cluster: RedisCluster) -> None:
    """All queue shards are distributed across cluster nodes using Redis hash slots."""
    client = open_redis(SecretStr(redis_cluster.url))
    queues = [keys.queue(str(shard)) for shard in range(MAX_SHARDS)]
    for queue in queues:
        assert await put(client, queue, f"job-of-{queue}", b"payload")
    await client.aclose()
    owners = [redis_cluster.master_of(queue) for queue in queues]
    for node in redis_cluster.masters:
        here = [queue for queue, owner in zip(queues, owners, strict=True) if owner is node]
        assert len(here) > MAX_SHARDS / 6
        assert {node.ask("ZCARD", queue) for queue in here} == {"1"}


async def test_the_database_index_is_optional_and_defaults_to_0(
    database: Database, redis_client: Redis, redis_server: RedisServer
) -> None:
    """The database index at the end (/0) is optional and defaults to 0."""
    client = open_redis(SecretStr(f"redis://127.0.0.1:{redis_server.port}"))
    await enqueue(database, client, "hello")
    await client.aclose()
    assert await redis_client.zcard(Q) == 1  # of redis://.../0


async def test_a_dedicated_index_avoids_key_collisions(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_here: StartHere
) -> None:
    """Use a dedicated database index if you share a Redis instance across multiple applications."""
    await redis_client.set("of-another-application", "untouched")
    await assert_serves(database, start_here, f"redis://127.0.0.1:{redis_server.port}/3")
    assert await redis_client.keys() == [b"of-another-application"]
