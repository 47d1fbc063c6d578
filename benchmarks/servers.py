"""The stores that both sides of a figure share: the test suite's own Redis and PostgreSQL, on free ports."""

from __future__ import annotations

import os
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database, open_redis, ping_redis
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from tests.support.servers import PostgresServer, RedisServer


@dataclass(frozen=True, slots=True)
class Servers:
    """One Redis and one PostgreSQL, running."""

    redis: RedisServer
    postgres: PostgresServer

    @asynccontextmanager
    async def empty(self) -> AsyncIterator[Stores]:
        """Give clients of an empty Redis and of a fresh, migrated database."""
        client = open_redis(SecretStr(self.redis.url))
        url = self.postgres.new_database()
        database = open_database(SecretStr(url))
        try:
            await client.flushall()
            await migrate.migrate(database)
            yield Stores(client, database, url)
        finally:
            await database.close()
            await client.aclose()


@dataclass(frozen=True, slots=True)
class Stores:
    """Clients of one measurement; `postgres_url` is for processes of their own."""

    client: Redis
    database: Database
    postgres_url: str


async def machine(servers: Servers) -> str:
    """Return what a reader has to know of the machine; nothing that would name it."""
    async with servers.empty() as stores:
        redis = (await ping_redis(stores.client)).version
        postgres = (await stores.database.ping()).split(" ", 1)[0]
    return (
        f"{os.cpu_count()} cores, Python {platform.python_version()}, Redis {redis}, PostgreSQL {postgres} (fsync off)"
    )
