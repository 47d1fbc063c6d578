"""What pods are told of traces and metrics, and how a Prometheus Operator finds them."""

from __future__ import annotations

import re

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.desired.service import METRICS_PORT_NAME
from synapse_operator.naming import Kind
from synapse_worker.contract import BY_NAME, OTLP_HEADERS

API_PORT_NAME = "http"

OTLP_ENDPOINT = BY_NAME["OTLP_ENDPOINT"].name
METRICS_TOKEN = BY_NAME["METRICS_TOKEN"].name


_RELABELINGS = [
    {"sourceLabels": [f"__meta_kubernetes_pod_label_{re.sub('[^a-z]', '_', label)}"], "targetLabel": target}
    for label, target in ((naming.SCALE_LABEL, "scale"), (naming.SHARD_LABEL, "shard"))
]
"""Which scale and which shard a series is of (the API is of none); the rules and the dashboard of
manifests/observability go by these."""


def metrics_token_ref(scale: SynapseScale) -> SecretKeySelector | None:
    """Return where the token of the metrics is; None = they are open."""
    spec = scale.spec.observability
    if spec.metrics_auth == "Generated":
        return SecretKeySelector(
            name=naming.metrics_token_secret_name(scale.metadata.name), key=naming.METRICS_TOKEN_KEY
        )
    return spec.metrics_token_secret_ref


def plain_variables(scale: SynapseScale) -> dict[str, str]:
    """Return the variables that hold no secret."""
    endpoint = scale.spec.observability.otlp_endpoint
    return {} if endpoint is None else {OTLP_ENDPOINT: endpoint}


def secret_references(scale: SynapseScale) -> dict[str, SecretKeySelector]:
    """Return variable -> the key of a Secret that its value comes from."""
    references = {
        METRICS_TOKEN: metrics_token_ref(scale),
        OTLP_HEADERS: scale.spec.observability.otlp_headers_secret_ref,
    }
    return {name: reference for name, reference in references.items() if reference is not None}


def pod_monitor(scale: SynapseScale) -> Manifest:
    """Return the PodMonitor of the workers, and of the V2 API where it is served.

    Their token is named in it, never copied. An endpoint is looked for in every pod that is selected, and the ports of
    workers and of the API have different names, so each is asked at its own path only.
    """
    selector, paths = naming.worker_selector(scale.metadata.name), {METRICS_PORT_NAME: "/metrics"}
    if scale.spec.api.enabled:
        del selector[naming.ROLE_LABEL]
        paths[API_PORT_NAME] = "/api/v2/metrics"
    spec = {
        "selector": {"matchLabels": selector},
        "podMetricsEndpoints": [_endpoint(scale, port, path) for port, path in paths.items()],
    }
    return manifest(
        scale,
        Kind.POD_MONITOR,
        naming.pod_monitor_name(scale.metadata.name),
        {"spec": spec},
        labels=scale.spec.observability.pod_monitor.labels,
    )


def _endpoint(scale: SynapseScale, port: str, path: str) -> JsonObject:
    endpoint: JsonObject = {"port": port, "path": path, "relabelings": _RELABELINGS}
    if (token := metrics_token_ref(scale)) is not None:
        endpoint["authorization"] = {"type": "Bearer", "credentials": {"name": token.name, "key": token.key}}
    return endpoint
