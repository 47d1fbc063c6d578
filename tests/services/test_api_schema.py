"""The served OpenAPI document, tried by schemathesis against the process that serves it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import hypothesis
import hypothesis.errors
import pytest
import schemathesis
from pydantic import SecretStr
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import negative_data_rejection

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


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_answers_are_as_documented(served: Served, mode: GenerationMode) -> None:
    """No 5xx, every status and body as the document says, nothing accepted that it forbids, nobody without a key."""
    document = schemathesis.openapi.from_url(f"{served.url}/openapi.json").exclude(path_regex="/stream$")
    problems: list[str] = []
    tried = 0
    for found in document.get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        def ask(case: schemathesis.Case) -> None:
            # Query parameters that nobody knows are ignored, and a sync tells in its answer what it refuses.
            lenient = case.method == "GET" or case.path.endswith("/sync")
            case.call_and_validate(
                headers={"Authorization": f"Bearer {served.key}"},
                timeout=20,
                excluded_checks=[negative_data_rejection] if lenient else [],
            )

        try:
            ask()
            tried += 1
        except hypothesis.errors.Unsatisfiable:
            continue  # what takes nothing cannot be asked wrongly
        except (Exception, FailureGroup) as error:
            problems.append(f"{operation.label}: {error}")
    assert not problems, "\n\n".join(problems)
    assert tried >= 15
