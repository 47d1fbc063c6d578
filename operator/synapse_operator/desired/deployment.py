"""The workers of one shard.

Rendered from the worker's own contract: variables, probes and the grace period are the numbers that the process
itself goes by. Pods satisfy Pod Security `restricted`, and no field is left to the namespace's luck: requests,
limits and the bounds of what they write are set.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.environment import DATA_DIR, HEALTH_PORT, POSTGRES_URL, REDIS_URL, url_variable
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.desired.service import METRICS_PORT_NAME
from synapse_operator.naming import Kind
from synapse_worker import contract
from synapse_worker.contract import ProbeTiming

CONTAINER = "worker"

RESOURCES: JsonObject = {
    # An idle worker with its interpreters takes 150 MB; ten agent steps with their answers take a few hundred.
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "2", "memory": "1Gi"},
}

SCRATCH_LIMIT = "1Gi"
"""Of each writable folder; without a bound one job could fill the node's disk."""

OLD_REPLICA_SETS = 1
"""Kept for `kubectl rollout undo`; `plan` keeps the ConfigMap that belongs to it."""


def worker_deployment(
    scale: SynapseScale,
    shard: int,
    *,
    replicas: int,
    image: str,
    config_map: Manifest,
    urls: Mapping[str, SecretStr],
    hash_key: SecretStr,
) -> Manifest:
    """Return the Deployment that serves `shard`.

    Args:
        scale: the owner.
        shard: index of the shard.
        replicas: worker pods.
        image: their image.
        config_map: the ConfigMap with their variables.
        urls: variable -> URL of a store; only a keyed fingerprint of it gets into the manifest.
        hash_key: key of that fingerprint.
    """
    name = scale.metadata.name
    selector = naming.shard_selector(name, shard)
    labels = naming.child_labels(name) | selector
    environment: dict[str, str] = config_map.body["data"]
    config_hash = naming.content_hash(
        {
            "image": image,
            "environment": environment,
            "urls": naming.secret_fingerprint(urls, scale_uid=scale.metadata.uid, key=hash_key),
        }
    )
    spec = {
        "replicas": replicas,
        "revisionHistoryLimit": OLD_REPLICA_SETS,
        "selector": {"matchLabels": selector},
        "strategy": {
            "type": "RollingUpdate",
            # A pull worker takes no traffic, so two versions side by side cost only room, and an old worker is told
            # to stop only when a new one is Ready, that is, has reached both stores: capacity never falls below
            # what is wanted, and an image or URL that does not work stops the rollout at the first pods. A share
            # and not 1, since hundreds of workers, one after the other, would take an hour.
            "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0},
        },
        "template": {
            "metadata": {"labels": labels, "annotations": {naming.CONFIG_HASH_ANNOTATION: config_hash}},
            "spec": _pod_spec(scale, selector, image, config_map.ref.name),
        },
    }
    return manifest(scale, Kind.DEPLOYMENT, naming.deployment_name(name, shard), {"spec": spec}, labels=selector)


def _pod_spec(scale: SynapseScale, selector: Mapping[str, str], image: str, config_map: str) -> JsonObject:
    spec = scale.spec
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "envFrom": [{"configMapRef": {"name": config_map}}],
        "env": [
            url_variable(REDIS_URL, spec.redis.url_secret_ref, spec.redis.url),
            url_variable(POSTGRES_URL, spec.postgres.url_secret_ref, spec.postgres.url),
        ],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": HEALTH_PORT, "protocol": "TCP"}],
        "startupProbe": _probe("/startupz", contract.STARTUP_PROBE),
        "readinessProbe": _probe("/readyz", contract.READINESS_PROBE),
        "livenessProbe": _probe("/livez", contract.LIVENESS_PROBE),
        "resources": RESOURCES,
        # The last lines of a worker that ended are what the condition CrashLoop shows.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "data", "mountPath": DATA_DIR}],  # noqa: S108
    }
    pod: JsonObject = {
        "serviceAccountName": naming.service_account_name(scale.metadata.name),
        "automountServiceAccountToken": False,
        # The variables of Services beside us are of no use here, and there may be thousands.
        "enableServiceLinks": False,
        # The kernel drops a SIGTERM for process 1 of a namespace that has not asked for it yet: a pod deleted while
        # its container starts would stay for its whole grace period. With the pause container as process 1 it ends.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": contract.grace_period_seconds(spec.workers.drain_timeout_seconds),
        # The user is the image's own, a number: a platform that assigns user ids (OpenShift) can put its own there.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        # Soft: a zone or node that has no room must not keep a worker from starting. Given at all, these replace
        # the scheduler's own defaults, so nodes are named too.
        "topologySpreadConstraints": [
            _spread("topology.kubernetes.io/zone", selector),
            _spread("kubernetes.io/hostname", selector),
        ],
        "containers": [container],
        "volumes": [{"name": name, "emptyDir": {"sizeLimit": SCRATCH_LIMIT}} for name in ("tmp", "data")],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    return pod


def _probe(path: str, timing: ProbeTiming) -> JsonObject:
    return {
        "httpGet": {"path": path, "port": METRICS_PORT_NAME},
        "periodSeconds": timing.period,
        "timeoutSeconds": timing.timeout,
        "failureThreshold": timing.failures,
    }


def _spread(topology_key: str, selector: Mapping[str, str]) -> JsonObject:
    return {
        "maxSkew": 1,
        "topologyKey": topology_key,
        "whenUnsatisfiable": "ScheduleAnyway",
        # Old and new pods of a rollout are spread each by itself.
        "matchLabelKeys": ["pod-template-hash"],
        "labelSelector": {"matchLabels": dict(selector)},
    }
