"""The schema against a real PostgreSQL: from nothing, beside upstream's tables, by many at once."""

from __future__ import annotations

import asyncio

from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.store import migrate, tables
from synapse_worker.store.database import Database
from synapse_worker.store.schema_version import SCHEMA_VERSION, is_migrated


async def _columns(database: Database) -> set[tuple[str, str]]:
    rows = await database.fetch(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
    )
    return {(row["table_name"], row["column_name"]) for row in rows}


async def test_an_empty_database_gets_every_table_and_column(postgres_url: str) -> None:
    database = open_database(SecretStr(postgres_url))
    assert not await is_migrated(database)
    done = await migrate.migrate(database)
    expected = {(table.name, column.name) for table in tables.metadata.sorted_tables for column in table.columns}
    assert expected <= await _columns(database)
    assert done.version == SCHEMA_VERSION
    assert await is_migrated(database)
    await database.close()


async def test_migrating_again_runs_no_statement(database: Database) -> None:
    assert (await migrate.migrate(database)).statements == ()


async def test_eight_processes_at_once_do_not_fail(postgres_url: str) -> None:
    databases = [open_database(SecretStr(postgres_url), pool_size=1) for _ in range(8)]
    done = await asyncio.gather(*(migrate.migrate(database) for database in databases))
    assert sum(1 for result in done if result.statements) == 1
    for database in databases:
        await database.close()


async def test_upstreams_table_is_completed_and_keeps_its_rows(postgres_url: str) -> None:
    database = open_database(SecretStr(postgres_url))
    await database.execute(
        "CREATE TABLE orchestration_runs (run_id varchar(255) PRIMARY KEY, orchestration_id varchar(255) NOT NULL,"
        " tenant_id varchar(255) NOT NULL, status varchar(50) NOT NULL, shared_state jsonb NOT NULL,"
        " step_history jsonb NOT NULL)"
    )
    await database.execute("INSERT INTO orchestration_runs VALUES ('old', 'o', 'default', 'completed', '{}', '[]')")
    await migrate.migrate(database)
    row = await database.fetchrow("SELECT status, claim, cursor FROM orchestration_runs WHERE run_id = 'old'")
    assert row is not None
    assert dict(row) == {"status": "completed", "claim": None, "cursor": None}
    await database.close()


async def test_a_newer_schema_is_left_alone(database: Database) -> None:
    await database.execute("UPDATE synapse_scale_schema SET version = 99")
    assert (await migrate.migrate(database)).version == 99
    assert await is_migrated(database)
