"""The served OpenAPI document, tried by schemathesis against the process that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.store import api_keys, migrate
from tests.page.support import printing
from tests.support.api import ApiProcess
from tests.support.runs import store
from tests.support.servers import PostgresServer, RedisServer

EXAMPLES = 12
"""Of each operation: well below a minute in all."""


class Served(ApiProcess):
    """An API process with a key to it."""

    key = ""


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, postgres_server: PostgresServer) -> Iterator[Served]:
    """An API with an orchestration `hello`."""
    url = postgres_server.new_database()

    async def prepare() -> str:
        database = open_database(SecretStr(url))
        await migrate.migrate(database)
        await store(database, printing("hello"))
        _, token = await api_keys.create(database, name="schema", tenant_id=None)
        await database.close()
        return token.get_secret_value()

    process = Served(redis_server.url, url, RATE_LIMIT_PER_TENANT_RPS="1000000", API_AUTH="keys")
    process.key = asyncio.run(prepare())
    process.start()
    process.wait_ready()
    yield process
    process.close()


@pytest.fixture(scope="module")
def document(served: Served) -> schemathesis.BaseSchema:
    """The document that it serves."""
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.exclude(path_regex="/stream$").parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case, served: Served) -> None:
    """No 5xx, every status and body as the document says, nothing accepted that it forbids, nobody without a key."""
    case.call_and_validate(headers={"Authorization": f"Bearer {served.key}"}, timeout=20)
