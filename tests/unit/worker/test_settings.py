"""Settings: every refusal names the variable, the problem and what is accepted; secrets are never in it."""

from __future__ import annotations

import pytest

from synapse_worker import settings
from synapse_worker.errors import ConfigurationError
from synapse_worker.routing import Topology

REQUIRED = {"REDIS_URL": "redis://:hush@r:6379/0", "SCALE_POSTGRES_URL": "postgresql://u:hush@p/db"}


def test_the_defaults_are_those_of_the_page() -> None:
    loaded = settings.load(REQUIRED)
    assert (loaded.concurrency, loaded.job_timeout, loaded.max_retries, loaded.health_port) == (10, 3600, 3, 9000)
    assert (loaded.shards, loaded.k8s_mode, loaded.pgbouncer_mode, loaded.event_ttl) == (
        ("default",),
        False,
        False,
        3600,
    )
    assert (loaded.lease_seconds, loaded.drain_seconds, loaded.default_tenant_id) == (30, 20, "default")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"REDIS_URL": ""}, "REDIS_URL is not set; it is required: Redis: redis://host:6379/0"),
        ({"SCALE_POSTGRES_URL": ""}, "SCALE_POSTGRES_URL is not set; it is required"),
        ({"WORKER_CONCURRENCY": "0"}, "WORKER_CONCURRENCY is 0; accepted: a whole number from 1 to 100."),
        ({"WORKER_CONCURRENCY": "ten"}, "WORKER_CONCURRENCY is 'ten'; accepted: a whole number from 1 to 100."),
        ({"WORKER_JOB_TIMEOUT": "604801"}, "accepted: a whole number from 1 to 604800."),
        ({"K8S_MODE": "maybe"}, "K8S_MODE is 'maybe'; accepted: 0 or 1."),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL is 'loud'; accepted: one of debug, info, warning, error."),
        (
            {"MAX_GLOBAL_QUEUE_DEPTH": "-1"},
            "MAX_GLOBAL_QUEUE_DEPTH is -1; accepted: a whole number from 1 to 100000000.",
        ),
        ({"NUM_QUEUE_SHARDS": "65"}, "NUM_QUEUE_SHARDS is 65; accepted: a whole number from 1 to 64."),
        ({"ENABLE_TENANT_ISOLATION": "2"}, "ENABLE_TENANT_ISOLATION is '2'; accepted: 0 or 1."),
        ({"WORKER_QUEUE_SHARD": "64"}, "WORKER_QUEUE_SHARD names shard 64; accepted indexes: 0 to 63."),
        ({"WORKER_QUEUE_SHARD": "a{b"}, "braces"),
        (
            {"WEBHOOK_ALLOW": "10.0.0.0/8, http://hooks"},
            "WEBHOOK_ALLOW names 'http://hooks'; accepted: networks such as",
        ),
        ({"RUNS_RETENTION_DAYS": "0"}, "RUNS_RETENTION_DAYS is 0; accepted: a whole number from 1 to 3650."),
        ({"WORKER_QUEUE_SHARD": " , "}, "WORKER_QUEUE_SHARD names no shard"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_accepted(change: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.load({**REQUIRED, **change})
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)


def test_shards_are_a_list_without_doubles() -> None:
    assert settings.load({**REQUIRED, "WORKER_QUEUE_SHARD": "default, 0,default"}).shards == ("default", "0")
    assert settings.load({**REQUIRED, "WORKER_QUEUE_SHARD": "acme,tenants"}).shards == ("acme", "tenants")


def test_the_topology_where_no_row_says_otherwise() -> None:
    assert settings.load(REQUIRED).topology == Topology(1, False)
    loaded = settings.load({**REQUIRED, "NUM_QUEUE_SHARDS": "64", "ENABLE_TENANT_ISOLATION": "1"})
    assert loaded.topology == Topology(64, True)


def test_secrets_are_not_in_the_representation() -> None:
    assert "hush" not in repr(settings.load({**REQUIRED, "METRICS_TOKEN": "hush"}))


def test_stored_values_stand_in_for_what_the_environment_leaves_open() -> None:
    loaded = settings.load({**REQUIRED, "WORKER_JOB_TIMEOUT": "60"})
    stored = loaded.with_stored({"worker_concurrency": 7, "job_timeout": 90, "model": "x"})
    assert (stored.concurrency, stored.job_timeout) == (7, 60)


def test_a_stored_value_out_of_range_is_named() -> None:
    with pytest.raises(ConfigurationError, match="the stored setting worker_concurrency is 1000"):
        settings.load(REQUIRED).with_stored({"worker_concurrency": 1000})
