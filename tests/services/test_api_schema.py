"""The served OpenAPI document, tried by schemathesis against the process that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import hypothesis
import pytest
import schemathesis
from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.store import migrate
from tests.page.support import printing
from tests.support.api import ApiProcess
from tests.support.runs import store
from tests.support.servers import PostgresServer, RedisServer

EXAMPLES = 12
"""Of each operation: well below a minute in all."""


@pytest.fixture(scope="module")
def served(redis_server: RedisServer, postgres_server: PostgresServer) -> Iterator[ApiProcess]:
    """An API without keys, with an orchestration `hello`."""
    url = postgres_server.new_database()

    async def prepare() -> None:
        database = open_database(SecretStr(url))
        await migrate.migrate(database)
        await store(database, printing("hello"))
        await database.close()

    asyncio.run(prepare())
    process = ApiProcess(redis_server.url, url, RATE_LIMIT_PER_TENANT_RPS="1000000")
    process.start()
    yield process.wait_ready()
    process.close()


@pytest.fixture(scope="module")
def document(served: ApiProcess) -> schemathesis.BaseSchema:
    """The document that it serves."""
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.exclude(path_regex="/stream$").parametrize()
@hypothesis.settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case) -> None:
    """No 5xx, every status and body as the document says, nothing accepted that it forbids."""
    case.call_and_validate(timeout=20)
