"""The stores of one scale, as the tests of this folder ask and change them beside the operator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import SecretStr
from redis import Redis

from synapse_worker.connections import open_database
from synapse_worker.queueing import keys
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from synapse_worker.store.migrate import migrate
from tests.support.servers import PostgresServer, RedisServer

T = TypeVar("T")


class Stores:
    """The two stores of one namespace, with the tables that workers make."""

    def __init__(self, redis: RedisServer, postgres: PostgresServer) -> None:
        self.redis = redis
        self.postgres_url = postgres.new_database()
        self._ask(migrate)

    def topology(self) -> topology.TopologyRow | None:
        return self._ask(topology.read)

    def producer(self, epoch: int) -> None:
        """Be a producer that goes by `epoch`."""
        self._ask(lambda db: topology.report(db, "api-1", hostname="api", role=topology.Role.API, epoch=epoch))

    def put(self, shard: str, job: str) -> None:
        """Put a job into a queue."""
        with Redis.from_url(self.redis.url) as client:
            client.zadd(keys.queue(shard), {job: time.time() * 1000})

    def take(self, shard: str, job: str) -> None:
        """Take it out again."""
        with Redis.from_url(self.redis.url) as client:
            client.zrem(keys.queue(shard), job)

    def claim(self, shard: str, job: str, worker: str) -> None:
        """Take a job as a worker does, for an hour."""
        with Redis.from_url(self.redis.url) as client:
            client.zrem(keys.queue(shard), job)
            client.zadd(keys.leases(keys.queue(shard)), {job: (time.time() + 3600) * 1000})
            client.hset(keys.claims(keys.queue(shard)), job, f"token|0|{worker}")

    def ask(self, statement: str, *arguments: object) -> list[dict[str, Any]]:
        """Run one statement."""

        async def run(database: Database) -> list[dict[str, Any]]:
            return [dict(row) for row in await database.fetch(statement, *arguments)]

        return self._ask(run)

    def release(self, shard: str) -> None:
        """Forget all leases of a queue, as if the workers had finished their jobs."""
        with Redis.from_url(self.redis.url) as client:
            client.delete(keys.leases(keys.queue(shard)), keys.claims(keys.queue(shard)))

    def _ask(self, question: Callable[[Database], Awaitable[T]]) -> T:
        async def ask() -> T:
            database = open_database(SecretStr(self.postgres_url), pool_size=1)
            try:
                return await question(database)
            finally:
                await database.close()

        return asyncio.run(ask())
