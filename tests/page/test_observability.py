"""The page's section Observability: traces, and the metrics token at the worker's port."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from synapse_worker import contract, settings, tracing
from synapse_worker.store.database import Database
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, eventually, printing
from tests.support.collector import Collector, SeenSpan, tree
from tests.support.runs import store
from tests.support.servers import certify
from tests.support.workers import environment

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


async def trace_of_a_run(
    endpoint: str, database: Database, client: Redis, start_here: StartHere, collector: Collector
) -> list[SeenSpan]:
    """Enqueue and run one orchestration in this process, as a producer and a worker with OTLP_ENDPOINT do."""
    await store(database, printing("hello"))
    given = settings.load(environment("redis://r", "postgresql://p/d", OTLP_ENDPOINT=endpoint)).otlp_endpoint
    async with tracing.exporting(given, service="page", instance="test"):
        run_id = await enqueue(database, client, "hello")
        worker = await (await start_here()).ready()
        await completed(database, [run_id])
        worker.stop()
        await worker.ended()
    return collector.spans


async def test_a_run_generates_a_distributed_trace(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """It propagates through enqueue, Redis (queue wait), worker (steps) and Postgres (state reads and writes)."""
    with Collector() as collector:
        spans = await trace_of_a_run(collector.url, database, redis_client, start_here, collector)
    assert len({span.trace for span in spans}) == 1
    parents = tree(spans)
    assert parents["enqueue"] == ""
    assert parents["run hello"] == "enqueue"
    assert parents["queue wait"] == "run hello"
    statements = {span.name for span in spans if span.attributes.get("db.system.name") == "postgresql"}
    assert {name.split()[1] for name in statements} >= {"SELECT", "INSERT", "UPDATE"}


async def test_each_step_becomes_a_span(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """Each step in the orchestration becomes a span within the trace: slow steps are easy to identify."""
    with Collector() as collector:
        spans = await trace_of_a_run(collector.url, database, redis_client, start_here, collector)
    (step,) = [span for span in spans if span.name == "step say"]
    (run,) = [span for span in spans if span.name == "run hello"]
    assert step.parent == run.id
    assert run.start <= step.start < step.end <= run.end
    assert step.attributes["synapse.step_type"] == "print"


async def test_a_hosted_collector(
    database: Database,
    redis_client: Redis,
    start_here: StartHere,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """https://api.honeycomb.io: TLS, with a key in OpenTelemetry's own variable; plain gRPC is not understood there."""
    certify(tmp_path)
    pair = ((tmp_path / "server.key").read_bytes(), (tmp_path / "server.crt").read_bytes())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.crt"))
    monkeypatch.setenv(contract.OTLP_HEADERS, "x-honeycomb-team=the-key")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging,service.name=ours")
    with Collector(grpc.ssl_server_credentials([pair])) as collector:
        spans = await trace_of_a_run(collector.url, database, redis_client, start_here, collector)
    assert {span.headers["x-honeycomb-team"] for span in spans} == {"the-key"}
    assert {span.resource["deployment.environment.name"] for span in spans} == {"staging"}
    assert {span.resource["service.name"] for span in spans} == {"ours"}


async def test_sampling_is_as_the_standard_variables_say(
    database: Database, redis_client: Redis, start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OpenTelemetry-compatible collector need not get every trace: OTEL_TRACES_SAMPLER."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with Collector() as collector:
        assert await trace_of_a_run(collector.url, database, redis_client, start_here, collector) == []


async def test_leave_blank_to_disable_tracing(
    database: Database, redis_client: Redis, start_here: StartHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blank: nothing is sent, also when a variable of OpenTelemetry's own names a collector."""
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        assert await trace_of_a_run("", database, redis_client, start_here, collector) == []


def test_docker_compose_starts_a_local_jaeger() -> None:
    """docker compose --profile enterprise: the UI at localhost:16686 and the OTLP endpoint at jaeger:4317."""
    services = yaml.safe_load(Path("compose.yaml").read_text(encoding="utf-8"))["services"]
    assert services["jaeger"]["profiles"] == ["enterprise"]
    assert "127.0.0.1:16686:16686" in services["jaeger"]["ports"]
    assert [name for name, service in services.items() if "profiles" in service] == ["jaeger"]
    variables = services["worker"]["environment"]
    assert services["api"]["environment"] == variables
    assert set(variables) <= set(contract.BY_NAME)
    assert variables["OTLP_ENDPOINT"] == "${OTLP_ENDPOINT:-}"
    loaded = settings.load({**variables, "OTLP_ENDPOINT": "http://jaeger:4317", "METRICS_TOKEN": ""})
    assert loaded.otlp_endpoint == "http://jaeger:4317"
    assert loaded.postgres_url.get_secret_value().split("@")[1] == "postgres:5432/synapse"
    for name in (*services["worker"]["depends_on"], *services["api"]["depends_on"]):
        assert "healthcheck" in services[name]
