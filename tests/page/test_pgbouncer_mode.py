"""The page's section PgBouncer mode and the URL form Via PgBouncer, with a real PgBouncer in transaction mode."""

from __future__ import annotations

import asyncio

from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.naming import Kind
from synapse_worker.connections import open_database
from synapse_worker.store.database import Database
from tests.builders import a_scale, manifest_of, what_is_desired
from tests.page.conftest import StartHere
from tests.page.support import PgBouncerServer, completed, enqueue, eventually
from tests.support.runs import store
from tests.support.servers import PostgresServer
from tests.support.workers import PRINT_IF_PRINT

PREPARED = "SELECT count(*) AS n FROM pg_prepared_statements"


async def nobody_connected(pgbouncer: PgBouncerServer, postgres_url: str) -> None:
    """Wait until no connection is open; PgBouncer hears of an end a moment later."""

    async def none() -> bool:
        return await asyncio.to_thread(pgbouncer.clients, postgres_url) == 0

    await eventually("the last connection is closed", none)


async def test_a_connection_is_opened_and_closed_for_each_query(
    database: Database, postgres_url: str, pgbouncer: PgBouncerServer
) -> None:
    """Uses NullPool (no persistent connection pool), opening and closing a connection for each query."""
    assert pgbouncer.mode() == "transaction"
    await nobody_connected(pgbouncer, postgres_url)
    through = open_database(SecretStr(pgbouncer.url(postgres_url)), pgbouncer=True)
    assert await through.fetchrow("SELECT $1::int AS n", 1) == (1,)
    async with through.transaction() as transaction:
        assert await transaction.fetch("SELECT $1::int AS n", 2) == [(2,)]
        assert await asyncio.to_thread(pgbouncer.clients, postgres_url) == 1
    await nobody_connected(pgbouncer, postgres_url)
    await through.close()


async def test_nothing_is_prepared(database: Database, postgres_url: str, pgbouncer: PgBouncerServer) -> None:
    """Required for transaction pooling: a statement prepared on one server connection is unknown to the next."""
    through = open_database(SecretStr(pgbouncer.url(postgres_url)), pgbouncer=True)
    async with through.transaction() as transaction:
        await transaction.fetch("SELECT $1::int AS n", 1)
        await transaction.fetch("SELECT $1::int AS n", 2)
        assert await transaction.fetch(PREPARED) == [(0,)]
    await through.close()


async def test_many_queries_share_few_server_connections(
    database: Database, postgres_url: str, pgbouncer: PgBouncerServer
) -> None:
    """Via PgBouncer: postgresql://user:password@pgbouncer-host:6432/dbname, more callers than server connections."""
    through = open_database(SecretStr(pgbouncer.url(postgres_url)), pgbouncer=True)

    async def ask(number: int) -> tuple[int, ...]:
        row = await through.fetchrow(f"SELECT $1::int AS asked, {number} AS written, pg_backend_pid() AS pid", number)
        assert row is not None
        return tuple(row)

    answers = await asyncio.gather(*(ask(number) for number in range(60)))
    assert [answer[:2] for answer in answers] == [(number, number) for number in range(60)]
    assert len({pid for *_, pid in answers}) <= PgBouncerServer.POOL_SIZE
    await through.close()


async def test_workers_run_jobs_through_pgbouncer(
    database: Database,
    redis_client: Redis,
    postgres_url: str,
    pgbouncer: PgBouncerServer,
    start_here: StartHere,
) -> None:
    """Set PGBOUNCER_MODE to 1 when SCALE_POSTGRES_URL points to PgBouncer in transaction pooling mode."""
    await store(database, PRINT_IF_PRINT)
    worker = await (await start_here(postgres=pgbouncer.url(postgres_url), PGBOUNCER_MODE="1")).ready()
    views = await completed(database, [await enqueue(database, redis_client, "three") for _ in range(20)])
    assert [view.steps_done for view in views] == [3] * 20
    await worker.close()
    await nobody_connected(pgbouncer, postgres_url)


async def test_a_worker_on_a_new_database_creates_its_tables_through_pgbouncer(
    redis_client: Redis, postgres_server: PostgresServer, pgbouncer: PgBouncerServer, start_here: StartHere
) -> None:
    """Your Postgres URL points to a PgBouncer proxy: all that workers do goes through it, the schema too."""
    url = pgbouncer.url(postgres_server.new_database())
    await (await start_here(postgres=url, PGBOUNCER_MODE="1")).ready()


async def test_without_the_mode_connections_are_kept(database: Database) -> None:
    """Do not enable this when connecting directly to Postgres - it disables pooling: off, connections are kept."""
    first = await database.fetchrow("SELECT pg_backend_pid() AS pid")
    second = await database.fetchrow("SELECT pg_backend_pid() AS pid")
    assert first == second
    async with database.transaction() as transaction:
        await transaction.fetch("SELECT $1::int AS n", 1)
        ((prepared,),) = await transaction.fetch(PREPARED)
        assert prepared > 0


def test_the_field_of_a_synapse_scale() -> None:
    """PGBOUNCER_MODE, default 0: set to 1 by spec.postgres.pgbouncer and left out otherwise."""

    def rendered(**postgres: object) -> str | None:
        reference = {"urlSecretRef": {"name": "stores", "key": "postgres"}}
        scale = a_scale(spec={"postgres": {**reference, **postgres}})
        data: dict[str, str] = manifest_of(what_is_desired(scale), Kind.CONFIG_MAP).body["data"]
        return data.get("PGBOUNCER_MODE")

    assert rendered() is None
    assert rendered(pgbouncer=True) == "1"
