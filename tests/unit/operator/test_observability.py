"""spec.observability as pods and a Prometheus Operator get it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.desired import Blocked, desired_for_scale
from synapse_operator.naming import Kind
from synapse_operator.observed import Found, Observed, SecretMissing
from tests.builders import HASH_KEY, IMAGE, a_scale, an_observed, manifest_of, what_is_desired

GENERATED = {"name": naming.metrics_token_secret_name("demo"), "key": "token"}
OWN = {"name": "prometheus", "key": "bearer"}


def _pod(observed: Observed | None = None, **observability: Any) -> JsonObject:
    desired = what_is_desired(a_scale(spec={"observability": observability}), observed)
    template: JsonObject = manifest_of(desired, Kind.DEPLOYMENT).body["spec"]["template"]
    return template


def _references(**observability: Any) -> dict[str, JsonObject]:
    (container,) = _pod(**observability)["spec"]["containers"]
    entries = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]}
    return {name: entries[name] for name in entries if name not in ("REDIS_URL", "SCALE_POSTGRES_URL")}


@pytest.mark.parametrize(
    ("spec", "references"),
    [
        ({}, {"METRICS_TOKEN": GENERATED}),
        ({"metricsAuth": "Generated"}, {"METRICS_TOKEN": GENERATED}),
        ({"metricsAuth": "None"}, {}),
        ({"metricsAuth": "SecretRef", "metricsTokenSecretRef": OWN}, {"METRICS_TOKEN": OWN}),
        (
            {"metricsAuth": "None", "otlpEndpoint": "https://c", "otlpHeadersSecretRef": OWN},
            {"OTEL_EXPORTER_OTLP_HEADERS": OWN},
        ),
    ],
)
def test_secrets_are_named_and_never_copied(spec: JsonObject, references: JsonObject) -> None:
    assert _references(**spec) == references


@pytest.mark.parametrize("field", ["metrics_token", "otlp_headers"])
def test_another_value_rolls_the_pods(field: str) -> None:
    one, other = (an_observed(**{field: Found(SecretStr(text))}) for text in ("one", "other"))
    assert _pod(one) != _pod(other)
    assert _pod(one) == _pod(replace(one))
    assert "one" not in str(_pod(one)["metadata"])


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({}, "metrics_token", "observability.metricsAuth"),
        ({"metricsAuth": "SecretRef", "metricsTokenSecretRef": OWN}, "metrics_token", "metricsTokenSecretRef"),
        ({"otlpEndpoint": "https://c", "otlpHeadersSecretRef": OWN}, "otlp_headers", "otlpHeadersSecretRef"),
    ],
)
def test_what_is_missing_freezes_the_children(spec: JsonObject, field: str, said: str) -> None:
    observed = an_observed(**{field: SecretMissing("Secret x does not exist")})
    scale = a_scale(spec={"observability": spec})
    blocked = desired_for_scale(scale, observed, default_image=IMAGE, hash_key=HASH_KEY)
    assert isinstance(blocked, Blocked)
    assert blocked.reason is Reason.SECRET_NOT_FOUND
    assert said in blocked.sentence


def test_a_pod_monitor_comes_last_and_names_the_token() -> None:
    spec = {"podMonitor": {"enabled": True, "labels": {"release": "stack", "app.kubernetes.io/name": "mine"}}}
    manifests = what_is_desired(a_scale(spec={"observability": spec})).manifests
    assert manifests[-1].ref.kind is Kind.POD_MONITOR
    body = manifests[-1].body
    assert body["metadata"]["labels"]["release"] == "stack"
    assert body["metadata"]["labels"]["app.kubernetes.io/name"] == "synapse-worker"
    (endpoint,) = body["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": GENERATED}
    assert endpoint["relabelings"][0] == {
        "sourceLabels": ["__meta_kubernetes_pod_label_scale_synapseorch_com_scale"],
        "targetLabel": "scale",
    }
    assert body["spec"]["selector"] == {"matchLabels": naming.worker_selector("demo")}


def test_the_api_is_scraped_where_it_is_served() -> None:
    spec = {"observability": {"podMonitor": {"enabled": True}}, "api": {"enabled": True}}
    desired = what_is_desired(a_scale(spec=spec))
    monitor = manifest_of(desired, Kind.POD_MONITOR).body["spec"]
    assert [(each["port"], each["path"]) for each in monitor["podMetricsEndpoints"]] == [
        ("metrics", "/metrics"),
        ("http", "/api/v2/metrics"),
    ]
    selected = {}
    for each in desired.manifests:
        if each.ref.kind is Kind.DEPLOYMENT:
            template = each.body["spec"]["template"]
            assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
            (container,) = template["spec"]["containers"]
            selected[container["name"]] = [port["name"] for port in container["ports"]]
            assert "METRICS_TOKEN" in {entry["name"] for entry in container["env"]}
    assert selected == {"worker": ["metrics"], "api": ["http"]}, "neither answers at the path of the other"
    assert all(each["authorization"]["credentials"] == GENERATED for each in monitor["podMetricsEndpoints"])


def test_open_metrics_are_scraped_without_a_token() -> None:
    spec = {"metricsAuth": "None", "podMonitor": {"enabled": True}}
    (endpoint,) = manifest_of(what_is_desired(a_scale(spec={"observability": spec})), Kind.POD_MONITOR).body["spec"][
        "podMetricsEndpoints"
    ]
    assert "authorization" not in endpoint


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert Kind.POD_MONITOR not in {manifest.ref.kind for manifest in what_is_desired(a_scale()).manifests}
