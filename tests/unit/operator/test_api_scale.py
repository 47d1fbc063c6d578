"""Reading a SynapseScale, and what a stored one that breaks the schema becomes."""

from __future__ import annotations

import pytest

from synapse_operator.api.overlay import OPERATOR_ENVIRONMENT
from synapse_operator.api.reasons import ConditionType, EventReason, Reason
from synapse_operator.api.scale import InvalidScale, SynapseScale, read_scale
from synapse_operator.desired.environment import api_environment, worker_environment
from synapse_operator.naming import PAUSED_ANNOTATION
from tests.builders import a_scale, a_scale_body


def test_a_scale_is_read_with_its_defaults() -> None:
    scale = a_scale()
    assert (scale.metadata.name, scale.metadata.namespace, scale.metadata.generation) == ("demo", "team-a", 1)
    assert scale.spec.enabled
    assert scale.spec.workers.replicas == 1
    assert scale.spec.workers.drain_timeout_seconds == 300
    assert scale.spec.queue.shards == 1
    assert scale.spec.image_pull_policy == "IfNotPresent"
    assert not scale.terminating


def test_stored_settings_have_no_default() -> None:
    workers = a_scale().spec.workers
    assert (workers.concurrency, workers.job_timeout_seconds, workers.max_retries) == (None, None, None)


def test_a_field_of_a_newer_release_is_ignored() -> None:
    assert isinstance(read_scale(a_scale_body(spec={"tenancy": {"isolation": True}})), SynapseScale)


def test_a_scale_that_is_being_deleted_says_so() -> None:
    assert a_scale(deletionTimestamp="2026-11-24T12:00:00Z").terminating


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"workers": {"replicas": -1}}, "spec.workers.replicas: input should be greater than or equal to 0"),
        ({"redis": None}, "spec.redis: input should be a valid dictionary or instance of RedisSpec"),
        ({"imagePullPolicy": "Sometimes"}, "spec.imagePullPolicy: input should be 'Always', 'IfNotPresent' or 'Never'"),
    ],
)
def test_an_invalid_scale_is_a_value_with_a_sentence(spec: dict[str, object], sentence: str) -> None:
    invalid = read_scale(a_scale_body(spec=spec))
    assert isinstance(invalid, InvalidScale)
    assert invalid.sentence == sentence
    assert invalid.metadata.name == "demo"


def test_a_scale_without_a_spec_is_invalid_too() -> None:
    body = a_scale_body()
    del body["spec"]
    assert isinstance(read_scale(body), InvalidScale)


def test_the_sentence_does_not_repeat_what_was_given() -> None:
    invalid = read_scale(a_scale_body(spec={"redis": {"url": ["redis://:hunter2@redis"]}}))
    assert isinstance(invalid, InvalidScale)
    assert "hunter2" not in repr(invalid)


@pytest.mark.parametrize("words", [ConditionType, Reason, EventReason])
def test_every_word_has_a_meaning(words: type[ConditionType] | type[Reason] | type[EventReason]) -> None:
    for word in words:
        assert word.meaning
        assert str(word) == word.value
        assert f"{word}".isalpha()


@pytest.mark.parametrize(
    ("annotations", "paused"),
    [
        ({}, False),
        ({PAUSED_ANNOTATION: "true"}, True),
        ({PAUSED_ANNOTATION: ""}, True),
        ({PAUSED_ANNOTATION: "false"}, False),
    ],
)
def test_the_pause_is_an_annotation(annotations: dict[str, str], paused: bool) -> None:
    assert a_scale(annotations=annotations).metadata.paused is paused


def test_the_operators_variables_cannot_be_overlaid() -> None:
    """Whatever is rendered is refused in the overlay, or a pod would have it twice."""
    everything = {
        "redis": {"url": "redis://r", "caSecretRef": {"name": "ca", "key": "ca.crt"}},
        "postgres": {"url": "postgresql://p/d", "caSecretRef": {"name": "ca", "key": "ca.crt"}, "pgbouncer": True},
        "workers": {"concurrency": 1, "jobTimeoutSeconds": 1, "maxRetries": 1, "healthPort": 9100},
        "tenancy": {"defaultTenantId": "acme", "rateLimitRps": 7},
        "queue": {"maxDepth": 42},
        "retention": {"eventTtlSeconds": 60, "runDays": 1},
    }
    scale = a_scale(spec=everything)
    rendered = {**worker_environment(scale, scale.spec.workers, ["default", "0"]), **api_environment(scale)}
    assert {*rendered, "REDIS_URL", "SCALE_POSTGRES_URL", "API_PORT"} <= set(OPERATOR_ENVIRONMENT)
