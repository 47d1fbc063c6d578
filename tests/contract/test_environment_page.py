"""docs/environment.md is what the contract says, and the contract is what the design's variables are."""

from __future__ import annotations

from pathlib import Path

from synapse_worker.contract import BY_NAME, VARIABLES, Kind, grace_period_seconds
from tests.support.environment_page import page

PAGE_VARIABLES = {
    *("REDIS_URL", "SCALE_POSTGRES_URL", "WORKER_CONCURRENCY", "WORKER_JOB_TIMEOUT", "WORKER_MAX_RETRIES"),
    *("WORKER_HEALTH_PORT", "WORKER_QUEUE_SHARD", "NUM_QUEUE_SHARDS", "DEFAULT_TENANT_ID", "ENABLE_TENANT_ISOLATION"),
    *("PGBOUNCER_MODE", "S3_BUCKET", "S3_REGION", "S3_PREFIX", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"),
    *("S3_ENDPOINT_URL", "OTLP_ENDPOINT", "METRICS_TOKEN", "K8S_MODE", "PUBSUB_EVENT_TTL", "RUNS_RETENTION_DAYS"),
    *("MAX_GLOBAL_QUEUE_DEPTH", "RATE_LIMIT_PER_TENANT_RPS"),
}
"""The variables of the configuration page."""


def test_the_page_is_in_step_with_the_contract() -> None:
    assert Path("docs/environment.md").read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_variable_of_the_configuration_page_is_accepted() -> None:
    assert set(BY_NAME) >= PAGE_VARIABLES


def test_the_table_is_consistent() -> None:
    assert len(BY_NAME) == len(VARIABLES)
    for variable in VARIABLES:
        if variable.kind is Kind.INTEGER:
            assert variable.minimum is not None
            assert variable.maximum is not None
            assert variable.minimum <= int(variable.default or "") <= variable.maximum
        if variable.kind is Kind.CHOICE:
            assert variable.default in variable.choices


def test_a_pod_outlives_its_workers_drain() -> None:
    assert all(grace_period_seconds(drain) == drain + 15 for drain in (0, 20, 300, 86_400))
