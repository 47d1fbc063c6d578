"""What the operator renders, the worker can start with: the rendered environment goes through its own settings."""

from __future__ import annotations

from typing import Any

import pytest

from synapse_operator import naming
from synapse_operator.naming import Kind
from synapse_worker import contract, settings
from tests.builders import POSTGRES_URL, REDIS_URL, a_scale, manifest_of, what_is_desired

_SECRETS = {
    ("stores", "redis"): REDIS_URL,
    ("stores", "postgres"): POSTGRES_URL,
    (naming.metrics_token_secret_name("demo"), naming.METRICS_TOKEN_KEY): "made-once",
    ("collector", "headers"): "x-team=key",
}


def _environment(spec: dict[str, Any]) -> dict[str, str]:
    """Return what a container gets: the ConfigMap, and over it `env`, as kubelet resolves it."""
    desired = what_is_desired(a_scale(spec=spec))
    (container,) = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]["spec"]["containers"]
    config_map = manifest_of(desired, Kind.CONFIG_MAP)
    assert container["envFrom"] == [{"configMapRef": {"name": config_map.ref.name}}]
    environment = dict(config_map.body["data"])
    for entry in container["env"]:
        if "value" in entry:
            environment[entry["name"]] = entry["value"].replace("$$", "$")
        else:
            reference = entry["valueFrom"]["secretKeyRef"]
            environment[entry["name"]] = _SECRETS[reference["name"], reference["key"]]
    return environment


EVERYTHING: dict[str, Any] = {
    "postgres": {"url": "postgresql://synapse@postgres/synapse", "pgbouncer": True},
    "redis": {"url": "redis://redis:6379/$(0)"},
    "workers": {
        "concurrency": 7,
        "jobTimeoutSeconds": 60,
        "maxRetries": 0,
        "drainTimeoutSeconds": 45,
        "healthPort": 9100,
    },
    "tenancy": {"defaultTenantId": "ünïcode $(HOME)"},
    "retention": {"eventTtlSeconds": 600, "runDays": 30},
    "observability": {
        "otlpEndpoint": "http://collector",
        "otlpHeadersSecretRef": {"name": "collector", "key": "headers"},
    },
}


def test_a_plain_scale_starts_a_worker() -> None:
    loaded = settings.load(_environment({}))
    assert loaded.redis_url.get_secret_value() == REDIS_URL
    assert loaded.postgres_url.get_secret_value() == POSTGRES_URL
    assert loaded.k8s_mode
    assert loaded.shards == (contract.DEFAULT_QUEUE, "0")
    assert loaded.drain_seconds == 300
    assert not loaded.pgbouncer_mode


def test_what_the_spec_leaves_open_stays_open_for_stored_settings() -> None:
    loaded = settings.load(_environment({}))
    stored = {variable.stored: 42 for variable in contract.VARIABLES if variable.stored and variable.maximum}
    changed = loaded.with_stored(stored | {"event_ttl": 60})
    assert (changed.concurrency, changed.job_timeout, changed.max_retries) == (42, 42, 42)


def test_every_field_of_the_spec_arrives() -> None:
    loaded = settings.load(_environment(EVERYTHING))
    assert loaded.redis_url.get_secret_value() == "redis://redis:6379/$(0)"
    assert loaded.postgres_url.get_secret_value() == "postgresql://synapse@postgres/synapse"
    assert loaded.pgbouncer_mode
    assert (loaded.health_port, loaded.default_tenant_id) == (9100, "ünïcode $(HOME)")
    assert (loaded.concurrency, loaded.job_timeout, loaded.max_retries, loaded.drain_seconds) == (7, 60, 0, 45)
    assert (loaded.event_ttl, loaded.retention_days) == (600, 30)
    assert loaded.otlp_endpoint == "http://collector:4317"
    assert loaded.metrics_token.get_secret_value() == "made-once"
    assert _environment(EVERYTHING)[contract.OTLP_HEADERS] == "x-team=key"


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        ("concurrency", "WORKER_CONCURRENCY"),
        ("jobTimeoutSeconds", "WORKER_JOB_TIMEOUT"),
        ("maxRetries", "WORKER_MAX_RETRIES"),
        ("drainTimeoutSeconds", "WORKER_DRAIN_SECONDS"),
    ],
)
@pytest.mark.parametrize("end", ["minimum", "maximum"])
def test_both_ends_of_every_range_are_accepted(field: str, variable: str, end: str) -> None:
    bound = getattr(contract.BY_NAME[variable], end)
    environment = _environment({"workers": {field: bound}})
    assert environment[variable] == str(bound)
    settings.load(environment)


@pytest.mark.parametrize(
    ("field", "variable"), [("eventTtlSeconds", "PUBSUB_EVENT_TTL"), ("runDays", "RUNS_RETENTION_DAYS")]
)
@pytest.mark.parametrize("end", ["minimum", "maximum"])
def test_both_ends_of_every_time_that_things_are_kept_are_accepted(field: str, variable: str, end: str) -> None:
    bound = getattr(contract.BY_NAME[variable], end)
    environment = _environment({"retention": {field: bound}})
    assert environment[variable] == str(bound)
    settings.load(environment)


def test_the_workers_of_every_shard_and_of_the_tenant_pool_can_start() -> None:
    spec = {"queue": {"shards": contract.MAX_SHARDS}, "tenancy": {"isolation": True}}
    maps = [
        each.body["data"] for each in what_is_desired(a_scale(spec=spec)).manifests if each.ref.kind is Kind.CONFIG_MAP
    ]
    urls = {"REDIS_URL": REDIS_URL, "SCALE_POSTGRES_URL": POSTGRES_URL}
    served = [settings.load({**data, **urls}).shards for data in maps]
    assert served == [
        (contract.DEFAULT_QUEUE, "0"),
        *((str(index),) for index in range(1, contract.MAX_SHARDS)),
        (contract.TENANT_POOL,),
    ]


def test_the_api_can_start_with_its_own() -> None:
    spec = {
        **EVERYTHING,
        "api": {"enabled": True},
        "queue": {"maxDepth": 42},
        "tenancy": {"defaultTenantId": "acme", "rateLimitRps": 7},
    }
    maps = [
        each.body["data"] for each in what_is_desired(a_scale(spec=spec)).manifests if each.ref.kind is Kind.CONFIG_MAP
    ]
    (environment,) = [each for each in maps if "WORKER_QUEUE_SHARD" not in each]
    assert environment["MAX_GLOBAL_QUEUE_DEPTH"] == "42"
    assert environment["RATE_LIMIT_PER_TENANT_RPS"] == "7"
    loaded = settings.load({**environment, "REDIS_URL": REDIS_URL, "SCALE_POSTGRES_URL": POSTGRES_URL})
    assert (loaded.default_tenant_id, loaded.pgbouncer_mode) == ("acme", True)
    assert not [name for each in maps if each is not environment for name in each if name.startswith(("MAX_G", "RATE"))]


def test_every_rendered_variable_is_one_that_the_image_reads() -> None:
    for name in _environment(EVERYTHING):
        assert name == contract.OTLP_HEADERS or name in contract.BY_NAME, name


def test_secrets_are_rendered_by_reference_only() -> None:
    config_map = manifest_of(what_is_desired(a_scale()), Kind.CONFIG_MAP)
    assert not [name for name in config_map.body["data"] if contract.BY_NAME[name].secret]
