"""The page's section Redis connection. The fourth form, Redis Cluster, is in not_built_yet.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_redis, ping_redis
from synapse_worker.errors import StoreUnavailable
from synapse_worker.store.database import Database
from tests.page.conftest import StartHere
from tests.page.support import Q, TlsRedisServer, enqueue, printing, until
from tests.support.runs import store
from tests.support.servers import RedisServer


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
