"""The V2 API for whoever runs the installation: workers, queues, tenants, dead letters, sync, metrics; and chats."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.queueing.payload import decode
from synapse_worker.store import api_keys, definitions, topology, workers
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from tests.page.support import printing
from tests.support.api import ApiProcess, StartApi, following
from tests.support.runs import eventually, store, until
from tests.support.workers import StartWorker, command

FAILING: dict[str, object] = {
    "id": "failing",
    "name": "Failing",
    "steps": [{"id": "t", "type": "transform", "transform_code": "result = 1 / 0", "output_key": "x"}],
}


@pytest.fixture
async def api(database: Database, redis_client: Redis, start_api: StartApi) -> ApiProcess:
    """An API with keys, orchestrations `hello` and `failing`, an agent `helper`, and a tenant `acme`."""
    await store(database, printing("hello"), FAILING)
    helper = Document("agents", "helper", "Helper", "", {"id": "helper", "description": "helps"})
    await definitions.upsert(database, [helper], tenant_id="default")
    await database.execute("INSERT INTO tenants (tenant_id, name, max_queued_runs) VALUES ('acme', 'Acme', 7)")
    return await asyncio.to_thread(start_api, API_AUTH="keys")


@pytest.fixture
async def key(database: Database) -> str:
    """A key for any tenant."""
    return (await api_keys.create(database, name="ops", tenant_id=None))[1].get_secret_value()


@pytest.fixture
async def acme_key(database: Database) -> str:
    """A key of the tenant `acme`."""
    return (await api_keys.create(database, name="acme", tenant_id="acme"))[1].get_secret_value()


async def test_listings(
    database: Database, redis_client: Redis, api: ApiProcess, key: str, acme_key: str, start_worker: StartWorker
) -> None:
    async with api.client(key) as client, api.client(acme_key) as acme:
        for number in range(3):
            await client.post("/orchestrations/hello/run", json={"tenant_id": "acme" if number else "other"})
        stats = (await client.get("/queue/stats")).json()
        assert (stats["queued"], stats["active"], stats["max_depth"]) == (3, 0, 1_000_000)
        assert [(queue["name"], queue["queued"]) for queue in stats["queues"]] == [("default", 3)]
        await database.execute("INSERT INTO tenants (tenant_id) VALUES ('other')")
        rows = (await client.get("/tenants")).json()
        assert [(row["tenant_id"], row["name"], row["max_queued_runs"], row["queued"]) for row in rows] == [
            ("acme", "Acme", 7, 2),
            ("other", None, None, 1),
        ]
        assert [row["tenant_id"] for row in (await acme.get("/tenants")).json()] == ["acme"]
        await asyncio.to_thread(start_worker().wait_ready)
        (worker,) = (await client.get("/workers")).json()
        assert (worker["status"], worker["queues"], worker["max_jobs"]) == ("online", ["default"], 10)
        assert [each["id"] for each in (await acme.get("/orchestrations")).json()] == ["failing", "hello"]
        whole = (await acme.get("/orchestrations/hello")).json()
        assert whole["definition"]["steps"][0]["id"] == "say"
        assert (await acme.get("/agents/helper")).json()["description"] == "helps"
        await definitions.upsert(
            database, [Document("orchestrations", "theirs", "Theirs", "", printing("theirs"))], tenant_id="other"
        )
        assert (await client.get("/orchestrations/theirs")).status_code == 200
        assert (await acme.get("/orchestrations/theirs")).status_code == 404
        assert (await acme.post("/orchestrations/theirs/run", json={})).status_code == 404


async def test_dead_letters(
    database: Database, redis_client: Redis, api: ApiProcess, key: str, acme_key: str, start_worker: StartWorker
) -> None:
    start_worker()
    async with api.client(key) as client, api.client(acme_key) as acme:
        body = {"tenant_id": "other", "webhook_url": "http://127.0.0.1:9/hook", "webhook_secret": "hush"}
        theirs = (await client.post("/orchestrations/failing/run", json=body)).json()["run_id"]
        ours = (await acme.post("/orchestrations/failing/run", json={})).json()["run_id"]
        for run_id in (theirs, ours):
            await until(database, run_id, "failed")
        listed = await client.get("/dlq")
        assert {letter["run_id"] for letter in listed.json()} == {theirs, ours}
        assert "hush" not in listed.text
        (mine,) = (await acme.get("/dlq")).json()
        assert (mine["run_id"], mine["function"]) == (ours, "run_orchestration_job")
        (other,) = [letter for letter in listed.json() if letter["run_id"] == theirs]
        assert (await acme.post(f"/dlq/{other['id']}/discard")).status_code == 404
        retried = await acme.post(f"/dlq/{mine['id']}/retry")
        assert (retried.status_code, retried.json()["run_id"]) == (202, ours)
        assert (await acme.post(f"/dlq/{mine['id']}/retry")).status_code == 409
        assert (await client.post(f"/dlq/{other['id']}/discard")).status_code == 200
        assert (await client.post("/dlq/nothing/discard")).status_code == 404


async def test_sync_now(database: Database, redis_client: Redis, start_api: StartApi, tmp_path: Path) -> None:
    (tmp_path / "orchestrations.json").write_text(json.dumps([printing("a"), {"id": "bad", "steps": [{"id": "x"}]}]))
    api = await asyncio.to_thread(start_api, SYNAPSE_DEFINITIONS_DIR=str(tmp_path))
    bundle = {"synapse_export": True, "orchestrations": [printing("b")], "agents": [{"id": "h", "system_prompt": "x"}]}
    async with api.client() as client:
        folder = (await client.post("/sync")).json()
        assert (folder["total_synced"], folder["counts"]) == (1, {"orchestrations": 1})
        (error,) = folder["errors"]
        assert error.startswith("orchestrations.json:1: ")
        assert folder["synced_at"]
        body = (await client.post("/sync", json=bundle)).json()
        assert (body["total_synced"], body["counts"], body["errors"]) == (2, {"orchestrations": 1, "agents": 1}, [])
        assert {each["id"] for each in (await client.get("/orchestrations")).json()} == {"a", "b"}
        nothing = (await client.post("/sync", content=b"\xff")).json()
        assert nothing["errors"] == ["body.json: It is not text (UTF-8)."]


async def test_metrics_want_their_token(database: Database, redis_client: Redis, start_api: StartApi) -> None:
    await store(database, printing("hello"))
    api = await asyncio.to_thread(start_api, METRICS_TOKEN="m-token", API_AUTH="keys")
    async with api.client() as nobody, api.client("m-token") as prometheus:
        assert (await nobody.get("/metrics")).status_code == 401
        assert (await nobody.get("/metrics", headers={"Authorization": "Bearer other"})).status_code == 401
        assert (await prometheus.get("/agents")).status_code == 401  # it is no API key
        text = (await prometheus.get("/metrics")).text
    assert 'synapse_api_refusals_total{reason="unauthenticated"} 1.0' in text
    assert "synapse_active_workers 0.0" in text


async def test_the_process_says_by_which_epoch_it_routes(
    database: Database, redis_client: Redis, api: ApiProcess
) -> None:
    (row,) = await database.fetch("SELECT role, topology_epoch, status FROM workers")
    assert tuple(row) == ("api", 0, "online")
    assert await workers.count_online(database) == 0
    assert await topology.producers_behind(database, 1) != []
    await asyncio.to_thread(stop, api)
    assert await topology.producers_behind(database, 1) == []


def stop(api: ApiProcess) -> None:
    """Stop it as Kubernetes does."""
    api.signal(15)
    assert api.wait() == 0, api.log


async def test_a_chat_turn_is_put_into_the_queue_as_the_wire_says(
    database: Database, redis_client: Redis, api: ApiProcess, key: str, acme_key: str
) -> None:
    async with api.client(key) as client, api.client(acme_key) as acme:
        body = {"message": "hello", "agent_id": "helper", "images": ["data:,x"], "session_id": "s 1"}
        answer = await acme.post("/chat", json=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 202, answer.text
        turn = answer.json()
        assert turn["status_url"] == "/api/v2/chat/s%201/status"
        again = await acme.post("/chat", json=body, headers={"Idempotency-Key": "k"})
        assert again.json() == turn
        raw = await redis_client.get(keys.job(turn["job_id"]))
        payload = decode(raw or b"")
        assert payload.function == "run_agent_chat_job"
        assert payload.arguments == {
            "session_id": "s 1",
            "agent_id": "helper",
            "message": "hello",
            "images": ["data:,x"],
            "webhook_url": None,
            "webhook_secret": None,
            "tenant_id": "acme",
        }
        assert await redis_client.zscore(keys.queue("default"), turn["job_id"]) is not None
        status = (await client.get("/chat/s 1/status")).json()
        assert (status["status"], status["tenant_id"], status["agent_id"]) == ("queued", "acme", "helper")
        stream = keys.chat_events("s 1")
        await redis_client.xadd(stream, {"data": json.dumps({"type": "final", "response": "hi"})})
        await redis_client.xadd(stream, {"data": json.dumps({"type": "done"})})
        await database.execute("UPDATE chat_sessions SET status = 'completed'")
        async with following(acme, "/chat/s 1/stream") as messages:
            got = [message.event["type"] async for message in messages if message.event]
        assert got == ["final", "done"]
        assert len((await acme.get("/chat/s 1/events")).json()["events"]) == 2
        assert (await acme.post("/chat/s 1/cancel")).status_code == 409
        await acme.post("/chat", json=body)
        assert (await acme.post("/chat/s 1/cancel")).json()["status"] == "cancelling"
        assert await redis_client.get(keys.cancel_chat("s 1")) == b"1"
        assert (await client.post("/chat", json={**body, "tenant_id": "other"})).status_code == 409
        assert (await acme.post("/chat", json={**body, "agent_id": "nobody"})).status_code == 404
        await database.execute("UPDATE chat_sessions SET tenant_id = 'other'")
        for path in ("status", "stream", "events"):
            assert (await acme.get(f"/chat/s 1/{path}")).status_code == 404


async def test_keys_on_the_command_line(
    database: Database, redis_client: Redis, api: ApiProcess, postgres_url: str
) -> None:
    def keys_command(*words: str) -> str:
        done = command("redis://127.0.0.1:1", postgres_url, "keys", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    token = (await asyncio.to_thread(keys_command, "create", "ci", "--tenant", "acme")).strip()
    async with api.client(token) as client:
        assert (await client.get("/agents")).status_code == 200
        listed = json.loads(await asyncio.to_thread(keys_command, "list", "-o", "json"))
        assert [(each["name"], each["tenant_id"]) for each in listed] == [("ci", "acme")]
        assert token not in json.dumps(listed)
        await asyncio.to_thread(keys_command, "revoke", listed[0]["id"])

        async def is_refused() -> bool:
            return (await client.get("/agents")).status_code == 401

        await eventually("the key is refused", is_refused)
    refused = await asyncio.to_thread(command, "redis://127.0.0.1:1", postgres_url, "keys", "revoke", "nothing")
    assert refused.returncode == 1
    assert "there is no key 'nothing'" in refused.stderr
