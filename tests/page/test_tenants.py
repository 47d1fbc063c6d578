"""The page's section Tenants: what a tenant is, and isolation on and off."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from synapse_operator.desired.shards import shards_of, wanted_topology
from synapse_worker.contract import TENANT_POOL
from synapse_worker.queueing import keys
from synapse_worker.store import tenants, topology
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import ManagedRow
from tests.builders import a_scale, an_observed
from tests.page.conftest import StartHere
from tests.page.support import Q, completed, enqueue, enqueue_stock, eventually, printing, until
from tests.support.runs import store
from tests.support.servers import RedisServer


@pytest.fixture
async def greeted(database: Database, redis_client: Redis) -> None:
    """An orchestration `hello` in an empty installation."""
    await store(database, printing("hello"))


@pytest.mark.usefixtures("greeted")
async def test_a_tenant_is_any_string(database: Database, redis_server: RedisServer, start_here: StartHere) -> None:
    """A tenant is any string you pass as tenant_id: customer, team, environment, user, any arbitrary grouping."""
    tenants = ["customer-acme-corp", "team-marketing", "staging", "user-abc123", "Größe: $(X) {b} / 'q'"]
    for number, tenant in enumerate(tenants):
        await enqueue_stock(redis_server.port, f"run_00000000000{number}_1", "hello", tenant_id=tenant)
    await start_here()
    views = await completed(database, [f"run_00000000000{number}_1" for number in range(len(tenants))])
    assert [view.tenant_id for view in views] == tenants


@pytest.mark.usefixtures("greeted")
@pytest.mark.parametrize(("variable", "tenant"), [("", "default"), ("acme", "acme")])
async def test_no_tenant_id_means_the_default(
    database: Database, redis_server: RedisServer, start_here: StartHere, variable: str, tenant: str
) -> None:
    """If no tenant_id is provided, the request uses the value of DEFAULT_TENANT_ID (default: "default")."""
    await enqueue_stock(redis_server.port, "run_000000000000_1", "hello")
    await start_here(DEFAULT_TENANT_ID=variable)
    assert (await until(database, "run_000000000000_1", "completed")).tenant_id == tenant


@pytest.mark.usefixtures("greeted")
async def test_without_isolation_jobs_are_processed_in_fifo_order(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Tenant isolation disabled (default): all tenants share the same queue, jobs are processed in FIFO order."""
    run_ids = []
    for tenant in ("a", "b", "a", "c", "b"):
        run_ids.append(await enqueue(database, redis_client, "hello", tenant=tenant))
        score = await redis_client.zscore(Q, run_ids[-1])
        assert score is not None

        async def later(score: float = score) -> bool:
            """Scores are whole milliseconds; two jobs within one would have no order."""
            seconds, micros = await redis_client.time()
            return bool(seconds * 1000 + micros // 1000 > score)

        await eventually("the next millisecond comes", later)
    await start_here(WORKER_CONCURRENCY="1")
    views = await completed(database, run_ids)
    assert sorted(views, key=lambda view: str(view.started_at)) == views
    assert [view.tenant_id for view in views] == ["a", "b", "a", "c", "b"]


@pytest.mark.usefixtures("greeted")
async def test_an_added_tenant_runs_as_many_as_it_may(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Adding a tenant: tenant_id, name, max_concurrent_runs (max. simultaneously-running jobs for this tenant)."""
    row = ManagedRow("acme", "uid", "Acme", max_concurrent_runs=0, max_queued_runs=10, priority=0)
    await tenants.bring_to(database, [row], living=["uid"], exclusive=True)
    await start_here()
    held = await enqueue(database, redis_client, "hello", tenant="acme")
    await completed(database, [await enqueue(database, redis_client, "hello", tenant="not added")])
    await eventually("it waits for its tenant", lambda: _is_parked(redis_client, held))
    await until(database, held, "queued")
    await tenants.bring_to(database, [replace(row, max_concurrent_runs=1)], living=["uid"], exclusive=True)
    await completed(database, [held])


async def _is_parked(redis_client: Redis, job_id: str) -> bool:
    return await redis_client.zscore(keys.parked_of(Q, "acme"), job_id) is not None


@pytest.mark.usefixtures("greeted")
async def test_with_isolation_a_backlogged_tenant_delays_nobody(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """Enabled: a Redis queue shard for each tenant; a backlogged tenant cannot delay jobs from other tenants."""
    scale = a_scale(spec={"tenancy": {"isolation": True}})
    await topology.write(database, None, wanted_topology(scale), enabled=True, owner_uid=scale.metadata.uid)
    backlog = [await enqueue(database, redis_client, "hello", tenant="busy") for _ in range(100)]
    other = await enqueue(database, redis_client, "hello", tenant="other")
    assert await redis_client.zcard("synapse:orchestrations:busy") == 100
    assert await redis_client.zcard("synapse:orchestrations:other") == 1
    (pool,) = [shard for shard in shards_of(scale, an_observed()) if shard.name == TENANT_POOL]
    await start_here(WORKER_QUEUE_SHARD=",".join(pool.serves), WORKER_CONCURRENCY="1")
    views = await completed(database, [*backlog, other])
    before = [view for view in views if str(view.started_at) < str(views[-1].started_at)]
    assert len(before) < 10
