"""What pods are told of traces and metrics, and how a Prometheus Operator finds them."""

from __future__ import annotations

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.desired.service import METRICS_PORT_NAME
from synapse_operator.naming import Kind
from synapse_worker.contract import BY_NAME, OTLP_HEADERS

OTLP_ENDPOINT = BY_NAME["OTLP_ENDPOINT"].name
METRICS_TOKEN = BY_NAME["METRICS_TOKEN"].name


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
    """Return the PodMonitor of the workers; their token is named in it, never copied."""
    endpoint: JsonObject = {"port": METRICS_PORT_NAME, "path": "/metrics"}
    if (token := metrics_token_ref(scale)) is not None:
        endpoint["authorization"] = {"type": "Bearer", "credentials": {"name": token.name, "key": token.key}}
    spec = {
        "selector": {"matchLabels": naming.worker_selector(scale.metadata.name)},
        "podMetricsEndpoints": [endpoint],
        # The labels of a pod become labels of its series: which scale and which shard.
        "podTargetLabels": [naming.SCALE_LABEL, naming.SHARD_LABEL],
    }
    return manifest(
        scale,
        Kind.POD_MONITOR,
        naming.pod_monitor_name(scale.metadata.name),
        {"spec": spec},
        labels=scale.spec.observability.pod_monitor.labels,
    )
