"""The page's sections Postgres sync, Postgres URL and Sync Now. Its PgBouncer mode is in test_pgbouncer_mode.py.

Auto-sync on change, with and without it, is shown with the operator in tests/controlplane/test_sync.py.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database
from synapse_worker.errors import StoreUnavailable
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import stored_settings
from tests.page.conftest import StartHere
from tests.page.support import TlsPostgresServer, enqueue, printing, until
from tests.support.runs import store
from tests.support.servers import PostgresServer, RedisServer
from tests.support.workers import command

BUNDLE: dict[str, object] = {
    "synapse_export": True,
    "version": 1,
    "orchestrations": [printing("greet"), printing("part")],
    "agents": [{"id": "helper", "name": "Helper", "type": "conversational", "system_prompt": "Help."}],
    "custom_tools": [{"id": "weather", "name": "weather", "type": "http", "url": "https://example.com/{city}"}],
    "mcp_servers": [{"name": "files", "label": "Files", "server_type": "remote", "url": "https://example.com/mcp"}],
}
TABLES = {"orchestrations": "id", "agents": "id", "tools": "id", "mcp_servers": "name"}
"""The corresponding Postgres tables, and the column of each that holds the definition's id."""


async def sync(redis: RedisServer, postgres_url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `synapse-worker sync` on a folder."""
    return await asyncio.to_thread(command, redis.url, postgres_url, "sync", str(folder), "-o", "json")


def write(folder: Path, name: str, document: Mapping[str, object]) -> None:
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


# ---- where definitions come from


async def test_workers_do_not_read_from_local_files(
    database: Database, redis_client: Redis, start_here: StartHere, tmp_path: Path
) -> None:
    """Workers do not read from local JSON files: definitions must be synced before workers can access them."""
    write(tmp_path, "greet.json", printing("greet"))
    await start_here(SYNAPSE_DEFINITIONS_DIR=str(tmp_path))
    failed = await until(database, await enqueue(database, redis_client, "greet"), "completed", "failed")
    assert failed.error == "orchestration 'greet' does not exist; sync it, then enqueue the run again"
    await store(database, printing("greet"))
    assert (await until(database, await enqueue(database, redis_client, "greet"), "completed")).state["said"]


async def test_a_running_worker_meets_a_new_definition_on_its_next_job(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Definitions are read at the start of each job: a worker that already runs picks up new ones on its next job."""
    await store(database, printing("greet", "old"))
    worker = await (await start_here()).ready()
    before = await until(database, await enqueue(database, redis_client, "greet"), "completed")
    await store(database, printing("greet", "new"), printing("born-later", "here"))
    after = await until(database, await enqueue(database, redis_client, "greet"), "completed")
    born_later = await until(database, await enqueue(database, redis_client, "born-later"), "completed")
    assert [run.state["said"] for run in (before, after, born_later)] == ["old", "new", "here"]
    assert {run.worker_id for run in (before, after, born_later)} == {worker.settings.worker_id}


# ---- Postgres URL


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_the_url_is_normalised(database: Database, postgres_url: str, scheme: str) -> None:
    """Standard: postgresql://user:password@host:5432/dbname; +asyncpg need not be in the URL (but may be)."""
    location = postgres_url.partition("://")[2].replace("synapse@", "synapse:a%20password@")
    opened = open_database(SecretStr(f"{scheme}://{location}"))
    row = await opened.fetchrow('SELECT current_database() AS name, current_user AS "user"')
    await opened.close()
    assert row is not None
    assert tuple(row) == (postgres_url.rsplit("/", 1)[1], "synapse")


async def test_ssl_required(tls_postgres: TlsPostgresServer) -> None:
    """SSL required: postgresql://user:password@host:5432/dbname?sslmode=require."""
    opened = open_database(SecretStr(f"{tls_postgres.url()}?sslmode=require"))
    row = await opened.fetchrow("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    await opened.close()
    assert row is not None
    assert row["ssl"]


async def test_ssl_required_is_not_given_up(postgres_url: str) -> None:
    """SSL required: a server without it is refused, nothing is sent in the clear."""
    opened = open_database(SecretStr(f"{postgres_url}?sslmode=require"))
    with pytest.raises(StoreUnavailable, match="SSL"):
        await opened.ping()
    await opened.close()


async def test_a_run_over_ssl(redis_client: Redis, tls_postgres: TlsPostgresServer, start_here: StartHere) -> None:
    """SSL required: workers run jobs with such a URL, and create the tables of a new database."""
    url = f"{tls_postgres.new_database()}?sslmode=require"
    await (await start_here(postgres=url)).ready()
    opened = open_database(SecretStr(url))
    await store(opened, printing("greet"))
    await until(opened, await enqueue(opened, redis_client, "greet"), "completed")
    await opened.close()


async def test_other_tables_are_left_alone(
    redis_client: Redis, postgres_server: PostgresServer, start_here: StartHere
) -> None:
    """This database is separate from any application database: where it is not, other tables are left alone."""
    url = postgres_server.new_database()
    opened = open_database(SecretStr(url))
    await opened.execute("CREATE TABLE customers (id int PRIMARY KEY)")
    await opened.execute("INSERT INTO customers VALUES (1)")
    await (await start_here(postgres=url)).ready()
    assert await opened.fetch("SELECT id FROM customers") == [(1,)]
    await opened.close()


# ---- Sync Now


async def test_sync_upserts_by_id_and_reports_a_total(
    database: Database, redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    """Upserts all records into the corresponding tables by definition id; reports total_synced and any errors."""
    write(tmp_path, "bundle.json", BUNDLE)
    first = json.loads((await sync(redis_server, postgres_url, tmp_path)).stdout)
    assert (first["total_synced"], first["errors"]) == (5, [])
    assert first["counts"] == {"orchestrations": 2, "agents": 1, "tools": 1, "mcp_servers": 1}

    write(tmp_path, "bundle.json", {**BUNDLE, "orchestrations": [printing("greet", "changed"), printing("part")]})
    second = json.loads((await sync(redis_server, postgres_url, tmp_path)).stdout)
    assert (second["total_synced"], second["changed"], second["errors"]) == (5, 1, [])

    found = {
        table: [row["key"] for row in await database.fetch(f"SELECT {key} AS key FROM {table} ORDER BY 1")]  # noqa: S608
        for table, key in TABLES.items()
    }
    assert found == {
        "orchestrations": ["greet", "part"],
        "agents": ["helper"],
        "tools": ["weather"],
        "mcp_servers": ["files"],
    }
    row = await database.fetchrow("SELECT definition::text AS text FROM orchestrations WHERE id = 'greet'")
    assert row is not None
    assert json.loads(row["text"])["steps"][0]["print_content"] == "changed"


async def test_sync_reads_a_main_instances_files_and_its_keys(
    database: Database, redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    """Reads the configurations from the local JSON files of the main instance, LLM API keys and secret settings too."""
    for name, content in (
        ("orchestrations", [printing("greet")]),
        ("user_agents", [{"id": "helper", "name": "Helper"}]),
        ("custom_tools", [{"name": "weather", "tool_type": "http", "url": "https://example.com/{city}"}]),
        ("mcp_servers", [{"name": "files", "server_type": "remote", "url": "https://example.com/mcp", "token": "t"}]),
        ("settings", {"anthropic_key": "sk", "s3_secret_access_key": "s", "model": "gpt", "theme": "dark"}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    report = json.loads((await sync(redis_server, postgres_url, tmp_path)).stdout)
    assert (report["total_synced"], report["errors"]) == (7, [])
    assert await stored_settings(database) == {
        "anthropic_key": "sk",
        "s3_secret_access_key": "s",
        "model": "gpt",
        "mcp_token.files": "t",
    }
    row = await database.fetchrow("SELECT definition ? 'token' AS there FROM mcp_servers")
    assert row is not None
    assert not row["there"]


async def test_sync_reports_any_errors_encountered(
    database: Database, redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    """Reports a total_synced count and any errors encountered: what is wrong keeps nothing else from being synced."""
    write(tmp_path, "a.json", printing("good"))
    write(tmp_path, "b.json", {"id": "bad", "steps": [{"id": "s", "type": "print", "next_step_id": "nowhere"}]})
    (tmp_path / "c.json").write_text("{", encoding="utf-8")
    done = await sync(redis_server, postgres_url, tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert report["total_synced"] == 1
    assert [error.split(":")[0] for error in report["errors"]] == ["b.json", "c.json"]
    assert [row["id"] for row in await database.fetch("SELECT id FROM orchestrations")] == ["good"]
