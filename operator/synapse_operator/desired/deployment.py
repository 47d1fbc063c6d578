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
from synapse_operator.api.overlay import Resources, SpreadConstraint, rendered
from synapse_operator.api.scale import SynapseScale
from synapse_operator.api.workers import WorkersSpec
from synapse_operator.desired.environment import CA_FILE, POSTGRES_URL, REDIS_URL, s3_keys, url_variable
from synapse_operator.desired.manifest import Manifest, manifest
from synapse_operator.desired.observability import secret_references
from synapse_operator.desired.service import METRICS_PORT_NAME
from synapse_operator.desired.shards import Shard
from synapse_operator.naming import Kind
from synapse_worker import contract
from synapse_worker.contract import ProbeTiming

CONTAINER = "worker"

DEFAULT_RESOURCES: Mapping[str, Mapping[str, str]] = {
    # An idle worker with its interpreters takes 150 MB; ten agent steps with their answers take a few hundred.
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"cpu": "2", "memory": "1Gi"},
}

SCRATCH_LIMIT = "1Gi"
"""Of each writable folder; without a bound one job could fill the node's disk."""

DEFAULT_SPREAD = tuple(
    SpreadConstraint(topology_key=key) for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
)
"""Soft: a zone or node that has no room must not keep a worker from starting. Given at all, these replace the
scheduler's own defaults, so nodes are named too."""

OLD_REPLICA_SETS = 1
"""Kept for `kubectl rollout undo`; `plan` keeps the ConfigMap that belongs to it."""


def worker_deployment(
    scale: SynapseScale,
    shard: Shard,
    *,
    image: str,
    config_map: Manifest,
    stored: str,
    template_secrets: str,
    secrets: Mapping[str, SecretStr],
    hash_key: SecretStr,
) -> Manifest:
    """Return the Deployment that serves `shard`.

    Args:
        scale: the owner.
        shard: the shard, with how many workers and what they are like.
        image: their image.
        config_map: the ConfigMap with their variables.
        stored: hash of the stored settings that they read at their start.
        template_secrets: hash of the Secrets that their overlay's variables name; "" = none.
        secrets: variable -> what a worker reads from a Secret (URLs, certificates); only a keyed fingerprint of them
            gets into the manifest.
        hash_key: key of that fingerprint.
    """
    name, workers = scale.metadata.name, shard.workers
    selector = naming.shard_selector(name, shard.name)
    labels = naming.child_labels(name) | selector
    pod: JsonObject = {
        "metadata": {
            "labels": {**workers.template.labels, **labels},
            "annotations": dict(workers.template.annotations),
        },
        "spec": worker_pod_spec(scale, workers, selector, image, config_map.ref.name),
    }
    with_hashes(pod, scale, stored=stored, template_secrets=template_secrets, secrets=secrets, hash_key=hash_key)
    spec = {
        **({} if shard.handed_over else {"replicas": shard.replicas}),
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
        "template": pod,
    }
    whose = {naming.TENANT_LABEL: naming.scale_label(shard.tenant)} if shard.tenant else {}
    return manifest(
        scale, Kind.DEPLOYMENT, naming.deployment_name(name, shard.name), {"spec": spec}, labels=selector | whose
    )


def with_hashes(
    pod: JsonObject,
    scale: SynapseScale,
    *,
    stored: str,
    template_secrets: str,
    secrets: Mapping[str, SecretStr],
    hash_key: SecretStr,
) -> None:
    """Note on a pod template what its pods read at their start, so that a change rolls them.

    Args:
        pod: the template, complete but for that.
        scale: the owner.
        stored, template_secrets, secrets, hash_key: as for `worker_deployment`.
    """
    annotations = pod["metadata"]["annotations"]
    annotations[naming.STORED_ANNOTATION] = stored
    if template_secrets:
        annotations[naming.TEMPLATE_SECRETS_ANNOTATION] = template_secrets
    # The pod names the ConfigMap, whose name is a hash of what is in it.
    fingerprint = naming.secret_fingerprint(secrets, scale_uid=scale.metadata.uid, key=hash_key)
    annotations[naming.CONFIG_HASH_ANNOTATION] = naming.content_hash({"pod": pod, "secrets": fingerprint})


def worker_pod_spec(
    scale: SynapseScale, workers: WorkersSpec, selector: Mapping[str, str], image: str, config_map: str
) -> JsonObject:
    """Return the pods of workers, whose labels `selector` holds."""
    spec, overlay = scale.spec, workers.template
    volumes = _volumes(scale)
    container: JsonObject = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        # Of several sources the last one wins, and `env` over all of them.
        "envFrom": [*map(rendered, overlay.env_from), {"configMapRef": {"name": config_map}}],
        "env": [
            url_variable(REDIS_URL, spec.redis.url_secret_ref, spec.redis.url),
            url_variable(POSTGRES_URL, spec.postgres.url_secret_ref, spec.postgres.url),
            *(url_variable(name, reference, None) for name, reference in secret_references(scale).items()),
            *(url_variable(name, selector, None) for name, selector in s3_keys(scale).items()),
            *map(rendered, overlay.env),
        ],
        "ports": [{"name": METRICS_PORT_NAME, "containerPort": workers.health_port, "protocol": "TCP"}],
        "startupProbe": probe("/startupz", METRICS_PORT_NAME, contract.STARTUP_PROBE),
        "readinessProbe": probe("/readyz", METRICS_PORT_NAME, contract.READINESS_PROBE),
        "livenessProbe": probe("/livez", METRICS_PORT_NAME, contract.LIVENESS_PROBE),
        "resources": _resources(overlay.resources),
        # The last lines of a worker that ended are what the condition CrashLoop shows.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [*(mount for _, mount in volumes), *map(rendered, overlay.volume_mounts)],
    }
    pod: JsonObject = {
        "serviceAccountName": overlay.service_account_name or naming.service_account_name(scale.metadata.name),
        "automountServiceAccountToken": False,
        # The variables of Services beside us are of no use here, and there may be thousands.
        "enableServiceLinks": False,
        # The kernel drops a SIGTERM for process 1 of a namespace that has not asked for it yet: a pod deleted while
        # its container starts would stay for its whole grace period. With the pause container as process 1 it ends.
        "shareProcessNamespace": True,
        "terminationGracePeriodSeconds": contract.grace_period_seconds(workers.drain_timeout_seconds),
        # The user is the image's own, a number: a platform that assigns user ids (OpenShift) can put its own there.
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [
            _spread(constraint, selector) for constraint in overlay.topology_spread_constraints or DEFAULT_SPREAD
        ],
        "containers": [container],
        "volumes": [*(volume for volume, _ in volumes), *map(rendered, overlay.volumes)],
    }
    if spec.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in spec.image_pull_secrets]
    if overlay.node_selector:
        pod["nodeSelector"] = dict(overlay.node_selector)
    if overlay.tolerations:
        pod["tolerations"] = [*map(rendered, overlay.tolerations)]
    if overlay.affinity is not None and overlay.affinity.model_extra:
        pod["affinity"] = overlay.affinity.model_extra
    if overlay.priority_class_name is not None:
        pod["priorityClassName"] = overlay.priority_class_name
    return pod


def _volumes(scale: SynapseScale) -> list[tuple[JsonObject, JsonObject]]:
    """Return our volumes, each with its mount: what a worker may write, and the certificates of the stores."""
    found: list[tuple[JsonObject, JsonObject]] = [
        ({"name": name, "emptyDir": {"sizeLimit": SCRATCH_LIMIT}}, {"name": name, "mountPath": path})
        for name, path in ((naming.TMP_VOLUME, naming.TMP_PATH), (naming.DATA_VOLUME, naming.DATA_PATH))
    ]
    for name, path, reference in (
        (naming.REDIS_CA_VOLUME, naming.REDIS_CA_PATH, scale.spec.redis.ca_secret_ref),
        (naming.POSTGRES_CA_VOLUME, naming.POSTGRES_CA_PATH, scale.spec.postgres.ca_secret_ref),
    ):
        if reference is not None:
            source = {"secretName": reference.name, "items": [{"key": reference.key, "path": CA_FILE}]}
            found.append(({"name": name, "secret": source}, {"name": name, "mountPath": path, "readOnly": True}))
    return found


def _resources(given: Resources) -> JsonObject:
    """Return requests and limits; a resource that is named in one of them takes nothing from the defaults.

    A default beside a given value may contradict it (a limit below the request), and a user could not see why.
    """
    named = given.requests.keys() | given.limits.keys()
    merged = {
        part: {**{key: value for key, value in DEFAULT_RESOURCES[part].items() if key not in named}, **values}
        for part, values in (("requests", given.requests), ("limits", given.limits))
    }
    return {part: values for part, values in merged.items() if values}


def probe(path: str, port: str, timing: ProbeTiming) -> JsonObject:
    """Return a probe of a pod's port by its name."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": timing.period,
        "timeoutSeconds": timing.timeout,
        "failureThreshold": timing.failures,
    }


def _spread(constraint: SpreadConstraint, selector: Mapping[str, str]) -> JsonObject:
    return {
        "maxSkew": constraint.max_skew,
        "topologyKey": constraint.topology_key,
        "whenUnsatisfiable": constraint.when_unsatisfiable,
        # Old and new pods of a rollout are spread each by itself.
        "matchLabelKeys": ["pod-template-hash"],
        "labelSelector": {"matchLabels": dict(selector)},
    }
