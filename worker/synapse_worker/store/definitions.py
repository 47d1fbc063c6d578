"""Definitions and stored settings: what `sync` writes and what a run reads when it starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synapse_worker.store.claims import State
from synapse_worker.store.database import Database, from_jsonb, to_jsonb

ORCHESTRATIONS = "orchestrations"
AGENTS = "agents"
TOOLS = "tools"
MCP_SERVERS = "mcp_servers"


@dataclass(frozen=True, slots=True)
class Document:
    """One definition to store; `table` is one of the names above."""

    table: str
    key: str
    name: str
    description: str
    definition: State


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


async def upsert(database: Database, documents: Sequence[Document], *, tenant_id: str) -> int:
    """Insert or replace definitions by id, in one transaction; returns how many rows were written or changed."""
    written = 0
    async with database.transaction() as transaction:
        for document in documents:
            rows = await transaction.fetch(_UPSERT[document.table], *_arguments(document, tenant_id))
            written += len(rows)
    return written


async def stored_settings(database: Database) -> Mapping[str, object]:
    """Return `scale_settings`: key -> decoded value; a value that is not JSON is left out."""
    settings: dict[str, object] = {}
    for row in await database.fetch("SELECT key, value FROM scale_settings"):
        try:
            settings[row["key"]] = json.loads(row["value"])
        except ValueError:
            continue
    return settings


def _arguments(document: Document, tenant_id: str) -> tuple[object, ...]:
    definition = to_jsonb(document.definition)
    if document.table == ORCHESTRATIONS:
        return (document.key, document.name, document.description, definition, tenant_id)
    return (document.key, document.name, definition, tenant_id)


# A row that would not change is not written, so that syncing again costs no write.
_UPSERT = {
    ORCHESTRATIONS: """
        INSERT INTO orchestrations AS o
            (id, name, description, definition, tenant_id, created_at, updated_at, is_active)
        VALUES ($1, $2, $3, $4::jsonb, $5, now(), now(), true)
        ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, description = EXCLUDED.description,
            definition = EXCLUDED.definition, tenant_id = EXCLUDED.tenant_id, updated_at = now(), is_active = true
         WHERE (o.name, o.description, o.definition, o.tenant_id, o.is_active) IS DISTINCT FROM
               (EXCLUDED.name, EXCLUDED.description, EXCLUDED.definition, EXCLUDED.tenant_id, true)
        RETURNING o.id""",
    AGENTS: """
        INSERT INTO agents AS a (id, name, definition, tenant_id, updated_at) VALUES ($1, $2, $3::jsonb, $4, now())
        ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, definition = EXCLUDED.definition,
            tenant_id = EXCLUDED.tenant_id, updated_at = now()
         WHERE (a.name, a.definition, a.tenant_id)
               IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.definition, EXCLUDED.tenant_id)
        RETURNING a.id""",
    TOOLS: """
        INSERT INTO tools AS t (id, name, definition, tenant_id, updated_at) VALUES ($1, $2, $3::jsonb, $4, now())
        ON CONFLICT (id) DO UPDATE SET name = EXCLUDED.name, definition = EXCLUDED.definition,
            tenant_id = EXCLUDED.tenant_id, updated_at = now()
         WHERE (t.name, t.definition, t.tenant_id)
               IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.definition, EXCLUDED.tenant_id)
        RETURNING t.id""",
    MCP_SERVERS: """
        INSERT INTO mcp_servers AS m (name, label, definition, tenant_id, updated_at)
        VALUES ($1, $2, $3::jsonb, $4, now())
        ON CONFLICT (name) DO UPDATE SET label = EXCLUDED.label, definition = EXCLUDED.definition,
            tenant_id = EXCLUDED.tenant_id, updated_at = now()
         WHERE (m.label, m.definition, m.tenant_id)
               IS DISTINCT FROM (EXCLUDED.label, EXCLUDED.definition, EXCLUDED.tenant_id)
        RETURNING m.name""",
}
