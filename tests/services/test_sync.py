"""A sync against a real PostgreSQL: what it stores, what it leaves alone, and what it takes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import AGENTS, Document
from synapse_worker.sync.documents import Problem, Source
from synapse_worker.sync.store import SyncReport, sync
from tests.support.servers import RedisServer
from tests.support.workers import command

OWNER = "SynapseScale team-a/main"
BAD_STEPS = "id: bad\nsteps:\n- {id: s, type: print, print_content: x, next_step_id: nowhere}\n"


def an_orchestration(key: str, content: str = "hello") -> str:
    return f"id: {key}\nsteps:\n- {{id: say, type: print, print_content: {content}}}\n"


def config_map(name: str, **data: str) -> list[Source]:
    return [
        Source(f"ConfigMap {name}", f"{key}.yaml", text, takes_secrets=False, shown=True) for key, text in data.items()
    ]


def secret(name: str, **data: str) -> list[Source]:
    return [
        Source(f"Secret {name}", f"{key}.yaml", text, takes_secrets=True, shown=False) for key, text in data.items()
    ]


async def synced(database: Database, *sources: Source, everything: bool = False) -> SyncReport:
    return await sync(database, sources, tenant_id="default", owner=OWNER, everything=everything)


async def active(database: Database) -> list[str]:
    return [row["id"] for row in await database.fetch("SELECT id FROM orchestrations WHERE is_active ORDER BY 1")]


async def test_definitions_tokens_and_keys_of_several_sources(database: Database) -> None:
    report = await synced(
        database,
        *config_map("team", a=an_orchestration("a") + "---\n" + an_orchestration("b"), b="id: w\nsystem_prompt: x\n"),
        *secret("keys", settings="openai_key: sk\nmodel: gpt\n", crm="name: crm\nserver_type: remote\ntoken: t\n"),
    )
    assert report.problems == ()
    assert report.counts == {"orchestrations": 2, "agents": 1, "settings": 2, "mcp_servers": 1}
    assert (report.total_synced, report.changed) == (6, 7)
    assert await active(database) == ["a", "b"]
    assert await definitions.stored_settings(database) == {"openai_key": "sk", "model": "gpt", "mcp_token.crm": "t"}
    row = await database.fetchrow("SELECT definition::text AS text FROM mcp_servers")
    assert row is not None
    assert json.loads(row["text"]) == {"name": "crm", "server_type": "remote"}


async def test_only_what_changed_is_written(database: Database) -> None:
    first = config_map("team", a=an_orchestration("a"), b=an_orchestration("b"))
    assert (await synced(database, *first)).changed == 2
    versions = "SELECT xmin::text FROM orchestrations UNION ALL SELECT xmin::text FROM synced_definitions"
    before = await database.fetch(versions)
    again = await synced(database, *first)
    assert (again.total_synced, again.changed, again.retired) == (2, 0, 0)
    assert await database.fetch(versions) == before
    edited = await synced(database, *config_map("team", a=an_orchestration("a"), b=an_orchestration("b", "changed")))
    assert (edited.total_synced, edited.changed) == (2, 1)


async def test_what_somebody_else_wrote_stays_until_the_source_changes_or_all_is_synced(database: Database) -> None:
    sources = config_map("team", a="id: w\nsystem_prompt: x\n")
    await synced(database, *sources)
    await database.execute("UPDATE agents SET name = 'by hand', updated_at = now()")
    assert (await synced(database, *sources)).changed == 0
    assert (await synced(database, *sources, everything=True)).changed == 1
    assert (await synced(database, *sources, everything=True)).changed == 0


async def test_what_was_deleted_is_written_again(database: Database) -> None:
    sources = config_map("team", a="id: w\nsystem_prompt: x\n", b=an_orchestration("b"))
    await synced(database, *sources)
    await database.execute("DELETE FROM agents")
    await database.execute("UPDATE orchestrations SET is_active = false")
    assert (await synced(database, *sources)).changed == 2
    assert await active(database) == ["b"]


async def test_what_vanished_is_taken_back_and_what_was_there_before_is_not(database: Database) -> None:
    await definitions.upsert(database, [Document(AGENTS, "theirs", "theirs", "", {})], tenant_id="default")
    await synced(
        database,
        *config_map("team", a=an_orchestration("a"), b="id: w\nsystem_prompt: x\n"),
        *secret("keys", s="openai_key: sk\n", crm="name: crm\nserver_type: remote\ntoken: t\n"),
    )
    report = await synced(database, *config_map("team", a=an_orchestration("c")), *secret("keys", crm=""))
    assert (report.total_synced, report.changed, report.retired) == (1, 1, 5)
    assert await active(database) == ["c"]
    assert [row["id"] for row in await database.fetch("SELECT id FROM agents")] == ["theirs"]
    assert await definitions.stored_settings(database) == {}
    assert (await synced(database)).retired == 1
    assert await active(database) == []


async def test_a_definition_that_moves_to_another_source_stays(database: Database) -> None:
    await synced(database, *config_map("one", a=an_orchestration("a")))
    report = await synced(database, *config_map("two", a=an_orchestration("a")))
    assert (report.total_synced, report.changed, report.retired) == (1, 0, 0)
    assert (await synced(database, *config_map("two", a=""))).retired == 1


async def test_a_source_that_cannot_be_read_takes_nothing_back(database: Database) -> None:
    await synced(
        database, *config_map("team", a=an_orchestration("a"), b=an_orchestration("b")), *secret("keys", s="model: m\n")
    )
    report = await synced(database, *config_map("team", a="id: [\n", b=""), *secret("keys", s="model: m\n"))
    assert [(each.name, each.key) for each in report.problems] == [("ConfigMap team", "a.yaml")]
    assert (report.retired, await active(database)) == (1, ["a"])
    unread = [Problem("ConfigMap team", "", None, "It does not exist.")]
    gone = await sync(database, secret("keys", s=""), tenant_id="default", owner=OWNER, unread=unread)
    assert (gone.retired, await active(database)) == (1, ["a"])
    assert gone.problems == tuple(unread)


async def test_what_cannot_run_is_refused_and_the_last_good_one_stays(database: Database) -> None:
    tool = 'name: t\ntool_type: python\ncode: |\n  print(_args["x"])\n'
    await synced(database, *config_map("team", a=an_orchestration("bad"), t=tool))
    report = await synced(
        database,
        *config_map(
            "team",
            a=an_orchestration("good") + "---\n" + BAD_STEPS,
            t=tool.replace("print", "import requests\n  print"),
        ),
    )
    assert [f"{each.name}/{each.key}:{each.line}" for each in report.problems] == [
        "ConfigMap team/a.yaml:5",
        "ConfigMap team/t.yaml:1",
    ]
    assert "nowhere" in report.problems[0].sentence
    assert "Tool 't': the code cannot run." in report.problems[1].sentence
    assert (report.total_synced, report.changed, report.retired) == (1, 1, 0)
    assert await active(database) == ["bad", "good"]
    assert (await database.fetch("SELECT definition->>'code' AS code FROM tools"))[0]["code"] == 'print(_args["x"])\n'


async def test_the_words_of_a_secret_are_not_shown(database: Database) -> None:
    report = await synced(database, *secret("keys", a=BAD_STEPS.replace("nowhere", "hidden-word")))
    (problem,) = report.problems
    assert "hidden-word" not in str(problem)
    assert str(problem).startswith("Secret keys/a.yaml:1: 'bad' cannot run as it is written")


async def test_the_first_of_two_equal_ids_counts(database: Database) -> None:
    report = await synced(
        database, *config_map("team", a=an_orchestration("x", "first"), b="\n" + an_orchestration("x", "second"))
    )
    assert [str(each) for each in report.problems] == [
        "ConfigMap team/b.yaml:2: orchestrations 'x' was read from ConfigMap team/a.yaml:1 already; ids are unique."
    ]
    assert report.total_synced == 1
    row = await database.fetchrow("SELECT definition::text AS text FROM orchestrations")
    assert row is not None
    assert "first" in row["text"]


async def test_a_thousand_definitions_with_code(database: Database) -> None:
    text = "---\n".join(
        f"id: o{number}\nsteps:\n- {{id: t, type: transform, transform_code: 'result = {number}'}}\n"
        for number in range(1000)
    )
    report = await synced(database, *config_map("team", a=text))
    assert (report.total_synced, report.changed, report.problems) == (1000, 1000, ())
    assert len(await database.fetch("SELECT DISTINCT xmin::text FROM orchestrations")) == 1
    assert (await synced(database, *config_map("team", a=text))).changed == 0


# ---- the command line


def write_main_instance(folder: Path, **files: object) -> None:
    """The files of a main instance's folder."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


@pytest.fixture
def main_instance(tmp_path: Path) -> Path:
    write_main_instance(
        tmp_path,
        orchestrations=[{"id": "o", "name": "O", "steps": [{"id": "s", "type": "end"}]}],
        user_agents=[{"id": "a", "name": "A"}],
        custom_tools=[{"name": "t", "tool_type": "http", "url": "https://example.com"}],
        mcp_servers=[{"name": "m", "server_type": "remote", "url": "https://example.com", "token": "tok"}],
        settings={"openai_key": "sk", "model": "gpt", "bedrock_api_key": "not ours", "theme": "dark"},
    )
    return tmp_path


def run(redis_server: RedisServer, postgres_url: str, folder: Path, *options: str) -> Mapping[str, object]:
    done = command(redis_server.url, postgres_url, "sync", str(folder), *options, "-o", "json")
    report: Mapping[str, object] = json.loads(done.stdout)
    return report


async def test_a_main_instances_folder(
    database: Database, redis_server: RedisServer, postgres_url: str, main_instance: Path
) -> None:
    report = run(redis_server, postgres_url, main_instance)
    assert report["errors"] == []
    assert report["counts"] == {"orchestrations": 1, "agents": 1, "tools": 1, "mcp_servers": 1, "settings": 2}
    assert (report["total_synced"], report["changed"]) == (6, 7)
    assert await definitions.stored_settings(database) == {"openai_key": "sk", "model": "gpt", "mcp_token.m": "tok"}
    assert run(redis_server, postgres_url, main_instance)["changed"] == 0


async def test_only_prune_takes_back_what_a_folder_no_longer_holds(
    database: Database, redis_server: RedisServer, postgres_url: str, main_instance: Path
) -> None:
    assert run(redis_server, postgres_url, main_instance, "--prune")["changed"] == 7
    write_main_instance(main_instance, user_agents=[], settings={"model": "gpt"})
    kept = run(redis_server, postgres_url, main_instance)
    assert (kept["total_synced"], kept["retired"]) == (4, 0)
    pruned = run(redis_server, postgres_url, main_instance, "--prune")
    assert (pruned["total_synced"], pruned["changed"], pruned["retired"]) == (4, 0, 2)
    assert await database.fetch("SELECT id FROM agents") == []
    assert await definitions.stored_settings(database) == {"model": "gpt", "mcp_token.m": "tok"}


def test_a_folder_is_shown_with_the_words_of_its_files(
    redis_server: RedisServer, postgres_url: str, tmp_path: Path
) -> None:
    assert command(redis_server.url, postgres_url, "migrate").returncode == 0
    (tmp_path / "a.yaml").write_text("\n" + BAD_STEPS, encoding="utf-8")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "notes.txt").write_text("not read", encoding="utf-8")
    done = command(redis_server.url, postgres_url, "sync", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == "synced 0 (nothing), 0 changed\n"
    first, second = done.stderr.splitlines()
    assert first.startswith(
        "refused: a.yaml:2: Orchestration 'bad' (bad) has step 's' (s) whose next_step_id is 'nowhere'"
    )
    assert second == "refused: b.yaml: It is not text (UTF-8)."
