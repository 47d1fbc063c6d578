"""Traces of runs, as a collector receives them from real processes: one tree from enqueue to the last write."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import CHAT_FUNCTION, RUN_FUNCTION
from synapse_worker.queueing.payload import decode
from synapse_worker.routing import ONE_QUEUE
from synapse_worker.store import definitions, topology
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from tests.support.api import StartApi
from tests.support.collector import Collector, SeenSpan, tree
from tests.support.model_server import ModelServer, model_server, script
from tests.support.runs import enqueue, enqueue_as_upstream, eventually, outcome, steps_reach, store, until
from tests.support.servers import RedisServer, free_port
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
"""Spans are sent so often (ms), so that a test need not wait."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """An empty collector."""
    with Collector() as serving:
        yield serving


def traced(collector: Collector) -> dict[str, str]:
    """Variables of a process that sends to the collector."""
    return {"OTLP_ENDPOINT": collector.url, **SOON}


def has_ended(run_id: str, *, claims: int = 1) -> Callable[[list[SeenSpan]], bool]:
    """A run's own span comes last of a claim."""

    def ended(spans: list[SeenSpan]) -> bool:
        return len([span for span in spans if is_run(span, run_id)]) == claims

    return ended


def is_run(span: SeenSpan, run_id: str) -> bool:
    return span.name.startswith("run ") and span.attributes["synapse.run_id"] == run_id


async def test_a_run_is_one_tree(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    start_worker: StartWorker,
    collector: Collector,
) -> None:
    """Enqueue, wait, claim, steps, checkpoints and the end: every span hangs below the producer's."""
    await store(database, PRINT_IF_PRINT)
    said = command(redis_server.url, postgres_url, "enqueue", "three", "-m", "hi", **traced(collector))
    run_id = said.stdout.strip()
    assert run_id, said.stderr
    worker = start_worker(**traced(collector)).wait_ready()
    await until(database, run_id, "completed")
    spans = collector.wait_for(has_ended(run_id))
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0

    assert len({span.trace for span in spans}) == 1
    parents = tree(spans)
    assert "?" not in parents.values()
    assert [name for name, parent in parents.items() if parent == ""] == ["enqueue"]
    assert parents["run three"] == "enqueue"
    for name in ("queue wait", "claim", "step hello", "step if", "step end"):
        assert parents[name] == "run three", name
    ids = {span.name: span.id for span in spans if span.name.startswith("step ")}
    checkpoints = {span.parent for span in spans if span.name == "postgresql UPDATE orchestration_runs"}
    assert set(ids.values()) < checkpoints, "each step has its checkpoint, and the run its end"
    assert parents["redis append events"] == "run three"
    assert parents["redis enqueue"] == "enqueue"

    found = {span.name: span for span in spans}
    run, wait = found["run three"], found["queue wait"]
    assert wait.end - wait.start > 0.1e9  # the worker was started after it
    assert wait.end == run.start
    assert run.attributes["synapse.run_status"] == "completed"
    assert run.attributes["messaging.destination.name"] == keys.queue("default")
    assert found["step if"].attributes["synapse.step_type"] == "if_else"
    assert run.resource["service.name"] == "synapse-worker"
    assert found["enqueue"].resource["service.name"] == "synapse-producer"
    assert all(span.failed is None for span in spans)


async def test_another_worker_goes_on_in_the_same_trace(
    database: Database, redis_client: Redis, start_worker: StartWorker, collector: Collector
) -> None:
    """A killed worker's run, enqueued by who traces nothing: both claims are in one trace, by the run's id."""
    await store(database, chain("slow", slow_steps(6, 0.4)))
    first = start_worker(WORKER_LEASE_SECONDS="3", **traced(collector)).wait_ready()
    await enqueue_as_upstream(redis_client, "run_a", RUN_FUNCTION, run_id="run_a", orch_id="slow", initial_input="x")
    await steps_reach(database, "run_a", 2)
    first.kill()
    start_worker(WORKER_LEASE_SECONDS="3", **traced(collector))
    await until(database, "run_a", "completed")
    spans = collector.wait_for(has_ended("run_a"))

    assert len({span.trace for span in spans}) == 1
    (run,) = [span for span in spans if is_run(span, "run_a")]
    assert run.attributes["synapse.steps_done_before"] in (2, 3)
    below = [span for span in spans if span.parent == run.id]
    assert "queue wait" not in {span.name for span in below}
    steps = {span.name for span in spans if span.name.startswith("step ")}
    lost = {f"step s{number:02}" for number in range(6)} - steps
    assert lost <= {"step s01"}, "a kill may take the last step's span with it, which was not sent yet"


async def test_a_resumed_run_stays_in_its_trace(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    start_worker: StartWorker,
    collector: Collector,
) -> None:
    """A failed run says why in its span; what is resumed later hangs below the first enqueue."""
    await store(database, chain("broken", [{"id": "s", "type": "transform", "transform_code": "result = 1 / 0"}]))
    run_id = command(redis_server.url, postgres_url, "enqueue", "broken", **traced(collector)).stdout.strip()
    start_worker(**traced(collector))
    await until(database, run_id, "failed")
    collector.wait_for(has_ended(run_id))
    said = command(redis_server.url, postgres_url, "runs", "resume", run_id, **traced(collector))
    assert said.returncode == 0, said.stderr
    spans = collector.wait_for(has_ended(run_id, claims=2))

    assert len({span.trace for span in spans}) == 1
    assert [span.parent for span in spans if span.name == "enqueue"].count("") == 1
    failed = [span for span in spans if is_run(span, run_id)]
    assert all("ZeroDivisionError" in (span.failed or "") for span in failed)
    assert [span for span in spans if span.name == "step s" and span.failed]


async def test_a_dead_collector_disturbs_nobody(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    """Nobody listens at OTLP_ENDPOINT: runs complete, one line tells, and the worker ends in time."""
    await store(database, PRINT_IF_PRINT)
    queue = {"OTEL_BSP_MAX_QUEUE_SIZE": "20", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "10", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    worker = start_worker(OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", **SOON, **queue).wait_ready()
    run_ids = [await enqueue(database, redis_client, "three") for _ in range(30)]
    for run_id in run_ids:
        await until(database, run_id, "completed")
    await eventually("the worker tells", lambda: "did not take" in worker.log)
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - began < 10
    assert worker.log.count("did not take") == 1
    assert "opentelemetry" not in worker.log.replace("OTLP_ENDPOINT", "")


def test_off_imports_nothing() -> None:
    """Without an endpoint neither OpenTelemetry's SDK nor gRPC is loaded; FastAPI brings the bare API."""
    code = (
        "import sys; from synapse_worker import cli, lifecycle; "
        "print(sorted(n for n in sys.modules if n.startswith(('opentelemetry.sdk', 'opentelemetry.exporter', 'grpc'))))"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == "[]"


async def test_the_trace_starts_at_the_api_or_before(
    database: Database,
    redis_client: Redis,
    start_api: StartApi,
    start_worker: StartWorker,
    collector: Collector,
) -> None:
    """A client's traceparent, the request, enqueue, run and steps are one trace; probes and scrapes are in none."""
    await store(database, PRINT_IF_PRINT)
    api = await asyncio.to_thread(start_api, **traced(collector))
    client_span, client_trace = "00f067aa0ba902b7", "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{client_trace}-{client_span}-01"}
    async with api.client() as client:
        answer = await client.post("/orchestrations/three/run", json={"message": "hi"}, headers=headers)
        assert answer.status_code == 202, answer.text
        run_id = answer.json()["run_id"]
        assert (await client.get("/metrics")).status_code == 200
    await asyncio.to_thread(start_worker(**traced(collector)).wait_ready)
    await until(database, run_id, "completed")
    collector.wait_for(has_ended(run_id))
    spans = collector.wait_for(lambda found: any(span.parent == client_span for span in found))

    assert {span.trace for span in spans} == {client_trace}
    (request,) = [span for span in spans if span.parent == client_span]
    assert request.resource["service.name"] == "synapse-api"
    assert request.attributes["http.route"] == "/api/v2/orchestrations/{orchestration_id}/run"
    parents = tree(spans)
    assert parents["enqueue"] == request.name
    assert parents["run three"] == "enqueue"


async def test_without_tracing_the_api_hands_a_clients_trace_on(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, PRINT_IF_PRINT)
    api = await asyncio.to_thread(start_api)
    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with api.client() as client:
        found = []
        for traceparent in (given, "nonsense"):
            answer = await client.post("/orchestrations/three/run", json={}, headers={"traceparent": traceparent})
            raw = await redis_client.get(keys.job(answer.json()["run_id"]))
            assert raw is not None
            found.append(decode(raw).extras.get("traceparent"))
        row = Document(definitions.AGENTS, "worker", "Worker", "", {"id": "worker", "name": "Worker"})
        await definitions.upsert(database, [row], tenant_id="default")
        turn = {"message": "hi", "agent_id": "worker"}
        answer = await client.post("/chat", json=turn, headers={"traceparent": given})
        raw = await redis_client.get(keys.job(answer.json()["job_id"]))
        assert raw is not None
        found.append(decode(raw).extras.get("traceparent"))
    assert found == [given, None, given]


async def test_what_an_api_does_for_all_its_jobs_is_in_no_requests_trace(
    database: Database, redis_client: Redis, start_api: StartApi, collector: Collector
) -> None:
    """Scale mode off: the loop that claims jobs starts with the first request, and takes others' jobs later."""
    await store(database, chain("slow", slow_steps(4, 0.3)))
    await topology.write(database, None, ONE_QUEUE, enabled=False, owner_uid="scale")
    api = await asyncio.to_thread(start_api, **traced(collector))
    async with api.client() as client:
        first = asyncio.create_task(client.post("/orchestrations/slow/run", json={}))
        await asyncio.sleep(0.5)
        second = await client.post("/orchestrations/slow/run", json={})
        assert {(await first).status_code, second.status_code} == {200}
    runs = [answer.json()["run_id"] for answer in (await first, second)]
    spans = collector.wait_for(lambda found: all(has_ended(run_id)(found) for run_id in runs))
    spans = collector.wait_for(lambda found: sum(span.parent == "" for span in found) == 2)

    began = next(span.start for span in spans if span.attributes.get("synapse.run_id") == runs[1])
    request = min((span for span in spans if span.parent == ""), key=lambda span: span.start)
    theirs = [span for span in spans if span.parent == request.id and span.start > began]
    own = {"postgresql SELECT job_ledger", "postgresql SELECT run_steps"}  # whether its run has ended, and how
    assert {span.name for span in theirs} == own


async def test_a_webhook_is_in_the_trace_of_its_run(
    database: Database,
    redis_client: Redis,
    start_api: StartApi,
    start_worker: StartWorker,
    collector: Collector,
) -> None:
    """Sent beside the jobs, and below where the run was enqueued; one that fails says why."""
    await store(database, PRINT_IF_PRINT)
    api = await asyncio.to_thread(start_api, **traced(collector))
    hook = f"http://127.0.0.1:{free_port()}/hook"
    async with api.client() as client:
        answer = await client.post("/orchestrations/three/run", json={"message": "hi", "webhook_url": hook})
        run_id = answer.json()["run_id"]
    start_worker(WEBHOOK_ALLOW="127.0.0.0/8", **traced(collector))
    await until(database, run_id, "completed")
    spans = collector.wait_for(lambda found: any(span.name == "webhook" for span in found))
    webhook = next(span for span in spans if span.name == "webhook")
    (enqueued,) = [span for span in spans if span.name == "enqueue"]
    assert (webhook.trace, webhook.parent) == (enqueued.trace, enqueued.id)
    assert webhook.failed


DOUBLING = script({"call": "double", "args": {"n": 21}}, {"say": "it is 42"})
"""Has the model call the agent's tool, then answer."""


async def an_agent(database: Database, server: ModelServer) -> None:
    """Store an agent with a tool, and a model for it."""
    doubling = {
        "id": "double",
        "name": "double",
        "tool_type": "python",
        "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "code": "print(json.dumps(_args['n'] * 2))",
    }
    agent = {"id": "worker", "name": "Worker", "tools": ["double"]}
    settings = [Document(definitions.SETTINGS, key, "", "", value) for key, value in server.settings().items()]
    rows = [
        Document(definitions.TOOLS, "double", "double", "", doubling),
        Document(definitions.AGENTS, "worker", "Worker", "", agent),
    ]
    await definitions.upsert(database, [*settings, *rows], tenant_id="default")


async def test_models_and_tools_are_spans_of_their_step(
    database: Database, redis_client: Redis, start_worker: StartWorker, collector: Collector
) -> None:
    """Two model requests and the tool call between them hang below the step that made them."""
    with model_server() as server:
        await an_agent(database, server)
        asks = {"id": "a", "type": "agent", "agent_id": "worker", "prompt_template": DOUBLING}
        await store(database, chain("o", [asks]))
        start_worker(**traced(collector)).wait_ready()
        run_id = await enqueue(database, redis_client, "o")
        await until(database, run_id, "completed")
        spans = collector.wait_for(has_ended(run_id))
    step = next(span for span in spans if span.name == "step a")
    below = [span for span in spans if span.parent == step.id and span.name.startswith(("model ", "tool "))]
    assert [span.name for span in sorted(below, key=lambda span: span.start)] == [
        "model scripted",
        "tool double",
        "model scripted",
    ]
    assert len({span.trace for span in spans if is_run(span, run_id) or span in below}) == 1
    assert [span.attributes["synapse.tokens"] for span in below if span.name == "model scripted"] == [15, 15]


def is_chat(span: SeenSpan) -> bool:
    return span.name == "chat worker"


async def test_a_turn_of_a_chat_is_one_tree(
    database: Database, start_api: StartApi, start_worker: StartWorker, collector: Collector
) -> None:
    """Request, enqueue, the turn with its models and tools, and its webhook beside it; what was said is in none."""
    api = await asyncio.to_thread(start_api, **traced(collector))
    hook = f"http://127.0.0.1:{free_port()}/hook"
    with model_server() as server:
        await an_agent(database, server)
        async with api.client() as client:
            turn = {"message": f"Double 21. {DOUBLING}", "agent_id": "worker", "webhook_url": hook}
            accepted = (await client.post("/chat", json=turn)).json()
        worker = start_worker(WEBHOOK_ALLOW="127.0.0.0/8", **traced(collector))
        await asyncio.to_thread(worker.wait_ready)
        assert await outcome(database, accepted["job_id"]) == "completed"
        collector.wait_for(lambda found: any(is_chat(span) for span in found))
        spans = collector.wait_for(lambda found: any(span.name == "webhook" for span in found))
    assert len({span.trace for span in spans}) == 1
    parents = tree(spans)
    assert parents["enqueue"] == "POST /api/v2/chat"
    assert parents["chat worker"] == parents["webhook"] == "enqueue"
    for name in ("queue wait", "claim", "model scripted", "tool double", "redis append events"):
        assert parents[name] == "chat worker", name
    (chat,) = filter(is_chat, spans)
    below = [span for span in spans if span.parent == chat.id and span.name.startswith(("model ", "tool "))]
    assert [span.name for span in sorted(below, key=lambda span: span.start)] == [
        "model scripted",
        "tool double",
        "model scripted",
    ]
    said = {name: chat.attributes[f"synapse.{name}"] for name in ("job_id", "session_id", "agent_id", "turn_status")}
    assert said == {
        "job_id": accepted["job_id"],
        "session_id": accepted["session_id"],
        "agent_id": "worker",
        "turn_status": "completed",
    }
    assert "Double 21" not in str(spans)


async def test_a_main_instances_turn_is_traced_and_says_why_it_failed(
    redis_client: Redis, database: Database, start_worker: StartWorker, collector: Collector
) -> None:
    """Its payload names no trace: both executions are in one, by the job's id."""
    gone = Document(definitions.MCP_SERVERS, "gone", "gone", "", {"name": "gone", "url": "http://127.0.0.1:9/mcp"})
    agent = Document(definitions.AGENTS, "worker", "W", "", {"id": "worker", "name": "W", "tools": ["gone__tool"]})
    with model_server() as server:
        settings = [Document(definitions.SETTINGS, key, "", "", value) for key, value in server.settings().items()]
        await definitions.upsert(database, [*settings, gone, agent], tenant_id="default")
        start_worker(WORKER_MAX_RETRIES="1", **traced(collector))
        asked = {"session_id": "s", "agent_id": "worker", "message": "hi"}
        await enqueue_as_upstream(redis_client, "chat_s_1", CHAT_FUNCTION, **asked)
        spans = collector.wait_for(lambda found: sum(map(is_chat, found)) == 2)
    first, second = sorted(filter(is_chat, spans), key=lambda span: span.start)
    assert first.trace == second.trace
    assert (first.attributes["synapse.lease_ends_as"], second.attributes["synapse.lease_ends_as"]) == (
        "given back",
        "released",
    )
    assert "(after 2 executions)" in (second.failed or "")
    assert [span.parent for span in spans if span.name == "queue wait"] == [first.id]
