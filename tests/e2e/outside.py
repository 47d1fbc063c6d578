"""`make chaos-cluster`, sixth part: runs and chats in pods with a model, tools and a bucket that are outside.

One server speaks OpenAI's and Anthropic's protocol, another one MCP, a third one S3, with its rights checked.
They run on this machine, and pods reach them at its end of the link to the node. Kept out of `make test` by its name.
Each test prints one line of figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
import pytest
from redis.asyncio import Redis

from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.kube import Object, a_scale, apply, kubectl
from tests.support.mcp_server import Tools, mcp_server
from tests.support.model_server import ModelServer, call, model_server, script
from tests.support.outside import address_for_pods
from tests.support.runs import events_of, said_done
from tests.support.s3 import REGION, S3Server
from tests.support.workers import chain

CLAUDE = "claude-haiku-5-5"
REPORT = "reports/june.md"
TEXT = "Grüße aus dem ersten Pod\n"


@dataclass(frozen=True, slots=True)
class Outside:
    """The scale with what is outside of the cluster."""

    place: Place
    models: ModelServer
    tools: Tools
    s3: S3Server
    bucket: str


@pytest.fixture(scope="module")
def outside(place: Place) -> Iterator[Outside]:
    """The shared scale with two workers, its API, a bucket, and the three servers; as it was before afterwards."""
    host = address_for_pods(place.redis_address)
    s3 = S3Server(host)
    s3.start()
    try:
        with model_server(host=host) as models, mcp_server(host=host) as tools:
            found = Outside(place, models, tools, s3, s3.new_bucket())
            apply(credentials(s3), scale(found), namespace=place.namespace)
            place.settled()
            yield found
    finally:
        s3.remove()
        apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=place.namespace)
        place.settled()


def credentials(s3: S3Server) -> Object:
    user = s3.user()
    keys = {"accessKeyId": user.access_key_id, "secretAccessKey": user.secret_access_key}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bucket"}, "stringData": keys}


def scale(outside: Outside) -> Object:
    env = [{"name": "ANTHROPIC_BASE_URL", "value": outside.models.url}]
    found = a_scale(SCALE, replicas=2, drainTimeoutSeconds=60, template={"env": env})
    s3 = {
        "bucket": outside.bucket,
        "region": REGION,
        "endpointUrl": outside.s3.url,
        "credentialsSecretRef": {"name": "bucket"},
    }
    found["spec"] |= {"storage": {"s3": s3}, "api": {"enabled": True, "replicas": 1}}
    return found


@pytest.fixture
async def defined(outside: Outside, cluster_database: Database) -> Outside:
    """Agents of both protocols with MCP tools and vault files, and the settings that lead to the servers."""
    agents: list[Object] = [
        {"id": name, "name": name, "system_prompt": "You are careful.", "model": model, "tools": tools}
        for name, model, tools in (
            ("openai", "scripted", ["demo__weather", "demo__fail"]),
            ("anthropic", CLAUDE, ["demo__weather", "demo__fail"]),
            ("clerk", "scripted", ["vault_read", "vault_write", "vault_list"]),
        )
    ]
    settings = outside.models.settings(**{"mcp_token.demo": "the-mcp-token"})
    server = {"name": "demo", "server_type": "remote", "url": outside.tools.url}
    await runs.store_settings(cluster_database, settings)
    await definitions.upsert(
        cluster_database,
        [
            *(Document(definitions.AGENTS, agent["id"], agent["name"], "", agent) for agent in agents),
            Document(definitions.MCP_SERVERS, "demo", "demo", "", server),
        ],
        tenant_id="default",
    )
    return outside


def agent_step(agent: str, prompt: str) -> Object:
    """An orchestration of one agent step."""
    step = {"id": "s", "type": "agent", "agent_id": agent, "prompt_template": prompt, "output_key": "out"}
    return chain(f"by-{agent}", [step])


USES_BOTH_TOOLS = script(call("demo__weather", city="Oslo"), call("demo__fail", reason="no luck"), {"say": "so: $last"})


@pytest.mark.timeout(400)
async def test_an_agent_step_by_either_protocol_with_tools_of_an_mcp_server(
    defined: Outside, cluster_database: Database, cluster_redis: Redis
) -> None:
    for agent, path in (("openai", "/chat/completions"), ("anthropic", "/messages")):
        asked, called = len(defined.models.asked), len(defined.tools.calls)
        await runs.store(cluster_database, agent_step(agent, USES_BOTH_TOOLS))
        run_id = await runs.enqueue(cluster_database, cluster_redis, f"by-{agent}")
        done = await runs.until(cluster_database, run_id, "completed", "failed")
        assert done.status == "completed", done.error
        events = await said_done(cluster_redis, run_id)
        results = [(event["preview"], event["failed"]) for event in events if event["type"] == "tool_result"]
        requests = defined.models.asked[asked:]
        assert results[0] == ("3 degrees in Oslo", False)
        assert results[1][1] is True
        assert "no luck" in str(done.state["out"])
        assert all(request.path.endswith(path) for request in requests)
        assert defined.tools.calls[called:] == [("weather", {"city": "Oslo"}), ("fail", {"reason": "no luck"})]
        print(
            f"\nan agent step in pod {done.worker_id} by {path}: {len(requests)} requests to the model,"
            f" {len(results)} tool calls, one of them refused",
            flush=True,
        )
    assert defined.tools.tokens == {"Bearer the-mcp-token"}


@pytest.mark.timeout(400)
async def test_turns_of_a_chat_through_the_api(
    defined: Outside, cluster_redis: Redis, cluster_database: Database
) -> None:
    key = defined.place.command("keys", "create", "chats").strip()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=defined.place.api_url(), headers=headers, timeout=30) as client:
        for agent in ("openai", "anthropic"):
            message = {"message": "The weather? " + USES_BOTH_TOOLS, "agent_id": agent, "session_id": f"chat-{agent}"}
            answer = await client.post("/chat", json=message)
            assert answer.status_code == 202, answer.text
            job_id = answer.json()["job_id"]
            assert await runs.outcome(cluster_database, job_id, seconds=60) == "completed"
            status = (await client.get(f"/chat/chat-{agent}/status")).json()
            stored = (await client.get(f"/chat/chat-{agent}/events")).json()["events"]
            told = [entry["event"]["type"] for entry in stored]
            assert status["messages"][-1]["role"] == "assistant"
            assert "no luck" in status["messages"][-1]["content"]
            assert told.count("tool_result") == 2
            assert told[-2:] == ["final", "done"]
            print(f"\na turn with agent {agent} through the API: {len(told)} events, {told}", flush=True)


@pytest.mark.timeout(400)
async def test_a_vault_file_that_one_pod_wrote_is_read_in_another(
    defined: Outside, cluster_database: Database, cluster_redis: Redis
) -> None:
    writes = script(call("vault_write", path=REPORT, content=TEXT), {"say": "$last"})
    writer = await clerk(cluster_database, cluster_redis, writes)
    # Its disk goes with it, so what another one reads came from the bucket.
    kubectl("delete", "pod", writer[0], "-n", defined.place.namespace, "--force", "--grace-period=0")
    reads = script(call("vault_read", path=REPORT), {"say": "$last"})
    reader = await clerk(cluster_database, cluster_redis, reads)
    listed = defined.place.command("vault", "ls")
    fetched = defined.place.command("vault", "get", REPORT)
    print(
        f"\na vault file written in pod {writer[0]}, which was deleted by force, and read in pod {reader[0]};"
        f" `vault ls` in a pod says {' '.join(listed.split()[3:5])}, `vault get` brings {len(fetched.encode())} bytes",
        flush=True,
    )
    assert reader[0] != writer[0]
    assert json.loads(reader[1]) == {"path": REPORT, "content": TEXT, "next_offset": None}
    assert REPORT in listed
    assert fetched == TEXT
    assert f"synapse/vault/default/{REPORT}" in defined.s3.keys(defined.bucket)


async def clerk(database: Database, client: Redis, prompt: str) -> tuple[str, str]:
    """Run an agent step that works with files; returns the pod that ran it and what it said."""
    await runs.store(database, agent_step("clerk", prompt))
    run_id = await runs.enqueue(database, client, "by-clerk")
    done = await runs.until(database, run_id, "completed", "failed")
    assert done.status == "completed", (done.error, await events_of(client, run_id))
    return str(done.worker_id), str(done.state["out"])
