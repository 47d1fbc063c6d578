"""The V2 API tier: pods of the workers' image that serve it, and what leads to them.

Its pods are the workers' but for what they run: the same image, stores, overlay and rights. It keeps no state, so any
number may serve, and a rollout adds before it takes.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale
from synapse_operator.api.tier import API_PORT
from synapse_operator.desired.configmap import environment_config_map
from synapse_operator.desired.deployment import OLD_REPLICA_SETS, probe, with_hashes, worker_pod_spec
from synapse_operator.desired.environment import api_environment, stored_settings, template_secrets
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.desired.observability import API_PORT_NAME
from synapse_operator.naming import Kind
from synapse_operator.observed import Child, Observed
from synapse_worker import contract

CONTAINER = "api"

GRACE_SECONDS = contract.grace_period_seconds(int(contract.BY_NAME["WORKER_DRAIN_SECONDS"].default or 0))
"""A stopping pod takes requests until Services know, and ends those that have begun."""


def api_manifests(
    scale: SynapseScale, observed: Observed, *, image: str, secrets: Mapping[str, SecretStr], hash_key: SecretStr
) -> list[Manifest]:
    """Return the API's objects; none when it is off.

    Args:
        scale: the owner.
        observed: the stored settings, the Secrets of the overlay and the present Deployment.
        image: the image of the workers.
        secrets: variable -> what a pod reads from a Secret (URLs, certificates).
        hash_key: key of the fingerprint of Secrets.
    """
    if not scale.spec.api.enabled:
        return []
    config_map = environment_config_map(scale, api_environment(scale))
    deployment = _deployment(scale, observed, config_map, image, secrets, hash_key)
    found = [config_map, deployment, _service(scale)]
    if scale.spec.pod_disruption_budget.enabled:
        found.append(_disruption_budget(scale))
    return found


def api_deployment_of(scale: SynapseScale, observed: Observed) -> Child | None:
    """Return the API's Deployment as it is; None = there is none."""
    metadata = scale.metadata
    return observed.child(naming.Ref(Kind.DEPLOYMENT, metadata.namespace, naming.api_name(metadata.name)))


def _deployment(
    scale: SynapseScale,
    observed: Observed,
    config_map: Manifest,
    image: str,
    secrets: Mapping[str, SecretStr],
    hash_key: SecretStr,
) -> Manifest:
    name, workers = scale.metadata.name, scale.spec.workers
    selector = naming.api_selector(name)
    labels = naming.child_labels(name) | selector
    live = api_deployment_of(scale, observed)
    spec = worker_pod_spec(scale, workers, selector, image, config_map.ref.name)
    spec["terminationGracePeriodSeconds"] = GRACE_SECONDS
    (container,) = spec["containers"]
    container |= {
        "name": CONTAINER,
        "args": ["api"],
        "ports": [{"name": API_PORT_NAME, "containerPort": API_PORT, "protocol": "TCP"}],
        # It answers /livez at once and /readyz when both stores have answered.
        "startupProbe": probe("/livez", API_PORT_NAME, contract.STARTUP_PROBE),
        "readinessProbe": probe("/readyz", API_PORT_NAME, contract.READINESS_PROBE),
        "livenessProbe": probe("/livez", API_PORT_NAME, contract.LIVENESS_PROBE),
    }
    template: JsonObject = {
        "metadata": {
            "labels": {**workers.template.labels, **labels},
            "annotations": dict(workers.template.annotations),
        },
        "spec": spec,
    }
    with_hashes(
        template,
        scale,
        stored=stored_settings(scale, observed, workers, config_map.body["data"], live, hash_key, api=True),
        template_secrets=template_secrets(scale, observed, workers, live, hash_key),
        secrets=secrets,
        hash_key=hash_key,
    )
    content = {
        "replicas": scale.spec.api.replicas,
        "revisionHistoryLimit": OLD_REPLICA_SETS,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "template": template,
    }
    return manifest(scale, Kind.DEPLOYMENT, naming.api_name(name), {"spec": content}, labels=selector)


def _service(scale: SynapseScale) -> Manifest:
    service = scale.spec.api.service
    spec = {
        "type": service.type,
        "selector": naming.api_selector(scale.metadata.name),
        "ports": [{"name": API_PORT_NAME, "port": service.port, "targetPort": API_PORT_NAME, "protocol": "TCP"}],
    }
    name = naming.api_name(scale.metadata.name)
    return manifest(scale, Kind.SERVICE, name, {"spec": spec}, annotations=service.annotations)


def _disruption_budget(scale: SynapseScale) -> Manifest:
    name = naming.api_name(scale.metadata.name)
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": naming.api_selector(scale.metadata.name)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return manifest(scale, Kind.POD_DISRUPTION_BUDGET, name, {"spec": spec})
