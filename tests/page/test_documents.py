"""What README.md and docs/ tell a user to type is true: snippets run, and every name they use exists."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.api.reasons import Reason
from synapse_operator.api.scale import SynapseScale, read_scale
from synapse_operator.api.tenant import SynapseTenant, read_tenant
from synapse_operator.telemetry import Metrics as OperatorMetrics
from synapse_worker.cli import cli
from synapse_worker.connections import open_database, open_redis, ping_redis
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from synapse_worker.telemetry import ApiMetrics
from synapse_worker.telemetry import Metrics as WorkerMetrics
from tests.builders import a_scale_body
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, printing
from tests.support.runs import store
from tests.support.servers import PostgresServer, RedisServer

README = Path("README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(str(path) for path in sorted(Path("docs").glob("*.md")))]
OPERATIONS = Path("docs/operations.md").read_text(encoding="utf-8")

NOTHING_TO_DO = {
    Reason.WORKERS_READY,
    Reason.SETTLED,
    Reason.NOTHING_TO_DO,
    Reason.REACHABLE,
    Reason.NOT_TRIED,
    Reason.NO_EVICTION,
    Reason.EXCLUSIVE,
    Reason.APPLIED,
    Reason.SYNCED,
    Reason.NO_SOURCES,
    Reason.TENANT_STORED,
    Reason.NOT_PAUSED,
    Reason.BUCKET_CONFIGURED,
    Reason.SINGLE_WORKER,
    Reason.API_SERVES,
    Reason.API_OFF,
}
"""Reasons that ask nothing of the reader."""


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


async def test_the_producer_of_the_readme(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_here: StartHere
) -> None:
    """README, Jobs: a program with stock arq."""
    (program,) = blocks(README, "python")
    await store(database, printing("support-triage", "{state.user_input} {state.product}"))
    await start_here()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**os.environ, "REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    run_id, result = done.stdout.split()
    assert result == "completed"
    (view,) = await completed(database, [run_id])
    assert view.state["said"] == "Checkout is down Shop"


def test_the_first_scale_of_the_readme_and_its_tenant() -> None:
    """README, A first SynapseScale."""
    first, second = (yaml.safe_load(text) for text in blocks(README, "yaml"))
    scale = read_scale(a_scale_body(spec=first["spec"], **first["metadata"]))
    assert isinstance(scale, SynapseScale), scale
    tenant = read_tenant({**second, "metadata": {**second["metadata"], "uid": "u"}})
    assert isinstance(tenant, SynapseTenant), tenant
    assert tenant.spec.scale_ref.name == scale.metadata.name
    for document, kind in ((first, "SynapseScale"), (second, "SynapseTenant")):
        assert (document["apiVersion"], document["kind"]) == ("scale.synapseorch.com/v1alpha1", kind)


def test_every_reason_has_a_line_in_the_readme() -> None:
    """README, Troubleshooting: each reason is there with what to do, and there is no other."""
    table = README[README.index("## Troubleshooting") : README.index("## What there is")]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    named = {word for line in rows for word in re.findall(r"`([A-Z][A-Za-z]+)`", line.split(" | ")[0])}
    assert named == {str(reason) for reason in Reason if reason not in NOTHING_TO_DO}


def test_every_command_exists() -> None:
    """README: make targets and commands of the local cluster."""
    makefile = Path("Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z0-9-]+)", README)) <= targets
    used = set(re.findall(r"python3 -m localcluster ([a-z-]+)", README))
    shown = subprocess.run([sys.executable, "-m", "localcluster", "--help"], capture_output=True, text=True, check=True)
    assert used
    assert used <= set(re.findall(r"^    ([a-z-]+)", shown.stdout, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_worker_exists(page: str) -> None:
    """`synapse-worker ...`, with its subcommand and options; prose alone may name a group as a whole."""
    text = Path(page).read_text(encoding="utf-8")
    for words in re.findall(r"\bsynapse-worker ([a-z][^`|&\n]*)", text):
        first, *rest = re.findall(r"[^\s()\[\]]+", words.partition(" #")[0])
        command = cli.commands.get(first)
        assert command is not None, first
        if isinstance(command, click.Group) and f"`synapse-worker {first}`" != f"`synapse-worker {words}`":
            assert rest, words
            command = command.commands.get(rest[0])
            assert command is not None, words
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in rest if re.fullmatch(r"--?[a-z-]+", word)} <= known, words


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Links between the pages and into the tree."""
    text = Path(page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        found = Path(page).parent / path if path else Path(page)
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}


def series(registry: CollectorRegistry) -> set[str]:
    """The names of a registry's series, without those of the process."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
        if not family.name.startswith("process_")
    }


def test_every_series_is_documented() -> None:
    """docs/metrics.md lists all series of worker, API and operator, and no other."""
    text = Path("docs/metrics.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| (synapse_\w+) \|", text, re.MULTILINE))
    exposed = (WorkerMetrics().registry, ApiMetrics().registry, OperatorMetrics().registry)
    assert listed == set().union(*map(series, exposed))


async def ask(client: Redis, line: str) -> object:
    """Send a line as redis-cli would."""
    answer: object = await client.execute_command(*line.split())  # type: ignore[no-untyped-call]
    return answer


async def test_the_rights_of_the_redis_user_suffice(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_here: StartHere
) -> None:
    """docs/operations.md, Rights in Redis: a worker with that user completes a run and is told the eviction policy."""
    (command,) = re.findall(r"^ACL SETUSER .*", OPERATIONS, re.MULTILINE)
    await ask(redis_client, command)
    await ask(redis_client, "ACL LOG RESET")
    client = open_redis(SecretStr(f"redis://synapse:password@127.0.0.1:{redis_server.port}/0"))
    try:
        await store(database, printing("hello"))
        await (await start_here(redis_url=f"redis://synapse:password@127.0.0.1:{redis_server.port}/0")).ready()
        await completed(database, [await enqueue(database, client, "hello")])
        assert (await ping_redis(client)).maxmemory_policy == "noeviction"
        assert await ask(redis_client, "ACL LOG") == []
    finally:
        await client.aclose()
        await ask(redis_client, "ACL DELUSER synapse")


async def test_the_rights_of_the_postgres_role_suffice(
    redis_client: Redis, postgres_server: PostgresServer, start_here: StartHere
) -> None:
    """docs/operations.md, Rights in PostgreSQL: a worker without DDL rights completes a run after a migration."""
    url = postgres_server.new_database()
    opened = open_database(SecretStr(url))
    await migrate.migrate(opened)
    (grants,) = blocks(OPERATIONS, "sql")
    async with opened.transaction() as transaction:
        await transaction.execute("CREATE ROLE synapse_worker LOGIN")
        await transaction.execute(grants)
    worker = await (await start_here(postgres=url.replace("synapse@", "synapse_worker@"))).ready()
    await store(opened, printing("hello"))
    (view,) = await completed(opened, [await enqueue(opened, redis_client, "hello")])
    assert view.worker_id == worker.settings.worker_id
    await opened.close()
