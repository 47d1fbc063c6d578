"""Vault files: what agents' tools and the command line do with them, in a folder and in a bucket."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.tools.toolbox import ToolFailed
from synapse_worker.engine.tools.vault import MOST_FILES, READ_BYTES, Vault, vault_read, vault_tools, vault_write
from synapse_worker.errors import StoreRefused
from synapse_worker.store import definitions
from synapse_worker.store.blobs import Blobs, chunks_of, vault_key
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from synapse_worker.store.local_blobs import LocalBlobs
from synapse_worker.store.s3_blobs import S3Blobs
from tests.support.model_server import model_server, script
from tests.support.runs import enqueue, store, until
from tests.support.s3 import Rights, S3Server
from tests.support.workers import StartWorker, chain, command

VISIT = "run_1:report:1"


async def use(
    blobs: Blobs, name: str, *, tenant: str = "acme", visit: str = VISIT, **arguments: JsonValue
) -> JsonValue:
    """Call a tool as a step's toolbox does; what the model is told of a failure is under `error`."""
    (tool,) = (tool for tool in vault_tools(Vault(blobs, tenant)) if tool.name == name)
    try:
        answer: JsonValue = json.loads(await tool.call(arguments, visit))
    except ToolFailed as error:
        return {"error": str(error)}
    return answer


async def test_what_one_step_writes_another_reads(blobs: Blobs) -> None:
    assert await use(blobs, "vault_write", path="reports/june.md", content="Grüße") == {
        "path": "reports/june.md",
        "size": 7,
    }
    assert await use(blobs, "vault_read", visit="run_2:other:1", path="reports/june.md") == {
        "path": "reports/june.md",
        "content": "Grüße",
        "next_offset": None,
    }
    listed = await use(blobs, "vault_list", folder="reports/")
    assert isinstance(listed, dict)
    assert isinstance(listed["files"], list)
    assert [entry["path"] for entry in listed["files"] if isinstance(entry, dict)] == ["reports/june.md"]
    assert listed["more"] is False


async def test_a_tenant_sees_its_own_files_only(blobs: Blobs) -> None:
    await use(blobs, "vault_write", path="secret", content="acme's")
    assert await use(blobs, "vault_list", tenant="other") == {"files": [], "more": False}
    for path in ("secret", "../acme/secret", "/vault/acme/secret", "..\\acme\\secret", "a/../../acme/secret"):
        answer = await use(blobs, "vault_read", tenant="other", path=path)
        assert isinstance(answer, dict)
        assert set(answer) == {"error"}
        answer = await use(blobs, "vault_write", tenant="../acme", path=path, content="overwritten")
        assert isinstance(answer, dict)
    assert await use(blobs, "vault_read", path="secret") == {
        "path": "secret",
        "content": "acme's",
        "next_offset": None,
    }


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("vault_read", {}, "the argument path is missing or not a text"),
        ("vault_read", {"path": 7}, "the argument path is missing or not a text"),
        ("vault_read", {"path": "none"}, "there is no file 'none'; vault_list shows those that there are"),
        ("vault_read", {"path": "a", "offset": -1}, "the argument offset is not a whole number from 0 on"),
        ("vault_write", {"path": "a"}, "the argument content is missing or not a text"),
        ("vault_write", {"path": "a", "content": "\ud800"}, "the content holds half a character"),
        ("vault_write", {"path": "x" * 300, "content": ""}, "is too long; accepted: a relative path"),
        ("vault_write", {"path": "a\0", "content": ""}, "holds a control character"),
        ("vault_list", {"folder": "../"}, "has a part of dots only"),
    ],
)
async def test_what_a_model_asks_for_wrongly_is_told_to_it(
    tmp_path: Path, tool: str, arguments: dict[str, JsonValue], sentence: str
) -> None:
    answer = await use(LocalBlobs(tmp_path), tool, **arguments)
    assert isinstance(answer, dict)
    assert sentence in str(answer["error"])


async def test_a_visit_that_is_done_again_writes_nothing_twice(blobs: Blobs) -> None:
    await use(blobs, "vault_write", path="notes", content="first")
    await use(blobs, "vault_write", visit="run_2:other:1", path="notes", content="another run's")
    await use(blobs, "vault_write", path="notes", content="first")  # the same visit, after a crash
    assert await vault_read(blobs, "acme", "notes") == {
        "path": "notes",
        "content": "another run's",
        "next_offset": None,
    }


async def test_a_visit_may_change_its_mind(blobs: Blobs) -> None:
    for content in ("a", "b", "a"):
        await vault_write(blobs, "acme", "notes", content, idempotency_key=VISIT)
        assert await vault_read(blobs, "acme", "notes") == {"path": "notes", "content": content, "next_offset": None}


async def test_a_long_text_is_read_in_parts_without_breaking_characters(blobs: Blobs) -> None:
    text = "aöü€𝄞" * (READ_BYTES // 5)
    await blobs.put(vault_key("acme", "long"), chunks_of(text.encode()))
    read, offset = "", 0
    for _ in range(10):
        part = await vault_read(blobs, "acme", "long", offset)
        assert isinstance(part, dict)
        read += str(part["content"])
        if part["next_offset"] is None:
            break
        assert isinstance(part["next_offset"], int)
        offset = part["next_offset"]
    assert read == text


async def test_what_is_no_text_is_not_read(blobs: Blobs) -> None:
    await blobs.put(vault_key("acme", "picture.png"), chunks_of(b"\x89PNG\r\n"))
    answer = await use(blobs, "vault_read", path="picture.png")
    assert answer == {"error": "'picture.png' is not UTF-8 text from byte 0 on; only text can be read"}


async def test_a_long_listing_says_that_there_is_more(tmp_path: Path) -> None:
    folder = tmp_path / "vault/acme"
    folder.mkdir(parents=True)
    for number in range(MOST_FILES + 1):
        (folder / str(number)).touch()
    answer = await use(LocalBlobs(tmp_path), "vault_list")
    assert isinstance(answer, dict)
    assert isinstance(answer["files"], list)
    assert (len(answer["files"]), answer["more"]) == (MOST_FILES, True)


async def test_a_store_that_refuses_is_no_answer_for_a_model(s3_server: S3Server) -> None:
    blobs = S3Blobs(s3_server.settings(s3_server.new_bucket(), Rights.READ))
    with pytest.raises(StoreRefused, match="s3:PutObject"):
        await use(blobs, "vault_write", path="a", content="b")
    await blobs.close()


async def test_schemas_name_every_argument(tmp_path: Path) -> None:
    tools = vault_tools(Vault(LocalBlobs(tmp_path), "acme"))
    assert [tool.name for tool in tools] == ["vault_list", "vault_read", "vault_write"]
    assert [tool.schema["required"] for tool in tools] == [[], ["path"], ["path", "content"]]
    assert all(tool.schema["additionalProperties"] is False and tool.description for tool in tools)


async def test_the_commands_share_files_through_the_bucket(
    postgres_url: str, database: Database, s3_server: S3Server, tmp_path: Path
) -> None:
    bucket = s3_server.new_bucket()

    def vault(*words: str) -> tuple[int, str, str]:
        done = command("redis://unused:1", postgres_url, "vault", *words, **s3_server.environment(bucket))
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "in.bin").write_bytes(bytes(range(256)))
    assert vault("ls")[:2] == (0, "no files\n")
    assert vault("put", "a/in.bin", str(tmp_path / "in.bin"))[:2] == (0, "a/in.bin: 256 bytes written\n")
    assert s3_server.keys(bucket) == ["synapse/vault/default/a/in.bin"]
    assert vault("get", "a/in.bin", str(tmp_path / "out.bin"))[0] == 0
    assert (tmp_path / "out.bin").read_bytes() == bytes(range(256))
    (listed,) = json.loads(vault("ls", "a", "-o", "json")[1])
    assert (listed["path"], listed["size"]) == ("a/in.bin", 256)
    assert vault("ls", "--tenant", "acme")[1] == "no files\n"
    code, _, said = vault("get", "nothing", str(tmp_path / "never"))
    assert (code, said) == (
        1,
        "synapse-worker: there is no vault file 'nothing'; `synapse-worker vault ls` shows them\n",
    )
    assert not (tmp_path / "never").exists()
    code, _, said = vault("put", "../x", str(tmp_path / "in.bin"))
    assert code == 1
    assert "has a part of dots only" in said


def test_only_one_of_the_keys_ends_a_command(postgres_url: str) -> None:
    done = command("redis://unused:1", postgres_url, "vault", "ls", S3_BUCKET="b" * 5, S3_ACCESS_KEY_ID="AKIA")
    assert done.returncode == 1
    assert "S3_ACCESS_KEY_ID is set and S3_SECRET_ACCESS_KEY is not; accepted: both, or neither" in done.stderr


async def test_agents_on_two_workers_share_a_file_through_s3(
    database: Database,
    redis_client: Redis,
    s3_server: S3Server,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    """What an agent writes on one worker, an agent on another reads; neither has the other's disk."""
    bucket = s3_server.new_bucket()
    writes = script({"call": "vault_write", "args": {"path": "plan.md", "content": "# Plan"}}, {"say": "written"})
    reads = script({"call": "vault_read", "args": {"path": "plan.md"}}, {"say": "$last"})
    agent = {"id": "a", "name": "Ada", "system_prompt": "", "tools": ["vault_read", "vault_write"]}
    await definitions.upsert(database, [Document(definitions.AGENTS, "a", "Ada", "", agent)], tenant_id="default")
    for name, prompt in (("writes", writes), ("reads", reads)):
        step = {"id": "s", "type": "agent", "agent_id": "a", "prompt_template": prompt, "output_key": "out"}
        await store(database, chain(name, [step]))
    with model_server() as models:
        rows = [Document(definitions.SETTINGS, key, "", "", value) for key, value in models.settings().items()]
        await definitions.upsert(database, rows, tenant_id="default")
        for name in ("writes", "reads"):
            variables = {**s3_server.environment(bucket), "SYNAPSE_DATA_DIR": str(tmp_path / name)}
            worker = start_worker(**variables).wait_ready()
            run_id = await enqueue(database, redis_client, name)
            done = await until(database, run_id, "completed", "failed")
            assert done.status == "completed", done.error
            worker.signal(signal.SIGTERM)
            assert worker.wait() == 0
    assert json.loads(str(done.state["out"]))["content"] == "# Plan"
    assert "synapse/vault/default/plan.md" in s3_server.keys(bucket)
