"""Bringing a database to the schema of `tables`: additive, safe to run from many processes at once.

What upstream created stays as it is; missing tables, columns, indexes and the claim sequence are added.
Whoever comes first does it under a transaction lock (a session lock would leak through PgBouncer), the
others find nothing to do. A newer schema is left alone: the previous release goes on working with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Column, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateSequence, CreateTable

from synapse_worker.store import tables
from synapse_worker.store.database import Database, Transaction
from synapse_worker.store.schema_version import SCHEMA_VERSION

_LOCK = 7_203_419_552_118_201
_LOCK_TIMEOUT = "10s"
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did: the statements it ran (none = the schema was there) and the version it left."""

    statements: tuple[str, ...]
    version: int


async def migrate(database: Database) -> Migration:
    """Create or complete the schema.

    Raises:
        StoreUnavailable: PostgreSQL does not answer, or another session holds a lock for over 10 s.
        StoreRefused: our user may not create tables.
    """
    async with database.transaction() as transaction:
        await transaction.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        await transaction.fetch("SELECT pg_advisory_xact_lock($1)", _LOCK)
        missing = await _missing(transaction)
        for statement in missing:
            await transaction.execute(statement)
        version = await _recorded_version(transaction)
        if version < SCHEMA_VERSION:
            await transaction.fetch(
                "INSERT INTO synapse_scale_schema (id, version, migrated_at) VALUES (1, $1, now())"
                " ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version, migrated_at = now()",
                SCHEMA_VERSION,
            )
    return Migration(tuple(missing), max(version, SCHEMA_VERSION))


async def _missing(transaction: Transaction) -> list[str]:
    """Return the DDL for what the current schema lacks; looking first keeps a no-op from taking table locks."""
    columns = {
        (row["table_name"], row["column_name"])
        for row in await transaction.fetch(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        )
    }
    indexes = {
        row["indexname"]
        for row in await transaction.fetch("SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()")
    }
    existing = {table for table, _ in columns}
    statements = [_sql(CreateSequence(tables.CLAIM_SEQUENCE, if_not_exists=True))]
    if await transaction.fetch("SELECT 1 WHERE to_regclass('claim_seq') IS NOT NULL"):
        statements = []
    for table in tables.metadata.sorted_tables:
        if table.name not in existing:
            statements.append(_sql(CreateTable(table, if_not_exists=True)))
        else:
            statements += [
                _add_column(table, column) for column in table.columns if (table.name, column.name) not in columns
            ]
        statements += [
            _sql(CreateIndex(index, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda index: str(index.name))
            if index.name not in indexes
        ]
    return statements


async def _recorded_version(transaction: Transaction) -> int:
    rows = await transaction.fetch("SELECT max(version) AS version FROM synapse_scale_schema")
    return int(rows[0]["version"] or 0)


def _add_column(table: Table, column: Column[object]) -> str:
    default = f" DEFAULT {column.server_default.arg}" if column.server_default is not None else ""  # type: ignore[attr-defined]
    kind = column.type.compile(dialect=_DIALECT)
    required = " NOT NULL" if not column.nullable and default else ""
    return f"ALTER TABLE {table.name} ADD COLUMN IF NOT EXISTS {column.name} {kind}{default}{required}"


def _sql(statement: CreateTable | CreateIndex | CreateSequence) -> str:
    return str(statement.compile(dialect=_DIALECT)).strip()
