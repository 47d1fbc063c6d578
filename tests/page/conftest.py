"""Fixtures of the page's tests: workers on the test's own stores, and the proxies and servers that the page names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.store import migrate, tables
from synapse_worker.store.database import Database
from synapse_worker.store.schema_version import is_migrated
from tests.page.support import Here, PgBouncerServer, TlsPostgresServer, TlsRedisServer
from tests.support.servers import PostgresServer, RedisServer

StartHere = Callable[..., Awaitable[Here]]

_EMPTY = ";".join(
    f"DELETE FROM {table.name}"  # noqa: S608 - names of our own
    for table in tables.metadata.sorted_tables
    if table is not tables.schema_version
)


@pytest.fixture(scope="session")
def page_database(postgres_server: PostgresServer) -> str:
    """The URL of the one database that these tests share: emptying it takes less than creating another."""
    return postgres_server.new_database()


@pytest.fixture
async def database(page_database: str) -> AsyncIterator[Database]:
    """A migrated and empty database."""
    opened = open_database(SecretStr(page_database))
    if not await is_migrated(opened):
        await migrate.migrate(opened)
    async with opened.transaction() as transaction:
        await transaction.execute(_EMPTY)
    yield opened
    await opened.close()


@pytest.fixture
def postgres_url(page_database: str, database: Database) -> str:
    """The URL of `database`."""
    return page_database


@pytest.fixture
async def start_here(redis_server: RedisServer, postgres_url: str) -> AsyncIterator[StartHere]:
    """Starts workers in this process, by default on the test's own stores, and ends them afterwards.

    `start_worker` starts processes.
    """
    started: list[Here] = []

    async def start(*, redis_url: str = "", postgres: str = "", **extra: str) -> Here:
        worker = Here(redis_url or redis_server.url, postgres or postgres_url, **extra)
        started.append(worker)
        return await worker.start()

    yield start
    for worker in started:
        await worker.close()


@pytest.fixture(scope="session")
def tls_redis() -> Iterator[TlsRedisServer]:
    """A Redis that speaks TLS only."""
    server = TlsRedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def tls_postgres() -> Iterator[TlsPostgresServer]:
    """A PostgreSQL that also speaks TLS."""
    server = TlsPostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def pgbouncer(postgres_server: PostgresServer) -> Iterator[PgBouncerServer]:
    """A PgBouncer in transaction mode in front of the session's PostgreSQL."""
    server = PgBouncerServer(postgres_server)
    server.start()
    yield server
    server.remove()
