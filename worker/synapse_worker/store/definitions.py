"""Definitions and stored settings: what `sync` writes and what a run reads when it starts.

Writing goes in batches, one statement for many rows, and notes in `synced_definitions` who wrote what. With these
notes `sync` finds out what is unchanged (and costs no write) and what has vanished from its sources; what it takes
back is only what nobody else has written or listed since.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from synapse_worker.store.claims import State
from synapse_worker.store.database import Database, from_jsonb, to_jsonb

ORCHESTRATIONS = "orchestrations"
AGENTS = "agents"
TOOLS = "tools"
MCP_SERVERS = "mcp_servers"
SETTINGS = "scale_settings"

MCP_TOKEN = "mcp_token."  # noqa: S105  # a name
"""Before an MCP server's name: the setting that holds its token."""

BATCH_ROWS = 1000
BATCH_CHARACTERS = 4 * 1024 * 1024
"""What one statement carries at most, so that it ends well within a call's timeout."""


class Key(NamedTuple):
    """Which row: `table` is one of the names above."""

    table: str
    key: str


@dataclass(frozen=True, slots=True)
class Document:
    """One definition or setting to store.

    Attributes:
        table: one of the names above.
        key: the row's id, name or key.
        name: name of an orchestration, agent or tool, label of an MCP server; unused for a setting.
        definition: JSON; of a setting its value.
        source: the file or object that it was read from, for the notes.
    """

    table: str
    key: str
    name: str
    description: str
    definition: object
    source: str = ""

    @property
    def row(self) -> Key:
        """Where it is stored."""
        return Key(self.table, self.key)

    def hash(self, tenant_id: str) -> str:
        """Return a hash of all that is stored of it."""
        content = to_jsonb([self.name, self.description, self.definition, tenant_id])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Synced:
    """What the notes say of one row of an owner.

    Attributes:
        source: where the owner had it from.
        hash: the content that the owner last stored.
        there: whether the row is still there and active, whatever its content.
    """

    source: str
    hash: str
    there: bool


async def read_orchestrations(database: Database, ids: Sequence[str]) -> dict[str, State]:
    """Return the definitions of the active orchestrations among `ids`."""
    rows = await database.fetch(
        "SELECT id, name, definition::text FROM orchestrations"
        " WHERE id = ANY($1::text[]) AND coalesce(is_active, true)",
        list(ids),
    )
    found: dict[str, State] = {}
    for row in rows:
        definition: object = from_jsonb(row["definition"], {})
        fields = definition if isinstance(definition, dict) else {}  # refused as one without steps
        found[row["id"]] = {"name": row["name"], **fields, "id": row["id"]}
    return found


@dataclass(frozen=True, slots=True)
class Listed:
    """An orchestration or agent as listings show it."""

    id: str
    name: str
    description: str | None
    tenant_id: str
    updated_at: datetime | None


async def list_table(database: Database, table: str, *, tenants: Sequence[str] | None, limit: int) -> list[Listed]:
    """Return the active rows of `ORCHESTRATIONS` or `AGENTS`, by id.

    Args:
        tenants: whose; None = everybody's.
    """
    rows = await database.fetch(f"{_listing(table, _listed_of(table))} ORDER BY id LIMIT $2", tenants, limit)
    return [Listed(row["id"], row["name"], row["description"], row["tenant_id"], row["updated_at"]) for row in rows]


async def find(
    database: Database, table: str, key: str, *, tenants: Sequence[str] | None
) -> tuple[Listed, State] | None:
    """Return an active row of `ORCHESTRATIONS` or `AGENTS` with its definition; arguments as for `list_table`."""
    columns = f"{_listed_of(table)}, definition::text"
    row = await database.fetchrow(f"{_listing(table, columns)} AND id = $2", tenants, key)
    if row is None:
        return None
    listed = Listed(row["id"], row["name"], row["description"], row["tenant_id"], row["updated_at"])
    definition: object = from_jsonb(row["definition"], {})
    return listed, definition if isinstance(definition, dict) else {}


async def exists(database: Database, table: str, key: str, *, tenants: Sequence[str] | None) -> bool:
    """Return whether there is such an active row; arguments as for `list_table`."""
    return bool(await database.fetch(f"{_listing(table, 'id')} AND id = $2", tenants, key))


def _listed_of(table: str) -> str:
    description = "description" if table == ORCHESTRATIONS else "definition->>'description' AS description"
    return f"id, name, {description}, tenant_id, updated_at"


def _listing(table: str, columns: str) -> str:
    """$1: the tenants."""
    active = "coalesce(is_active, true)" if table == ORCHESTRATIONS else "true"
    return (
        f"SELECT {columns} FROM {table}"  # noqa: S608  # names of our own
        f" WHERE {active} AND ($1::text[] IS NULL OR tenant_id = ANY($1::text[]))"
    )


@dataclass(frozen=True, slots=True)
class StoredSecrets:
    """What tools and MCP servers hold that runs do not keep: headers by tool id, tokens by server name.

    Attributes:
        others: servers of that name that are another tenant's now, whose tokens the run may not have.
    """

    headers: Mapping[str, Mapping[str, str]]
    tokens: Mapping[str, str]
    others: Collection[str]


class Reached:
    """Reads what an orchestration reaches; see `engine.snapshot.Definitions`.

    Args:
        database: where.
        shared_tenant: the tenant whose definitions are everybody's.
    """

    def __init__(self, database: Database, shared_tenant: str) -> None:
        self._database = database
        self._shared_tenant = shared_tenant

    async def orchestrations(self, ids: Collection[str]) -> Mapping[str, tuple[State, str]]:
        """The active orchestrations among `ids`."""
        documents = await read_orchestrations(self._database, list(ids))
        rows = await self._database.fetch(
            "SELECT id, tenant_id FROM orchestrations WHERE id = ANY($1::text[])", list(documents)
        )
        return {row["id"]: (documents[row["id"]], self._owner(row["tenant_id"])) for row in rows}

    async def agents(self, ids: Collection[str]) -> Mapping[str, tuple[State, str]]:
        """The agents among `ids`."""
        return await self._documents(
            "SELECT id AS key, definition::text, tenant_id FROM agents WHERE id = ANY($1::text[])", list(ids)
        )

    async def tools(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, tuple[State, str]]:
        """The custom tools of these ids or names that `owners` or everybody have, and all of those of `whole`."""
        return await self._of("SELECT id AS key, definition::text, tenant_id FROM tools", "id", names, owners, whole)

    async def mcp_servers(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, tuple[State, str]]:
        """The same for MCP servers."""
        select = "SELECT name AS key, definition::text, tenant_id FROM mcp_servers"
        return await self._of(select, "name", names, owners, whole)

    async def secrets(self, tools: Mapping[str, str | None], servers: Mapping[str, str | None]) -> StoredSecrets:
        """Return the headers of custom tools, and the tokens that a main instance wrote with its MCP servers.

        Args:
            tools: whose each one is as it was kept, by its id; None = that is not known. Ids are unique over all
                tenants: one that is another's now gives its secrets to that tenant's runs alone.
            servers: the same of MCP servers, by their names.
        """
        headers: dict[str, Mapping[str, str]] = {}
        tokens: dict[str, str] = {}
        others: set[str] = set()
        if not tools and not servers:
            return StoredSecrets(headers, tokens, others)
        rows = await self._database.fetch(
            """
            SELECT 'tool' AS kind, id AS key, tenant_id, (definition->'headers')::text AS value
              FROM tools WHERE id = ANY($1::text[])
            UNION ALL
            SELECT 'server', name, tenant_id, (definition->'token')::text FROM mcp_servers WHERE name = ANY($2::text[])
            """,
            list(tools),
            list(servers),
        )
        for row in rows:
            is_tool, key = row["kind"] == "tool", row["key"]
            value: object = from_jsonb(row["value"], None)
            if (tools if is_tool else servers)[key] not in (None, self._owner(row["tenant_id"])):
                if not is_tool:
                    others.add(key)
            elif is_tool and isinstance(value, dict):
                headers[key] = {str(name): str(each) for name, each in value.items() if each is not None}
            elif not is_tool and isinstance(value, str) and value:
                tokens[key] = value
        return StoredSecrets(headers, tokens, others)

    async def _of(
        self, select: str, key: str, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, tuple[State, str]]:
        named = f"({key} = ANY($1::text[]) OR definition->>'name' = ANY($1::text[]))"
        statement = f"{select} WHERE {named} AND tenant_id = ANY($2::text[]) OR tenant_id = ANY($3::text[]) ORDER BY 1"
        tenants = [self._shared_tenant, *filter(None, owners)]
        return await self._documents(statement, list(names), tenants, [owner or self._shared_tenant for owner in whole])

    async def _documents(self, statement: str, *values: object) -> dict[str, tuple[State, str]]:
        found: dict[str, tuple[State, str]] = {}
        for row in await self._database.fetch(statement, *values):
            definition: object = from_jsonb(row["definition"], {})
            document = definition if isinstance(definition, dict) else {}
            found[row["key"]] = (document, self._owner(row["tenant_id"]))
        return found

    def _owner(self, tenant_id: str) -> str:
        return "" if tenant_id == self._shared_tenant else tenant_id


async def stored_settings(database: Database) -> Mapping[str, object]:
    """Return `scale_settings`: key -> decoded value; a value that is not JSON is left out."""
    settings: dict[str, object] = {}
    for row in await database.fetch("SELECT key, value FROM scale_settings"):
        try:
            settings[row["key"]] = json.loads(row["value"])
        except ValueError:
            continue
    return settings


async def upsert(database: Database, documents: Sequence[Document], *, tenant_id: str, owner: str = "") -> int:
    """Insert or replace rows by key, many with one statement; a row that would not change is not written.

    Args:
        database: where.
        documents: what; of a key that occurs twice the last one counts.
        tenant_id: tenant of the definitions; settings have none.
        owner: who is noted to have written them; "" = nobody.

    Returns:
        How many rows were written or changed.
    """
    written = 0
    for table in _TABLES:
        rows = {document.key: document for document in documents if document.table == table}
        # In order of key, so that two syncs at once do not wait for each other in a circle; in a thread, since writing
        # a thousand documents as JSON would hold up the loop.
        for batch in await asyncio.to_thread(_batches, [rows[key] for key in sorted(rows)], tenant_id):
            answer = await database.fetch(_UPSERT[table], f"[{','.join(batch)}]", tenant_id, owner)
            written += int(answer[0]["written"])
    return written


async def synced_by(database: Database, owner: str) -> dict[Key, Synced]:
    """Return the notes on an owner's rows."""
    rows = await database.fetch(
        f"SELECT s.kind, s.key, s.source, s.hash, {_THERE} AS there FROM synced_definitions s WHERE s.owner = $1",  # noqa: S608
        owner,
    )
    return {Key(row["kind"], row["key"]): Synced(row["source"], row["hash"], row["there"]) for row in rows}


async def count_there(database: Database, owner: str) -> int:
    """Return how many of an owner's rows are still there and active, whatever their content."""
    rows = await database.fetch(
        f"SELECT count(*) AS count FROM synced_definitions s WHERE s.owner = $1 AND {_THERE}",  # noqa: S608
        owner,
    )
    return int(rows[0]["count"])


async def retire(database: Database, owner: str, rows: Sequence[Key]) -> int:
    """Take back rows that have vanished from an owner's sources, and the notes on them.

    An orchestration becomes inactive, everything else is deleted. A row is left alone when somebody wrote it after
    the owner did, or when another owner lists it too.

    Returns:
        How many rows were taken back.
    """
    taken = 0
    for table in _TABLES:
        keys = sorted(key for of, key in rows if of == table)
        for start in range(0, len(keys), BATCH_ROWS):
            answer = await database.fetch(_RETIRE[table], owner, keys[start : start + BATCH_ROWS])
            taken += int(answer[0]["taken"])
    return taken


def _row(document: Document, tenant_id: str) -> str:
    return to_jsonb(
        {
            "key": document.key,
            "name": document.name,
            "description": document.description,
            "definition": document.definition,
            "source": document.source,
            "hash": document.hash(tenant_id),
        }
    )


def _batches(documents: Sequence[Document], tenant_id: str) -> list[list[str]]:
    batches: list[list[str]] = []
    characters = 0
    for row in (_row(document, tenant_id) for document in documents):
        if not batches or len(batches[-1]) == BATCH_ROWS or characters + len(row) > BATCH_CHARACTERS:
            batches.append([])
            characters = 0
        batches[-1].append(row)
        characters += len(row)
    return batches


class _Table(NamedTuple):
    """How a table is written: its key's column, and (column, value from the given row) of what is compared."""

    key: str
    columns: tuple[tuple[str, str], ...]
    insert_only: tuple[tuple[str, str], ...] = ()


_NAMED = (("name", "name"), ("definition", "definition"), ("tenant_id", "tenant_id"))
_TABLES: Mapping[str, _Table] = {
    ORCHESTRATIONS: _Table(
        "id", (*_NAMED, ("description", "description"), ("is_active", "true")), (("created_at", "now()"),)
    ),
    AGENTS: _Table("id", _NAMED),
    TOOLS: _Table("id", _NAMED),
    MCP_SERVERS: _Table("name", (("label", "name"), ("definition", "definition"), ("tenant_id", "tenant_id"))),
    SETTINGS: _Table("key", (("value", "definition::text"),)),
}


def _there(table: str) -> str:
    active = " AND coalesce(t.is_active, true)" if table == ORCHESTRATIONS else ""
    return f"EXISTS (SELECT FROM {table} t WHERE t.{_TABLES[table].key} = s.key{active})"


def _upsert_statement(table: str) -> str:
    """$1: the rows as JSON, $2: tenant, $3: owner."""
    key, columns, insert_only = _TABLES[table]
    names = ", ".join(name for name, _ in (*columns, *insert_only))
    values = ", ".join(value for _, value in (*columns, *insert_only))
    changes = ", ".join(f"{name} = EXCLUDED.{name}" for name, _ in columns)
    old = ", ".join(f"t.{name}" for name, _ in columns)
    new = ", ".join(f"EXCLUDED.{name}" for name, _ in columns)
    return f"""
        WITH given AS (
            SELECT g.*, $2::text AS tenant_id
              FROM jsonb_to_recordset($1::jsonb)
                AS g(key text, name text, description text, definition jsonb, source text, hash text)
        ), written AS (
            INSERT INTO {table} AS t ({key}, {names}, updated_at) SELECT key, {values}, now() FROM given
            ON CONFLICT ({key}) DO UPDATE SET {changes}, updated_at = now()
             WHERE ({old}) IS DISTINCT FROM ({new})
            RETURNING t.{key} AS key
        ), noted AS (
            INSERT INTO synced_definitions AS s (owner, kind, key, source, hash, synced_at)
            SELECT $3::text, '{table}', key, source, hash, now() FROM given WHERE $3::text <> ''
            ON CONFLICT (owner, kind, key) DO UPDATE SET source = EXCLUDED.source, hash = EXCLUDED.hash,
                synced_at = CASE WHEN s.hash = EXCLUDED.hash AND s.key NOT IN (SELECT key FROM written)
                                 THEN s.synced_at ELSE now() END
             WHERE (s.source, s.hash) IS DISTINCT FROM (EXCLUDED.source, EXCLUDED.hash)
                OR s.key IN (SELECT key FROM written)
        )
        SELECT count(*) AS written FROM written
        """  # noqa: S608  # names of our own tables


def _retire_statement(table: str) -> str:
    """$1: owner, $2: keys."""
    key = _TABLES[table].key
    act = f"DELETE FROM {table} AS t USING gone"  # noqa: S608  # as above
    if table == ORCHESTRATIONS:  # a run that has not started yet says that it is gone
        act = f"UPDATE {table} AS t SET is_active = false, updated_at = now() FROM gone"  # noqa: S608  # as above
    return f"""
        WITH gone AS (
            DELETE FROM synced_definitions WHERE owner = $1::text AND kind = '{table}' AND key = ANY($2::text[])
            RETURNING key, synced_at
        ), taken AS (
            {act}
             WHERE t.{key} = gone.key AND t.updated_at = gone.synced_at
               AND NOT EXISTS (SELECT FROM synced_definitions o
                                WHERE o.kind = '{table}' AND o.key = gone.key AND o.owner <> $1::text)
            RETURNING 1
        )
        SELECT count(*) AS taken FROM taken
        """  # noqa: S608  # as above


_THERE = "CASE s.kind " + " ".join(f"WHEN '{table}' THEN {_there(table)}" for table in _TABLES) + " ELSE false END"
_UPSERT = {table: _upsert_statement(table) for table in _TABLES}
_RETIRE = {table: _retire_statement(table) for table in _TABLES}
