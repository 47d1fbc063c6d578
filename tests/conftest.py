"""Fixtures that several layers share: real stores, one server per session, fresh data per test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database, open_redis
from synapse_worker.store import migrate
from synapse_worker.store.blobs import Blobs
from synapse_worker.store.database import Database
from synapse_worker.store.local_blobs import LocalBlobs
from synapse_worker.store.s3_blobs import S3Blobs
from tests.support.api import ApiProcess, StartApi
from tests.support.s3 import S3Server
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 for the session; tests take buckets of their own (`new_bucket`)."""
    server = S3Server()
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["folder", "bucket"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    """Each of the two stores in turn, empty."""
    opened: Blobs
    if request.param == "folder":
        opened = LocalBlobs(tmp_path / "data")
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        opened = S3Blobs(server.settings(server.new_bucket()))
    yield opened
    await opened.close()


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


@pytest.fixture
def start_api(redis_server: RedisServer, postgres_url: str) -> Iterator[StartApi]:
    """Starts API processes on the test's own stores, without keys, and waits for them; ends them afterwards."""
    started: list[ApiProcess] = []

    def start(**extra: str) -> ApiProcess:
        process = ApiProcess(redis_server.url, postgres_url, **extra)
        started.append(process)
        process.start()
        return process.wait_ready()

    yield start
    for process in started:
        process.close()
