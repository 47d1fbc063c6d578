"""The page's section Observability: the metrics token, at the worker's port. The rest is in not_built_yet.py."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from synapse_worker.store.database import Database
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, eventually, printing
from tests.support.runs import store

TOKEN = "3f9a1c"


async def test_the_token_opens_the_metrics(redis_client: Redis, start_here: StartHere) -> None:
    """A bearer token that Prometheus uses to authenticate when scraping (bearer_token: your-metrics-token)."""
    worker = await (await start_here(METRICS_TOKEN=TOKEN)).ready()
    answer = await worker.get("/metrics", authorization=f"Bearer {TOKEN}")
    assert answer.status == 200
    assert "synapse_worker_slots" in {family.name for family in text_string_to_metric_families(answer.body)}


async def test_nothing_else_does(redis_client: Redis, start_here: StartHere) -> None:
    """A bearer token for GET /metrics on port 9000: without it the answer is 401, and the other paths stay open."""
    worker = await (await start_here(METRICS_TOKEN=TOKEN)).ready()
    for authorization in ("", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        refused = await worker.get("/metrics", authorization=authorization)
        assert refused.status == 401, authorization
        assert TOKEN not in refused.body
    assert (await worker.get("/health")).status == 200


async def test_blank_means_unauthenticated(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """Leave blank for unauthenticated access to the metrics endpoint."""
    await store(database, printing("hello"))
    worker = await (await start_here(METRICS_TOKEN="")).ready()
    await completed(database, [await enqueue(database, redis_client, "hello")])
    body = (await worker.get("/metrics")).body
    assert 'synapse_runs_completed_total{status="completed",tenant_id="default"} 1.0' in body


async def test_workers_that_are_online_are_counted(redis_client: Redis, start_here: StartHere) -> None:
    """Prometheus metrics for horizontal scaling: synapse_active_workers."""
    worker = await (await start_here()).ready()

    async def counted() -> bool:
        return "\nsynapse_active_workers 1.0\n" in (await worker.get("/metrics")).body

    await eventually("the worker counts itself", counted)
