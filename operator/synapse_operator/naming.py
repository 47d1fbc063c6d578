"""Every name, label, annotation and hash of what the operator owns.

Builders, observer and status all take them from here, so that what one writes another finds. Pure rules
over strings; which objects exist and what is in them is the business of `desired` and `observed`.

Lengths. A SynapseScale may be named with up to 253 characters, its children may not: a label value and a
Service hold 63. A Deployment holds less, since the names of its pods add a ReplicaSet hash and a suffix, and
a pod's name is its host name and with that the worker id (a longer one would be cut, and two workers would
share an id). A name is a readable prefix, the child's role and a hash of the full name, so that two scales
whose names begin alike never meet.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from pydantic import SecretStr

GROUP = "scale.synapseorch.com"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
SCALE_KIND = "SynapseScale"
SCALE_PLURAL = "synapsescales"
TENANT_KIND = "SynapseTenant"
TENANT_PLURAL = "synapsetenants"

FIELD_MANAGER = "synapse-operator"
"""The one owner of all fields that we apply; its entry in managedFields is how drift is found."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
SCALE_LABEL = f"{GROUP}/scale"
TENANT_LABEL = f"{GROUP}/tenant"
"""On what belongs to one SynapseTenant alone: its name, shortened as a scale's."""
ROLE_LABEL = f"{GROUP}/role"
SHARD_LABEL = f"{GROUP}/shard"
MANAGED_SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"
"""Label selector of everything we own, in any namespace: what the watches ask the server for."""

SYNC_LABEL = f"{GROUP}/sync"
"""On a user's ConfigMap of definitions: the scale whose sync it wakes. On our own ConfigMaps it is empty: kopf asks the
server for one selector of a kind, and it has no OR, so this key stands on all ConfigMaps that we watch."""
SYNC_NOW_ANNOTATION = f"{GROUP}/sync-now"
"""On a scale: any new value has everything synced at once."""

HASH_ANNOTATION = f"{GROUP}/applied-hash"
"""On each child: hash of the manifest as we applied it."""
CONFIG_HASH_ANNOTATION = f"{GROUP}/config-hash"
"""On the pod template: hash of what a worker reads at start, so that a change rolls the pods."""

STORED_ANNOTATION = f"{GROUP}/stored-settings"
"""On the pod template: hash of the stored settings that stand in for variables; kept while they cannot be read."""

TEMPLATE_SECRETS_ANNOTATION = f"{GROUP}/template-secrets"
"""On the pod template: keyed hash of the Secrets that the overlay's variables name; kept while one cannot be read."""

POD_ANNOTATIONS = (CONFIG_HASH_ANNOTATION, STORED_ANNOTATION, TEMPLATE_SECRETS_ANNOTATION)
"""Annotations of a worker pod that nobody else may set."""

DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
"""Kubernetes' own: of several pods it takes those with less first."""
PAUSED_ANNOTATION = f"{GROUP}/paused"
"""On a SynapseScale: its children are left alone while it is there and not `false`."""

DRAIN_FINALIZER = f"{GROUP}/drain"
"""On a SynapseTenant that has a queue of its own: it stays until that is empty, or the wait is over."""
SKIP_DRAIN_ANNOTATION = f"{GROUP}/skip-drain"
"""On a SynapseTenant: its deletion does not wait for its queue while it is there and not `false`."""

POD_LABELS = (
    *("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/part-of"),
    *(MANAGED_BY_LABEL, SCALE_LABEL, ROLE_LABEL, SHARD_LABEL),
)
"""Labels of a worker pod that nobody else may set: selectors and watches depend on them."""

TMP_VOLUME, DATA_VOLUME, REDIS_CA_VOLUME, POSTGRES_CA_VOLUME = VOLUMES = ("tmp", "data", "redis-ca", "postgres-ca")
"""Volumes of a worker pod that we make."""

TMP_PATH, DATA_PATH, REDIS_CA_PATH, POSTGRES_CA_PATH = MOUNT_PATHS = (
    *("/tmp", "/data"),  # noqa: S108
    *("/etc/synapse/redis-ca", "/etc/synapse/postgres-ca"),
)
"""Where a worker sees them."""

WORKER_ROLE = "worker"
API_ROLE = "api"

LABEL_VALUE_LENGTH = 63
SERVICE_NAME_LENGTH = 63
POD_NAME_LENGTH = 63
_REPLICA_SET_SUFFIX = len("-") + 10
_POD_SUFFIX = len("-") + 5
DEPLOYMENT_NAME_LENGTH = POD_NAME_LENGTH - _REPLICA_SET_SUFFIX - _POD_SUFFIX

_NAME_HASH_LENGTH = 8
_CONTENT_HASH_LENGTH = 16
_TENANT_HASH_LENGTH = 12


class Kind(Enum):
    """A kind of child: its name, API group ("" = core), version and plural in URLs."""

    SERVICE_ACCOUNT = ("ServiceAccount", "", "v1", "serviceaccounts")
    CONFIG_MAP = ("ConfigMap", "", "v1", "configmaps")
    DEPLOYMENT = ("Deployment", "apps", "v1", "deployments")
    POD_DISRUPTION_BUDGET = ("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets")
    SERVICE = ("Service", "", "v1", "services")
    NETWORK_POLICY = ("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies")
    POD_MONITOR = ("PodMonitor", "monitoring.coreos.com", "v1", "podmonitors")

    def __init__(self, kind: str, group: str, version: str, plural: str) -> None:
        self.kind = kind
        self.group = group
        self.version = version
        self.plural = plural

    @property
    def api_version(self) -> str:
        """The `apiVersion` of a manifest."""
        return f"{self.group}/{self.version}" if self.group else self.version


WATCHED = tuple(kind for kind in Kind if kind is not Kind.POD_MONITOR)
"""Kinds of children that wake the operator. The other need not exist in a cluster; it is looked at in each resync."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Which object: kind, namespace and name."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.name}"


def service_account_name(scale: str) -> str:
    """Return the name of the workers' ServiceAccount (stable: cloud trust policies name it)."""
    return _child_name(scale, "workers", limit=LABEL_VALUE_LENGTH)


def deployment_name(scale: str, shard: str) -> str:
    """Return the name of the Deployment that serves `shard`: an index, `tenants` (the tenant pool), or one tenant's."""
    return _child_name(scale, WORKER_ROLE, shard, limit=DEPLOYMENT_NAME_LENGTH)


def tenant_shard(tenant_id: str) -> str:
    """Return what stands for the shard of one tenant's own workers in names and labels: any string may be an id."""
    return f"tenant-{hashlib.sha256(tenant_id.encode()).hexdigest()[:_TENANT_HASH_LENGTH]}"


def metrics_service_name(scale: str) -> str:
    """Return the name of the Service that lists all workers for scrapers."""
    return _child_name(scale, "metrics", limit=SERVICE_NAME_LENGTH)


def api_name(scale: str) -> str:
    """Return the name of the V2 API's Deployment, Service and PodDisruptionBudget."""
    return _child_name(scale, API_ROLE, limit=DEPLOYMENT_NAME_LENGTH)


def network_policy_name(scale: str) -> str:
    """Return the name of the NetworkPolicy of the workers."""
    return _child_name(scale, "workers", limit=LABEL_VALUE_LENGTH)


def pod_monitor_name(scale: str) -> str:
    """Return the name of the PodMonitor of the workers."""
    return _child_name(scale, "workers", limit=LABEL_VALUE_LENGTH)


METRICS_TOKEN_KEY = "token"  # noqa: S105  # the name of a key


def metrics_token_secret_name(scale: str) -> str:
    """Return the name of the Secret that holds the token of the metrics, where the operator makes it."""
    return _child_name(scale, "metrics-token", limit=LABEL_VALUE_LENGTH)


def config_map_name(scale: str, data: Mapping[str, str]) -> str:
    """Return the name of the ConfigMap that holds `data`: other data, other name."""
    return _child_name(scale, "env", limit=LABEL_VALUE_LENGTH, also=content_hash(dict(data)))


def expected_refs(
    namespace: str,
    scale: str,
    *,
    shards: Sequence[str],
    budgets: bool,
    network_policy: bool,
    api: bool,
    pod_monitor: bool,
) -> tuple[Ref, ...]:
    """Return the children whose names do not depend on their content.

    An observer that lists by label asks for these by name too: one that lost its labels, or that somebody
    else made under our name, is not in the list.

    Args:
        namespace: of the scale and its children.
        scale: its name.
        shards: shards with a Deployment each.
        budgets: whether each of them has a PodDisruptionBudget.
        network_policy: whether there is a NetworkPolicy.
        api: whether the V2 API is served.
        pod_monitor: whether there is a PodMonitor.
    """
    deployments = [*(deployment_name(scale, shard) for shard in shards), *(api_name(scale) for _ in range(api))]
    return (
        Ref(Kind.SERVICE_ACCOUNT, namespace, service_account_name(scale)),
        *(Ref(Kind.DEPLOYMENT, namespace, name) for name in deployments),
        *(Ref(Kind.POD_DISRUPTION_BUDGET, namespace, name) for name in deployments if budgets),
        Ref(Kind.SERVICE, namespace, metrics_service_name(scale)),
        *(Ref(Kind.SERVICE, namespace, api_name(scale)) for _ in range(api)),
        *(Ref(Kind.NETWORK_POLICY, namespace, network_policy_name(scale)) for _ in range(network_policy)),
        *(Ref(Kind.POD_MONITOR, namespace, pod_monitor_name(scale)) for _ in range(pod_monitor)),
    )


def scale_label(scale: str) -> str:
    """Return the label value that stands for the scale: its name, shortened with a hash beyond 63 characters."""
    if len(scale) <= LABEL_VALUE_LENGTH:
        return scale
    digest = _name_hash(scale)
    return f"{scale[: LABEL_VALUE_LENGTH - len(digest) - 1].rstrip('-.')}-{digest}"


def child_labels(scale: str) -> dict[str, str]:
    """Return the labels of every child."""
    return {
        "app.kubernetes.io/name": "synapse-worker",
        "app.kubernetes.io/instance": scale_label(scale),
        "app.kubernetes.io/part-of": "synapse",
        MANAGED_BY_LABEL: FIELD_MANAGER,
        SCALE_LABEL: scale_label(scale),
    }


def worker_selector(scale: str) -> dict[str, str]:
    """Return the labels that select all worker pods of the scale."""
    return {SCALE_LABEL: scale_label(scale), ROLE_LABEL: WORKER_ROLE}


def shard_selector(scale: str, shard: str) -> dict[str, str]:
    """Return the labels that select the workers of one shard: a Deployment's selector, which can never change."""
    return {**worker_selector(scale), SHARD_LABEL: shard}


def api_selector(scale: str) -> dict[str, str]:
    """Return the labels that select the pods of the V2 API."""
    return {SCALE_LABEL: scale_label(scale), ROLE_LABEL: API_ROLE}


def selector_text(labels: Mapping[str, str]) -> str:
    """Return labels as a selector, in order: what the API server and `status.selector` take."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def content_hash(value: object) -> str:
    """Return a short hash of JSON-like data that holds no secret; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_CONTENT_HASH_LENGTH]


def secret_fingerprint(values: Mapping[str, SecretStr], *, scale_uid: str, key: SecretStr) -> str:
    """Return a hash that changes when a secret does, and from which a short password cannot be guessed.

    Args:
        values: what the secrets are for -> their values.
        scale_uid: UID of the scale, so that two scales with one password do not show it.
        key: the installation's own secret key. Without it the hash could be searched offline.
    """
    mac = hmac.new(key.get_secret_value().encode(), digestmod=hashlib.sha256)
    for part in (scale_uid, *(text for name in sorted(values) for text in (name, values[name].get_secret_value()))):
        data = part.encode()
        mac.update(len(data).to_bytes(8, "big") + data)
    return mac.hexdigest()[:_CONTENT_HASH_LENGTH]


def _child_name(scale: str, *roles: str, limit: int, also: str = "") -> str:
    """Return `<start of the scale's name>-<roles>-<hash>`, a DNS label of at most `limit` characters."""
    tail = "-".join((*roles, _name_hash(scale, *roles, also)))
    head = scale.replace(".", "-")
    if not head[0].isalpha():
        head = f"s-{head}"  # the name of a Service begins with a letter
    return f"{head[: limit - len(tail) - 1].rstrip('-')}-{tail}"


def _name_hash(*parts: str) -> str:
    # "/" occurs in no Kubernetes name, so no two lists of parts read the same.
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:_NAME_HASH_LENGTH]
