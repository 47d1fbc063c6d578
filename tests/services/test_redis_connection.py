"""What our Redis connection does instead of redis-py's, against a real server."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing

import pytest
from pydantic import SecretStr
from redis.asyncio import Connection, Redis
from redis.exceptions import InvalidResponse

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


async def test_a_connection_with_an_answer_that_is_none_is_not_used_again() -> None:
    opened = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        with closing(writer):
            while said := await reader.read(65536):
                commands = said.count(b"*")
                if said.count(b"GET") == 2:
                    writer.write(b"$1\r\na\r\nnonsense\r\n")
                else:
                    writer.write(b"+OK\r\n" * (commands - said.count(b"PING")) + b"+PONG\r\n" * said.count(b"PING"))

    async with await asyncio.start_server(speak, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        client = open_redis(SecretStr(f"redis://127.0.0.1:{port}"))
        try:
            pipeline = client.pipeline(transaction=False)
            pipeline.get("a")
            pipeline.get("b")
            with pytest.raises(InvalidResponse):
                await pipeline.execute()
            assert await client.echo("a") == b"OK"
            assert opened == 2
        finally:
            await client.aclose()
