"""One worker process with stores and a model server of its own for all tests of fields, started once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr

from synapse_worker.connections import open_database, open_redis
from synapse_worker.store import definitions
from synapse_worker.store.definitions import Document
from tests.services.fields.bench import AGENT, TOOL, Bench
from tests.support.endpoint import Endpoint
from tests.support.mcp_server import Tools, mcp_server
from tests.support.model_server import ModelServer, model_server
from tests.support.servers import PostgresServer, RedisServer
from tests.support.workers import WorkerProcess


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the worker is."""

    redis_url: str
    postgres_url: str
    server: ModelServer


@pytest.fixture(scope="session")
def stage(postgres_server: PostgresServer, migrated_database: str) -> Iterator[Stage]:
    """The worker; its Redis is no other test's, whose jobs it would take."""
    redis = RedisServer()
    redis.start()
    postgres_url = postgres_server.new_database(like=migrated_database)
    with model_server() as server:
        asyncio.run(_settle(postgres_url, server))
        worker = WorkerProcess(redis.url, postgres_url, K8S_MODE="1", ANTHROPIC_BASE_URL=server.url)
        try:
            worker.start().wait_ready()
            yield Stage(redis.url, postgres_url, server)
        finally:
            worker.close()
            redis.remove()


async def _settle(postgres_url: str, server: ModelServer) -> None:
    """Store what every test may use."""
    rows = [Document(definitions.SETTINGS, key, "", "", value) for key, value in server.settings().items()]
    tool = {
        "id": TOOL,
        "name": TOOL,
        "tool_type": "python",
        "description": "Doubles a number",
        "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
        "code": "print(json.dumps({'doubled': _args['n'] * 2}))",
    }
    agent = {"id": AGENT, "name": "Helper", "system_prompt": "You help.", "tools": []}
    rows += [
        Document(definitions.TOOLS, TOOL, TOOL, "", tool),
        Document(definitions.AGENTS, AGENT, "Helper", "", agent),
    ]
    database = open_database(SecretStr(postgres_url))
    await definitions.upsert(database, rows, tenant_id="default")
    await database.close()


@pytest.fixture
async def bench(stage: Stage) -> AsyncIterator[Bench]:
    """What the test does in that worker."""
    database, client = open_database(SecretStr(stage.postgres_url)), open_redis(SecretStr(stage.redis_url))
    opened = Bench(database, client, stage.server)
    yield opened
    await opened.close()
    await client.aclose()
    await database.close()


@pytest.fixture
def site() -> Iterator[Endpoint]:
    """What tools over HTTP call."""
    opened = Endpoint()
    yield opened
    opened.close()


@pytest.fixture
def mcp_tools() -> Iterator[Tools]:
    """What tools of an MCP server call."""
    with mcp_server() as running:
        yield running
