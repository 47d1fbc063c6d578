"""Definitions in a real PostgreSQL: batches, notes on who wrote what, and what is taken back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

from synapse_worker import model_work
from synapse_worker.engine.model import Definition
from synapse_worker.engine.tools import ToolSecrets
from synapse_worker.engine.turns import Turns
from synapse_worker.store import definitions
from synapse_worker.store.claims import State
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import (
    AGENTS,
    MCP_SERVERS,
    MCP_TOKEN,
    ORCHESTRATIONS,
    SETTINGS,
    TOOLS,
    Document,
    Key,
)
from synapse_worker.surroundings import Surroundings

OWNER = "SynapseScale team-a/main"


def an_agent(key: str, prompt: str = "Help.", source: str = "a.yaml") -> Document:
    return Document(AGENTS, key, key, "", {"id": key, "system_prompt": prompt}, source)


def one_of_each() -> list[Document]:
    return [
        Document(ORCHESTRATIONS, "o", "O", "what it does", {"id": "o", "steps": []}, "o.yaml"),
        an_agent("a"),
        Document(TOOLS, "t", "t", "", {"id": "t"}, "t.yaml"),
        Document(MCP_SERVERS, "m", "M", "", {"name": "m"}, "m.yaml"),
        Document(SETTINGS, "model", "", "", "gpt", "s.yaml"),
    ]


async def sync(database: Database, *documents: Document, owner: str = OWNER) -> int:
    return await definitions.upsert(database, documents, tenant_id="default", owner=owner)


async def keys(database: Database, table: str, column: str) -> list[str]:
    rows = await database.fetch(f"SELECT {column} AS key FROM {table} ORDER BY 1")  # noqa: S608
    return [row["key"] for row in rows]


async def active(database: Database) -> list[str]:
    return [row["id"] for row in await database.fetch("SELECT id FROM orchestrations WHERE is_active ORDER BY 1")]


async def test_a_thousand_definitions_are_one_statement(database: Database) -> None:
    documents = [an_agent(f"agent-{number:04}") for number in range(1000)]
    assert await sync(database, *documents) == 1000
    versions = await database.fetch("SELECT DISTINCT xmin::text FROM agents")
    assert len(versions) == 1, "one statement is one transaction"
    assert await sync(database, *documents[:-1], an_agent("agent-0999", "Help more.")) == 1
    assert len(await database.fetch("SELECT DISTINCT xmin::text FROM agents")) == 2


async def test_batches_are_bounded_by_their_size(database: Database) -> None:
    large = "x" * (definitions.BATCH_CHARACTERS // 2)
    assert await sync(database, an_agent("a", large), an_agent("b", large), an_agent("c", large)) == 3
    assert len(await database.fetch("SELECT DISTINCT xmin::text FROM agents")) == 3


async def test_what_is_stored_of_each_kind(database: Database) -> None:
    assert await sync(database, *one_of_each()) == 5
    row = await database.fetchrow("SELECT name, description, is_active, tenant_id, created_at FROM orchestrations")
    assert row is not None
    assert tuple(row)[:4] == ("O", "what it does", True, "default")
    assert row["created_at"] is not None
    label = await database.fetchrow("SELECT label, definition::text AS text FROM mcp_servers")
    assert label is not None
    assert (label["label"], json.loads(label["text"])) == ("M", {"name": "m"})
    assert await definitions.stored_settings(database) == {"model": "gpt"}


async def test_what_is_unchanged_is_not_written(database: Database) -> None:
    await sync(database, *one_of_each())
    tables = ("orchestrations", "agents", "tools", "mcp_servers", "scale_settings", "synced_definitions")
    versions = " UNION ALL ".join(f"SELECT xmin::text AS version FROM {table}" for table in tables)  # noqa: S608
    before = await database.fetch(versions)
    assert await sync(database, *one_of_each()) == 0
    assert await database.fetch(versions) == before


async def test_the_notes_say_source_content_and_whether_the_row_is_there(database: Database) -> None:
    documents = one_of_each()
    await sync(database, *documents)
    notes = await definitions.synced_by(database, OWNER)
    assert set(notes) == {document.row for document in documents}
    assert all(note.there for note in notes.values())
    for document in documents:
        assert (notes[document.row].source, notes[document.row].hash) == (document.source, document.hash("default"))
        assert document.hash("default") != document.hash("other")
    await database.execute("UPDATE orchestrations SET is_active = false")
    await database.execute("DELETE FROM agents")
    notes = await definitions.synced_by(database, OWNER)
    assert {row for row, note in notes.items() if not note.there} == {Key(ORCHESTRATIONS, "o"), Key(AGENTS, "a")}
    assert await definitions.synced_by(database, "SynapseScale team-a/other") == {}


async def test_what_vanished_is_taken_back(database: Database) -> None:
    documents = one_of_each()
    await sync(database, *documents, an_agent("stays"))
    assert await definitions.retire(database, OWNER, [document.row for document in documents]) == 5
    assert await keys(database, "orchestrations", "id") == ["o"], "a run that goes on may still name it"
    assert await active(database) == []
    assert await keys(database, "agents", "id") == ["stays"]
    for table, column in (("tools", "id"), ("mcp_servers", "name"), ("scale_settings", "key")):
        assert await keys(database, table, column) == []
    assert set(await definitions.synced_by(database, OWNER)) == {Key(AGENTS, "stays")}
    assert await sync(database, *documents) == 5
    assert await active(database) == ["o"]


async def test_what_others_wrote_is_not_taken_back(database: Database) -> None:
    await database.execute(
        "INSERT INTO agents (id, name, definition, tenant_id, updated_at)"
        """ VALUES ('equal', 'equal', '{"id": "equal", "system_prompt": "Help."}', 'default', now())"""
    )
    await sync(database, an_agent("equal"), an_agent("edited"), an_agent("moved"))
    await database.execute(
        """UPDATE agents SET definition = '{"by": "hand"}', updated_at = now() WHERE id = 'edited'"""
    )
    await sync(database, an_agent("moved", source="b.yaml"))
    rows = [Key(AGENTS, "equal"), Key(AGENTS, "edited"), Key(AGENTS, "moved"), Key(AGENTS, "never-there")]
    assert await definitions.retire(database, OWNER, rows) == 1
    assert await keys(database, "agents", "id") == ["edited", "equal"]
    assert await definitions.synced_by(database, OWNER) == {}


async def test_what_another_owner_lists_stays_until_it_goes_there_too(database: Database) -> None:
    await sync(database, an_agent("shared"))
    await sync(database, an_agent("shared", "Help differently."), owner="SynapseScale team-b/main")
    assert await definitions.retire(database, OWNER, [Key(AGENTS, "shared")]) == 0
    assert await definitions.retire(database, "SynapseScale team-b/main", [Key(AGENTS, "shared")]) == 1
    assert await keys(database, "agents", "id") == []


async def test_text_that_jsonb_cannot_hold_is_stored_without_it(database: Database) -> None:
    await sync(database, Document(AGENTS, "a", "name \ud800", "", {"id": "a", "text": "zero \x00"}, "a.yaml"))
    row = await database.fetchrow("SELECT name, definition->>'text' AS text FROM agents")
    assert row is not None
    assert tuple(row) == ("name \ufffd", "zero \ufffd")


async def a_tool(database: Database, tenant: str, key: str, name: str) -> None:
    await definitions.upsert(database, [Document(TOOLS, key, name, "", {"id": key, "name": name})], tenant_id=tenant)


async def test_tools_are_those_of_the_tenants_that_a_run_reaches(database: Database) -> None:
    await definitions.upsert(database, [an_agent("ada")], tenant_id="acme")
    # An agent may have the id of another tenant's orchestration.
    await definitions.upsert(database, [Document(ORCHESTRATIONS, "ada", "O", "", {"id": "ada"})], tenant_id="other")
    for tenant in ("acme", "other", "shared"):
        await a_tool(database, tenant, f"{tenant}-1", "search")
        await a_tool(database, tenant, f"{tenant}-2", f"of-{tenant}")
        server = Document(MCP_SERVERS, f"mcp-{tenant}", "M", "", {"name": f"mcp-{tenant}"})
        await definitions.upsert(database, [server], tenant_id=tenant)
    read = definitions.Reached(database, "shared")
    assert {key: owner for key, (_, owner) in (await read.agents(["ada"])).items()} == {"ada": "acme"}
    assert {key: owner for key, (_, owner) in (await read.orchestrations(["ada"])).items()} == {"ada": "other"}
    # Another tenant's tool of the same name would come with that tenant's headers.
    named = await read.tools(["search", "other-2", "of-shared"], ["acme"], [])
    assert {key: owner for key, (_, owner) in named.items()} == {"acme-1": "acme", "shared-1": "", "shared-2": ""}
    assert sorted(await read.tools(["of-shared"], ["acme"], ["acme"])) == ["acme-1", "acme-2", "shared-2"]
    assert sorted(await read.tools(["search"], ["", "acme"], [""])) == ["acme-1", "shared-1", "shared-2"]
    assert sorted(await read.mcp_servers(["mcp-acme", "mcp-other", "mcp-shared"], ["acme"], [])) == [
        "mcp-acme",
        "mcp-shared",
    ]
    assert sorted(await read.mcp_servers([], ["acme"], ["acme"])) == ["mcp-acme"]


async def test_who_takes_the_name_of_a_tool_over_gives_no_secret_to_runs_that_keep_the_former_one(
    database: Database,
) -> None:
    def rows(tenant: str) -> list[Document]:
        url = f"http://{tenant}.example.com"
        return [
            Document(TOOLS, "search", "search", "", {"id": "search", "url": url, "headers": {"key": tenant}}),
            Document(MCP_SERVERS, "wiki", "W", "", {"name": "wiki", "url": url, "token": tenant}),
            Document(MCP_SERVERS, "mail", "M", "", {"name": "mail", "url": url}),
            Document(SETTINGS, f"{MCP_TOKEN}mail", "", "", tenant),
        ]

    async def persist(call: Callable[[], Awaitable[object]]) -> object:
        return await call()

    async def secrets_of(document: State) -> tuple[ToolSecrets, State]:
        work = await model_work.prepare(surroundings, Definition.parse(document), document)
        return work.given("acme", cast(Turns, None)).secrets, work.document

    settings = SimpleNamespace(default_tenant_id="default")
    parts = SimpleNamespace(database=database, settings=settings, persist=persist, models=None, blobs=None)
    surroundings = cast(Surroundings, parts)
    step = {"id": "s", "type": "agent", "agent_id": "ada"}
    orchestration: State = {"id": "o", "steps": [step]}
    agent = Document(AGENTS, "ada", "Ada", "", {"id": "ada", "tools": ["search", "wiki__find", "mail__send"]})
    theirs = [Document(ORCHESTRATIONS, "o", "O", "", orchestration), agent, *rows("acme")]
    await definitions.upsert(database, theirs, tenant_id="acme")
    begun, kept = await secrets_of(orchestration)
    assert {name: each["key"].get_secret_value() for name, each in begun.headers.items()} == {"search": "acme"}
    assert {name: each.get_secret_value() for name, each in begun.mcp_tokens.items()} == {
        "wiki": "acme",
        "mail": "acme",
    }
    await definitions.upsert(database, rows("other"), tenant_id="other")
    resumed, _ = await secrets_of(kept)
    assert (resumed.headers, resumed.mcp_tokens) == ({}, {})
