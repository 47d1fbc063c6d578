"""What our Redis connection does instead of redis-py's, against a real server."""

from __future__ import annotations

import asyncio
import time

import pytest
from pydantic import SecretStr
from redis.asyncio import Connection, Redis

from synapse_worker.connections import open_redis
from synapse_worker.redis_connection import QuickConnection
from tests.support.servers import RedisServer


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "k"),
        ("CONFIG GET", "maxmemory"),
        ("SET", b"k\xff", 1.5),
        ("SET", "k\udcff", -3),
        ("ZADD", "k", 1700000000000.0, "ü", 0.1 + 0.2, ""),
    ],
)
def test_commands_are_written_as_redis_py_writes_them(command: tuple[str | bytes | int | float, ...]) -> None:
    ours, theirs = (kind(encoding_errors="surrogateescape") for kind in (QuickConnection, Connection))
    assert b"".join(ours.pack_command(*command)) == b"".join(theirs.pack_command(*command))


async def test_a_connection_that_the_server_closed_is_opened_anew_without_an_error(
    redis_server: RedisServer, redis_client: Redis
) -> None:
    client = open_redis(SecretStr(redis_server.url))
    try:
        await client.set("k", "v")
        number = await client.client_id()
        await redis_client.client_kill_filter(_id=str(number))
        (connection,) = client.connection_pool._available_connections
        assert isinstance(connection, QuickConnection)
        deadline = time.monotonic() + 5
        while not await connection.can_read_destructive():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert await client.get("k") == b"v"
        assert await client.client_id() != number
    finally:
        await client.aclose()
