"""Fixtures that several layers share: real stores, one server per session, fresh data per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database, open_redis
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from tests.support.servers import PostgresServer, RedisCluster, RedisServer
from tests.support.workers import StartWorker, WorkerProcess


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One Redis for the session; tests empty it before they use it (fixture `redis_client`)."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[RedisCluster]:
    """One Redis Cluster of three masters for the session; tests use `redis_cluster`."""
    cluster = RedisCluster()
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
def redis_cluster(whole_cluster: RedisCluster) -> RedisCluster:
    """An empty Redis Cluster of three masters."""
    whole_cluster.empty()
    return whole_cluster


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the session; tests take databases of their own (`new_database`)."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def redis_client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    client = open_redis(SecretStr(redis_server.url))
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def migrated_database(postgres_server: PostgresServer) -> str:
    """The URL of a database with our tables, to be copied: that takes less than to make them again."""
    url = postgres_server.new_database()

    async def make() -> None:
        opened = open_database(SecretStr(url))
        await migrate.migrate(opened)
        await opened.close()

    asyncio.run(make())
    return url


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> str:
    """The URL of a database of the test's own: with our tables if it also takes `database`, else empty."""
    has_tables = "database" in request.fixturenames
    return postgres_server.new_database(like=request.getfixturevalue("migrated_database") if has_tables else "")


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    """A migrated database."""
    opened = open_database(SecretStr(postgres_url))
    yield opened
    await opened.close()


@pytest.fixture
def start_worker(redis_server: RedisServer, postgres_url: str) -> Iterator[StartWorker]:
    """Starts workers on the test's own stores and ends them afterwards."""
    started: list[WorkerProcess] = []

    def start(**extra: str) -> WorkerProcess:
        worker = WorkerProcess(redis_server.url, postgres_url, **{"K8S_MODE": "1", **extra})
        started.append(worker)
        return worker.start()

    yield start
    for worker in started:
        worker.close()
