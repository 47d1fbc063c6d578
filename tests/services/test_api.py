"""The V2 API as real processes on real stores: what it answers, to whom, and what becomes of what it has accepted."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.store import api_keys
from synapse_worker.store.database import Database
from tests.page.support import printing
from tests.support.api import ApiProcess, StartApi
from tests.support.runs import eventually, said_done, store, until
from tests.support.workers import PRINT_IF_PRINT, StartWorker

RUN = "/orchestrations/hello/run"


@pytest.fixture
async def api(database: Database, redis_client: Redis, start_api: StartApi) -> ApiProcess:
    """An API without keys, and an orchestration `hello`."""
    await store(database, printing("hello"))
    return await asyncio.to_thread(start_api)


async def test_a_run_is_accepted_run_and_told(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    start_worker()
    async with api.client() as client:
        body = {"message": "you", "session_id": "s", "tenant_id": "acme", "initial_state": {"n": 1}}
        answer = await client.post(RUN, json=body)
        assert answer.status_code == 202, answer.text
        accepted = answer.json()
        run_id = accepted["run_id"]
        assert accepted["status"] == "queued"
        await until(database, run_id, "completed")
        status = (await client.get(accepted["status_url"].removeprefix("/api/v2"))).json()
        assert status["shared_state"] == {"user_input": "you", "n": 1, "said": "hello you"}
        assert (status["tenant_id"], status["session_id"]) == ("acme", "s")
        assert [entry["step_id"] for entry in status["step_history"]] == ["say"]
        await said_done(redis_client, run_id)
        events = (await client.get(f"/orchestrations/runs/{run_id}/events")).json()["events"]
        assert events[-1]["event"]["type"] == "done"
        some = {"start": events[1]["id"], "end": events[2]["id"]}
        between = (await client.get(f"/orchestrations/runs/{run_id}/events", params=some)).json()["events"]
        assert between == events[1:3]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"priority": False}, "priority: input should be a valid integer"),
        ({"priority": 10}, "priority: input should be less than or equal to 9"),
        ({"message": 1}, "message: input should be a valid string"),
        ({"tenant_id": ""}, "tenant_id: string should have at least 1 character"),
        ({"tenant_id": "a\x00"}, "tenant_id: it must be text without NUL and without lone surrogates"),
        ({"webhook_url": "ftp://x"}, "webhook_url: it must be an http or https URL"),
        ({"initial_state": [1]}, "initial_state: input should be a valid dictionary"),
    ],
)
async def test_a_bad_body_is_told_in_a_sentence(api: ApiProcess, body: dict[str, object], sentence: str) -> None:
    async with api.client() as client:
        answer = await client.post(RUN, json=body)
    assert (answer.status_code, answer.json()) == (422, {"detail": sentence})


async def test_what_is_not_json_or_not_there(api: ApiProcess) -> None:
    async with api.client() as client:
        answers = [
            await client.post(RUN, content=b"{", headers={"Content-Type": "application/json"}),
            await client.post(
                RUN, content=b'{"initial_state": {"n": NaN}}', headers={"Content-Type": "application/json"}
            ),
            await client.post(RUN, content=b"[" * 100_000, headers={"Content-Type": "application/json"}),
            await client.post(RUN, content=b" " * (9 * 1024 * 1024), headers={"Content-Type": "application/json"}),
            await client.post("/orchestrations/other/run", json={}),
            await client.get("/orchestrations/runs/run_0/status"),
            await client.get("/orchestrations/runs/run_0/stream"),
            await client.get("/nothing"),
        ]
    assert [answer.status_code for answer in answers] == [422, 422, 422, 413, 404, 404, 404, 404]
    assert all(isinstance(answer.json()["detail"], str) for answer in answers)


async def test_a_definition_is_known_at_once_and_a_removed_one_for_a_second_at_most(
    api: ApiProcess, database: Database
) -> None:
    async with api.client() as client:

        async def answers(status: int) -> bool:
            return (await client.post("/orchestrations/new/run", json={})).status_code == status

        assert await answers(404)
        await store(database, {**PRINT_IF_PRINT, "id": "new"})
        assert await answers(202)
        await database.execute("DELETE FROM orchestrations WHERE id = 'new'")
        await eventually("the orchestration is gone", lambda: answers(404), seconds=5)


async def test_keys(database: Database, redis_client: Redis, start_api: StartApi) -> None:
    await store(database, printing("hello"))
    _, any_tenant = await api_keys.create(database, name="all", tenant_id=None)
    acme_key, acme = await api_keys.create(database, name="acme", tenant_id="acme")
    api = await asyncio.to_thread(start_api, API_AUTH="keys")
    async with api.client() as nobody, api.client("syn_wrong") as wrong:
        for client in (nobody, wrong):
            refused = await client.post(RUN, json={})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
    async with api.client(any_tenant.get_secret_value()) as client:
        other = (await client.post(RUN, json={"tenant_id": "other"})).json()["run_id"]
    async with api.client(acme.get_secret_value()) as client:
        assert (await client.post(RUN, json={"tenant_id": "other"})).status_code == 403
        mine = (await client.post(RUN, json={})).json()["run_id"]
        assert (await client.get(f"/orchestrations/runs/{mine}/status")).json()["tenant_id"] == "acme"
        for path in ("status", "stream", "events"):
            assert (await client.get(f"/orchestrations/runs/{other}/{path}")).status_code == 404
        for path in ("cancel", "retry"):
            assert (await client.post(f"/orchestrations/runs/{other}/{path}")).status_code == 404
        assert (await client.get("/workers")).status_code == 403
        assert (await client.post("/sync")).status_code == 403
        assert await api_keys.revoke(database, acme_key.key_id) == 1

        async def is_refused() -> bool:
            return (await client.get("/agents")).status_code == 401

        await eventually("the revoked key is refused", is_refused)


async def test_cancel_of_a_waiting_run_and_its_end(database: Database, redis_client: Redis, api: ApiProcess) -> None:
    async with api.client() as client:
        run_id = (await client.post(RUN, json={})).json()["run_id"]
        cancelled = await client.post(f"/orchestrations/runs/{run_id}/cancel")
        assert cancelled.json() == {"run_id": run_id, "was": "queued", "status": "cancelled", "job_id": None}
        counted = 'synapse_runs_completed_total{status="cancelled",tenant_id="default"} 1.0'
        assert counted in (await client.get("/metrics")).text
        again = await client.post(f"/orchestrations/runs/{run_id}/cancel")
        assert again.status_code == 409
        answered = await client.post(f"/orchestrations/runs/{run_id}/resume", json={"response": "yes"})
        assert answered.status_code == 409
        retried = await client.post(f"/orchestrations/runs/{run_id}/retry")
        assert (retried.status_code, retried.json()["was"]) == (202, "cancelled")
    assert await redis_client.zscore(keys.queue("default"), retried.json()["job_id"]) is not None


async def test_the_document_and_its_page_need_nothing_from_elsewhere(api: ApiProcess) -> None:
    async with httpx2.AsyncClient(base_url=api.url) as client:
        document = (await client.get("/openapi.json")).json()
        page = (await client.get("/docs")).text
    assert "/api/v2/orchestrations/{orchestration_id}/run" in document["paths"]
    assert "POST /api/v2/orchestrations/{orchestration_id}/run" in page
    assert "http" not in page.replace("http or https", "")
    assert "<script" not in page
    assert json.dumps(document).count("HTTPValidationError") == 0
