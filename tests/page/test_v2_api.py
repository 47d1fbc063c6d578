"""What the page says of V2 API calls, scale mode on and off, limits, tenants, Prometheus: asked of real processes."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from redis.asyncio import Redis

from synapse_worker.routing import ONE_QUEUE
from synapse_worker.settings import load
from synapse_worker.store import tenants, topology
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import ManagedRow
from tests.page.conftest import StartHere
from tests.page.support import Q, completed, printing, store_setting
from tests.support.api import ApiProcess, StartApi
from tests.support.runs import store
from tests.support.workers import environment

RUN = "/orchestrations/hello/run"


@pytest.fixture
async def greeted(database: Database, redis_client: Redis) -> None:
    """An orchestration `hello` in an empty installation."""
    await store(database, printing("hello"))


async def ask(api: ApiProcess, count: int, body: dict[str, object]) -> Counter[int]:
    """Ask for runs, all at once; returns how often each status came."""
    async with api.client() as client:
        answers = await asyncio.gather(*(client.post(RUN, json=body) for _ in range(count)))
    return Counter(answer.status_code for answer in answers)


@pytest.mark.usefixtures("greeted")
async def test_enabled_calls_are_queued_and_answered_immediately(
    database: Database, redis_client: Redis, start_api: StartApi, start_here: StartHere
) -> None:
    """Enable Scale Mode: V2 API calls route jobs through the queue; 202 Accepted immediately with a run_id."""
    await topology.write(database, None, ONE_QUEUE, enabled=True, owner_uid="scale")
    api = await asyncio.to_thread(start_api)
    async with api.client() as client:
        answer = await client.post(RUN, json={"message": "you"})
    assert answer.status_code == 202
    run_id = answer.json()["run_id"]
    assert await redis_client.zscore(Q, run_id) is not None
    await start_here()
    (view,) = await completed(database, [run_id])
    assert view.state["said"] == "hello you"


@pytest.mark.usefixtures("greeted")
async def test_disabled_calls_block_until_the_run_completes(database: Database, start_api: StartApi) -> None:
    """When disabled: inline synchronous execution, V2 behaves like V1, blocking until the run completes."""
    await topology.write(database, None, ONE_QUEUE, enabled=False, owner_uid="scale")
    api = await asyncio.to_thread(start_api)
    async with api.client() as client:
        answer = await client.post(RUN, json={"message": "you"})
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["shared_state"]["said"]) == ("completed", "hello you")


@pytest.mark.usefixtures("greeted")
async def test_beyond_the_global_depth_submissions_are_503(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    """Max global queue depth: queued plus active jobs across all tenants; exceeded: 503 Service Unavailable."""
    api = await asyncio.to_thread(start_api, MAX_GLOBAL_QUEUE_DEPTH="5")
    assert await ask(api, 4, {}) == {202: 4}
    assert await ask(api, 4, {"tenant_id": "other"}) == {202: 1, 503: 3}
    assert await redis_client.zcard(Q) == 5


@pytest.mark.usefixtures("greeted")
async def test_requests_above_the_rate_are_429(start_api: StartApi) -> None:
    """Rate limit per tenant: max. API requests per second, per tenant, for V2 endpoints; above it 429; no starving."""
    api = await asyncio.to_thread(start_api, RATE_LIMIT_PER_TENANT_RPS="1")
    busy = await ask(api, 30, {"tenant_id": "busy"})
    assert set(busy) == {202, 429}
    assert (await ask(api, 1, {"tenant_id": "other"}))[202] == 1


@pytest.mark.parametrize(
    ("name", "field", "default"),
    [("MAX_GLOBAL_QUEUE_DEPTH", "max_queue_depth", 1_000_000), ("RATE_LIMIT_PER_TENANT_RPS", "rate_limit", 1000)],
)
def test_defaults_of_the_limits(name: str, field: str, default: int) -> None:
    """Max global queue depth: default 1,000,000. Rate limit per tenant: default 1,000 req/s."""
    needed = environment("redis://h", "postgresql://h/d")
    assert getattr(load(needed), field) == default
    assert getattr(load({**needed, name: "7"}), field) == 7


@pytest.mark.usefixtures("greeted")
async def test_limits_saved_in_the_ui_hold_where_no_variable_is_set(database: Database, start_api: StartApi) -> None:
    """All scale settings are managed in the UI; environment variables take precedence over what is stored."""
    await store_setting(database, "max_queue_depth", 1)
    saved, given = await asyncio.gather(
        asyncio.to_thread(start_api), asyncio.to_thread(start_api, MAX_GLOBAL_QUEUE_DEPTH="3")
    )
    assert await ask(saved, 2, {}) == {202: 1, 503: 1}
    assert await ask(given, 3, {}) == {202: 2, 503: 1}


@pytest.mark.usefixtures("greeted")
async def test_submissions_above_a_tenants_queue_are_429(database: Database, start_api: StartApi) -> None:
    """max_queued_runs: submissions above this return 429; a tenant that is not created uses the global defaults."""
    row = ManagedRow("acme", "uid", "Acme", max_concurrent_runs=1, max_queued_runs=2, priority=0)
    await tenants.bring_to(database, [row], living=["uid"], exclusive=True)
    api = await asyncio.to_thread(start_api)
    assert await ask(api, 5, {"tenant_id": "acme"}) == {202: 2, 429: 3}
    assert await ask(api, 5, {"tenant_id": "not created"}) == {202: 5}


@pytest.mark.usefixtures("greeted")
@pytest.mark.parametrize(("variable", "tenant"), [("", "default"), ("acme", "acme")])
async def test_a_request_without_a_tenant_id_has_the_default(
    database: Database, start_api: StartApi, variable: str, tenant: str
) -> None:
    """DEFAULT_TENANT_ID: tenant ID assigned to API requests that do not supply a tenant_id field."""
    api = await asyncio.to_thread(start_api, DEFAULT_TENANT_ID=variable)
    assert await ask(api, 1, {}) == {202: 1}
    (row,) = await database.fetch("SELECT tenant_id FROM orchestration_runs")
    assert row["tenant_id"] == tenant


@pytest.mark.usefixtures("greeted")
async def test_prometheus_scrapes_with_the_metrics_token(start_api: StartApi) -> None:
    """Metrics token: bearer token for GET /api/v2/metrics; blank: unauthenticated access."""
    guarded, open_ = await asyncio.gather(
        asyncio.to_thread(start_api, METRICS_TOKEN="your-metrics-token"), asyncio.to_thread(start_api)
    )
    await ask(guarded, 2, {})
    async with guarded.client("your-metrics-token") as prometheus, guarded.client() as nobody, open_.client() as any_:
        text = (await prometheus.get("/metrics")).text
        assert (await nobody.get("/metrics")).status_code == 401
        assert (await any_.get("/metrics")).status_code == 200
    assert 'synapse_runs_enqueued_total{orch_id="hello",tenant_id="default"} 2.0' in text
    assert 'synapse_queue_depth{queue_name="synapse:orchestrations:default"} 2.0' in text
