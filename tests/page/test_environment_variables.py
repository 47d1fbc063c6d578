"""The page's section Environment variables reference: each table, line by line."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_operator.naming import Kind
from synapse_worker import housekeeping, settings
from synapse_worker.contract import BY_NAME
from synapse_worker.contract import Kind as VariableKind
from synapse_worker.errors import ConfigurationError
from synapse_worker.events import EventWriter
from synapse_worker.queueing import keys
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from tests.builders import a_scale, manifest_of, what_is_desired
from tests.page.conftest import StartHere
from tests.page.support import completed, enqueue, eventually, printing, store_setting, until
from tests.support.runs import steps_reach, store
from tests.support.servers import free_port
from tests.support.workers import StartWorker, chain, slow_steps

ENVIRONMENT_PAGE = Path("docs/environment.md")

REQUIRED = {"REDIS_URL": "redis://host:6379/0", "SCALE_POSTGRES_URL": "postgresql://user:pass@host:5432/dbname"}

DEFAULTS = {
    # Worker tuning
    "WORKER_CONCURRENCY": "10",
    "WORKER_JOB_TIMEOUT": "3600",
    "WORKER_MAX_RETRIES": "3",
    "WORKER_HEALTH_PORT": "9000",
    "WORKER_QUEUE_SHARD": "default",
    "NUM_QUEUE_SHARDS": "1",
    # Multi-tenancy
    "DEFAULT_TENANT_ID": "default",
    "ENABLE_TENANT_ISOLATION": "0",
    # Database
    "PGBOUNCER_MODE": "0",
    # S3 storage
    "S3_BUCKET": "",
    "S3_REGION": "us-east-1",
    "S3_PREFIX": "synapse",
    "S3_ACCESS_KEY_ID": "",
    "S3_SECRET_ACCESS_KEY": "",
    "S3_ENDPOINT_URL": "",
    # Observability
    "OTLP_ENDPOINT": "",
    "METRICS_TOKEN": "",
    "K8S_MODE": "0",
    # Retention and limits
    "PUBSUB_EVENT_TTL": "3600",
    "RUNS_RETENTION_DAYS": "90",
    "MAX_GLOBAL_QUEUE_DEPTH": "1000000",
    "RATE_LIMIT_PER_TENANT_RPS": "1000",
}
"""The page's tables: variable -> default, "" where the page says (empty)."""


@pytest.mark.parametrize("name", [*REQUIRED, *DEFAULTS])
def test_every_variable_is_accepted_with_its_default_and_documented(name: str) -> None:
    """All environment variables accepted by the image, with their defaults."""
    assert BY_NAME[name].default == DEFAULTS.get(name)
    shown = "required" if name in REQUIRED else DEFAULTS[name] or "empty"
    assert f"| {name} | {shown} | " in ENVIRONMENT_PAGE.read_text(encoding="utf-8")


def test_the_defaults_can_be_written_out() -> None:
    """docker run -e VAR=value: the page's own defaults, written out, change nothing."""
    written = {name: value for name, value in DEFAULTS.items() if value}
    plain = settings.load(REQUIRED)
    given = settings.load({**REQUIRED, **written})
    changed = {name for name in plain.__slots__ if getattr(plain, name) != getattr(given, name)}
    assert changed == {"from_environment"}


def test_kubernetes_secret_and_config_map() -> None:
    """Pass them via a Kubernetes Secret or ConfigMap referenced in the pod spec: the operator does."""
    desired = what_is_desired(a_scale(spec={"workers": {"concurrency": 7}}))
    (container,) = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["spec"]["containers"]
    config_map = manifest_of(desired, Kind.CONFIG_MAP)
    assert container["envFrom"] == [{"configMapRef": {"name": config_map.ref.name}}]
    assert config_map.body["data"]["WORKER_CONCURRENCY"] == "7"
    references = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
    assert references.pop("METRICS_TOKEN")["key"] == "token"  # of the Secret that the operator makes
    assert references == {
        "REDIS_URL": {"name": "stores", "key": "redis"},
        "SCALE_POSTGRES_URL": {"name": "stores", "key": "postgres"},
    }


# ---- Required


@pytest.mark.parametrize("name", list(REQUIRED))
def test_required(name: str) -> None:
    """Required: REDIS_URL, SCALE_POSTGRES_URL."""
    with pytest.raises(ConfigurationError, match=f"^{name} is not set; it is required: "):
        settings.load({**REQUIRED, name: ""})


async def test_without_a_required_variable_a_worker_says_so_and_ends(start_worker: StartWorker) -> None:
    """Required: the process ends with one sentence that names what is missing."""
    worker = start_worker(REDIS_URL="")
    assert await asyncio.to_thread(worker.wait) == 1
    (line,) = worker.log.splitlines()
    assert line.startswith("synapse-worker: REDIS_URL is not set; it is required: ")


NOT_ANY_TEXT = {"S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL", "OTLP_ENDPOINT"}
"""Texts of which some cannot be used: half a pair of keys, and what is no URL."""


@pytest.mark.parametrize("name", list(DEFAULTS))
def test_what_is_no_number_or_switch_is_refused_by_name(name: str) -> None:
    """Every variable of the reference: a value that cannot be used is never taken for the default."""
    given = {**REQUIRED, name: "some"}
    if BY_NAME[name].kind is not VariableKind.TEXT:
        with pytest.raises(ConfigurationError, match=rf"^{name} is 'some'; accepted: "):
            settings.load(given)
    elif name in NOT_ANY_TEXT:
        with pytest.raises(ConfigurationError, match=f"^{name} "):
            settings.load(given)
    else:
        assert name in settings.load(given).from_environment


# ---- Worker tuning


async def test_worker_job_timeout(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """WORKER_JOB_TIMEOUT: seconds before a job is forcibly cancelled and marked failed."""
    await store(database, chain("slow", slow_steps(1, 20)))
    await start_here(WORKER_JOB_TIMEOUT="1")
    failed = await until(database, await enqueue(database, redis_client, "slow"), "failed", "completed")
    assert failed.error == "the job took over 1 active seconds (WORKER_JOB_TIMEOUT)"


async def test_worker_job_timeout_may_be_stored(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """WORKER_JOB_TIMEOUT, WORKER_MAX_RETRIES, PUBSUB_EVENT_TTL, RUNS_RETENTION_DAYS have stored counterparts."""
    stored = {"job_timeout": 7, "max_retries": 2, "event_ttl": 60, "runs_retention_days": 30}
    names = ("WORKER_JOB_TIMEOUT", "WORKER_MAX_RETRIES", "PUBSUB_EVENT_TTL", "RUNS_RETENTION_DAYS")
    for key, value in stored.items():
        await store_setting(database, key, value)
    assert {BY_NAME[name].stored for name in names} == set(stored)
    await store(database, printing("hello"))
    await start_here()
    (done,) = await completed(database, [await enqueue(database, redis_client, "hello")])
    await eventually("its events are written", lambda: exists(redis_client, keys.run_events(done.run_id)))
    assert 0 < await redis_client.ttl(keys.run_events(done.run_id)) <= 60


async def test_worker_max_retries(database: Database, redis_client: Redis, start_here: StartHere) -> None:
    """WORKER_MAX_RETRIES: number of retry attempts before moving a job to the dead-letter queue."""
    await store(database, chain("slow", slow_steps(1, 20)))
    await start_here(WORKER_MAX_RETRIES="1")
    run_id = await enqueue(database, redis_client, "slow")
    for execution in (1, 2):

        async def claimed(execution: int = execution) -> bool:
            row = await database.fetchrow(
                "SELECT failures, owner FROM job_ledger WHERE job_id = $1 AND outcome IS NULL", run_id
            )
            return row is not None and row["failures"] == execution - 1 and row["owner"] is not None

        await eventually(f"execution {execution} begins", claimed)
        assert await database.fetch("SELECT 1 FROM dead_letter_queue") == []

        async def crashed() -> bool:
            """Kill the sandbox in which the run is busy, again and again until the run has noticed."""
            for pid in sandboxes():
                os.kill(pid, signal.SIGKILL)
            return not await claimed()

        await eventually(f"execution {execution} fails", crashed)
    assert "after 2 executions" in str((await until(database, run_id, "failed", "completed")).error)
    (letter,) = await database.fetch("SELECT run_id, job_function, attempt_count, resolved FROM dead_letter_queue")
    assert tuple(letter) == (run_id, "run_orchestration_job", 2, False)


async def test_worker_health_port(redis_client: Redis, start_here: StartHere) -> None:
    """WORKER_HEALTH_PORT: port for the HTTP health endpoint (GET /health)."""
    worker = await (await start_here()).ready()
    assert worker.settings.health_port == worker.port
    assert (await worker.get("/health")).status == 200
    with pytest.raises(ConfigurationError, match=f"WORKER_HEALTH_PORT {worker.port} cannot be opened"):
        await (await start_here(WORKER_HEALTH_PORT=str(worker.port))).ended()


async def test_what_health_says(redis_client: Redis, start_here: StartHere) -> None:
    """GET /health: each value is observed."""
    worker = await (await start_here(WORKER_CONCURRENCY="4", WORKER_QUEUE_SHARD="default,3")).ready()
    health = await worker.health()
    assert health.pop("hostname") == os.uname().nodename
    assert str(health.pop("address")).endswith(f":{worker.port}")
    assert float(str(health.pop("uptime_seconds"))) < 60
    assert health == {
        "status": "ok",
        "worker_id": worker.settings.worker_id,
        "shard": "default,3",
        "queues": ["synapse:orchestrations:default", "synapse:orchestrations:3"],
        "active_jobs": 0,
        "max_jobs": 4,
        "redis_connected": True,
        "postgres_connected": True,
        "draining": False,
        "version": health["version"],
    }


# ---- Observability: K8S_MODE; METRICS_TOKEN is in test_observability.py


@pytest.mark.parametrize(("mode", "status"), [("0", 200), ("1", 503)])
async def test_k8s_mode_adjusts_health_probe_behaviour(
    redis_client: Redis, start_here: StartHere, mode: str, status: int
) -> None:
    """K8S_MODE 1 adjusts health probe behaviour: without Redis not ready and not healthy, and yet alive."""
    worker = await start_here(redis_url=f"redis://127.0.0.1:{free_port()}/0", K8S_MODE=mode)

    async def asked() -> bool:
        return "cannot be reached" in (await worker.get("/readyz")).body

    await eventually("the worker has asked Redis", asked)
    paths = ("/livez", "/readyz", "/startupz", "/health")
    assert [(await worker.get(path)).status for path in paths] == [200, status, status, status]


async def test_k8s_mode_adjusts_shutdown_sequencing(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """K8S_MODE 1 adjusts shutdown: a running job is handed back at its next step, ahead of younger ones."""
    await store(database, chain("slow", slow_steps(40, 0.1)))
    worker = await (await start_here(K8S_MODE="1", WORKER_DRAIN_SECONDS="20")).ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    worker.stop()
    await worker.ended()
    handed_back = await until(database, run_id, "queued")
    assert 1 <= handed_back.steps_done < 40
    assert await redis_client.zcard(keys.again(keys.queue("default"))) == 1


async def test_outside_kubernetes_a_stopping_worker_finishes_its_jobs(
    database: Database, redis_client: Redis, start_here: StartHere
) -> None:
    """K8S_MODE, default 0: a stopping worker takes nothing new and lets running jobs finish."""
    await store(database, chain("slow", slow_steps(5, 0.1)), printing("hello"))
    worker = await (await start_here(WORKER_CONCURRENCY="1")).ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    waiting = await enqueue(database, redis_client, "hello")
    worker.stop()
    await worker.ended()
    await until(database, run_id, "completed")
    await until(database, waiting, "queued")


# ---- Retention and limits: RUNS_RETENTION_DAYS


@pytest.mark.parametrize(("given", "stored", "days"), [("", None, 90), ("", 30, 30), ("2", 30, 2)])
async def test_runs_retention_days(
    database: Database,
    redis_client: Redis,
    start_here: StartHere,
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    stored: int | None,
    days: int,
) -> None:
    """RUNS_RETENTION_DAYS, default 90: a cleanup job removes older records automatically."""
    monkeypatch.setattr(housekeeping, "PERIOD_SECONDS", 0.05)
    if stored is not None:
        await store_setting(database, "runs_retention_days", stored)
    for run_id, age in (("run_old", days + 0.01), ("run_young", days - 0.01)):
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
            " ended_at) VALUES ($1, 'hello', 'default', 'completed', '{}', '[]', now() - make_interval(secs => $2))",
            run_id,
            age * 86_400,
        )
    await start_here(RUNS_RETENTION_DAYS=given)

    async def removed() -> bool:
        return not await runs.get(database, ["run_old"])

    await eventually("the older record is removed", removed)
    assert await runs.get(database, ["run_young"])


# ---- Retention and limits: PUBSUB_EVENT_TTL


@pytest.mark.parametrize(("given", "seconds"), [("", 3600), ("120", 120)])
async def test_pubsub_event_ttl(
    database: Database, redis_client: Redis, start_here: StartHere, given: str, seconds: int
) -> None:
    """PUBSUB_EVENT_TTL, default 3600: seconds to retain step events in Redis Streams."""
    await store(database, printing("hello"))
    await start_here(PUBSUB_EVENT_TTL=given)
    (done,) = await completed(database, [await enqueue(database, redis_client, "hello")])
    await eventually("its events are written", lambda: exists(redis_client, keys.run_events(done.run_id)))
    assert await redis_client.type(keys.run_events(done.run_id)) == b"stream"
    assert seconds - 30 < await redis_client.ttl(keys.run_events(done.run_id)) <= seconds


async def test_events_expire(redis_client: Redis) -> None:
    """After this, events expire and cannot be replayed by reconnecting clients."""
    writer = EventWriter(redis_client, ttl_seconds=1)
    writing = asyncio.create_task(writer.write())
    writer.hand("run", 1, [{"type": "final"}])
    await writer.written("run")
    written = time.monotonic()

    async def gone() -> bool:
        return not await redis_client.exists(keys.run_events("run"))

    await eventually("the events expire", gone)
    assert 0.5 < time.monotonic() - written < 5
    writing.cancel()


async def exists(client: Redis, key: str) -> bool:
    """Return whether a key is there."""
    return bool(await client.exists(key))


def sandboxes() -> list[int]:
    """The sandbox processes below this process."""
    found = []
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except FileNotFoundError:
                continue
            if b"monty" in words:
                found.append(int(pid))
    return found
