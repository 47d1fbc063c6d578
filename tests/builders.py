"""Values that many tests of the operator begin with: a scale, what was observed of it, objects as a cluster has them.

Each function gives something ordinary and complete; a test names only what it is about.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import InvalidScale, SynapseScale, read_scale
from synapse_operator.api.tenant import SynapseTenant, read_tenant
from synapse_operator.desired import Blocked, Desired, desired_for_scale
from synapse_operator.desired.manifest import Manifest
from synapse_operator.naming import Kind
from synapse_operator.observed import (
    Child,
    Found,
    Observed,
    Overview,
    Pod,
    PostgresAnswers,
    QueueFigures,
    RedisAnswers,
    TopologyRecord,
)
from synapse_worker.routing import ONE_QUEUE

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SCALE_UID = "11111111-1111-4111-8111-111111111111"
IMAGE = "registry.example/synapse-scale-worker:1"
SCALE_UID = "11111111-1111-4111-8111-111111111111"
HASH_KEY = SecretStr("the-key-of-this-installation")
REDIS_URL = "redis://:redis-password@redis:6379/0"
POSTGRES_URL = "postgresql://synapse:postgres-password@postgres:5432/synapse"

_SPEC: JsonObject = {
    "redis": {"urlSecretRef": {"name": "stores", "key": "redis"}},
    "postgres": {"urlSecretRef": {"name": "stores", "key": "postgres"}},
}


def a_scale_body(
    *, name: str = "demo", namespace: str = "team-a", spec: Mapping[str, Any] | None = None, **metadata: Any
) -> JsonObject:
    """Return a SynapseScale as the API server would send it, without a status; `spec` fields replace ours."""
    return {
        "apiVersion": naming.API_VERSION,
        "kind": naming.SCALE_KIND,
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": SCALE_UID,
            "generation": 1,
            **metadata,
        },
        "spec": {**copy.deepcopy(_SPEC), **(spec or {})},
    }


def a_scale(
    *, name: str = "demo", namespace: str = "team-a", spec: Mapping[str, Any] | None = None, **metadata: Any
) -> SynapseScale:
    """Return a SynapseScale; arguments as for `a_scale_body`."""
    scale = read_scale(a_scale_body(name=name, namespace=namespace, spec=spec, **metadata))
    assert isinstance(scale, SynapseScale), scale
    return scale


def an_invalid_scale() -> InvalidScale:
    """Return a SynapseScale that breaks the present schema."""
    invalid = read_scale(a_scale_body(spec={"workers": {"replicas": -1}}))
    assert isinstance(invalid, InvalidScale), invalid
    return invalid


def a_tenant_body(
    name: str, /, *, scale: str = "demo", metadata: Mapping[str, Any] | None = None, **spec: Any
) -> JsonObject:
    """Return a SynapseTenant as the API server would send it, without a status."""
    return {
        "apiVersion": naming.API_VERSION,
        "kind": naming.TENANT_KIND,
        "metadata": {
            "name": name,
            "namespace": "team-a",
            "uid": f"uid-of-{name}",
            "generation": 1,
            "creationTimestamp": "2026-11-24T11:00:00Z",
            **(metadata or {}),
        },
        "spec": {"scaleRef": {"name": scale}, **spec},
    }


def a_tenant(name: str, /, **arguments: Any) -> SynapseTenant:
    """Return a SynapseTenant; arguments as for `a_tenant_body`."""
    tenant = read_tenant(a_tenant_body(name, **arguments))
    assert isinstance(tenant, SynapseTenant), tenant
    return tenant


def an_observed(**changes: Any) -> Observed:
    """Return what is seen of a scale whose stores answer and that has neither work nor children."""
    ordinary: dict[str, Any] = {
        "redis_url": Found(SecretStr(REDIS_URL)),
        "postgres_url": Found(SecretStr(POSTGRES_URL)),
        "redis_ca": None,
        "postgres_ca": None,
        "redis": RedisAnswers("7.2.4", "noeviction"),
        "postgres": PostgresAnswers(schema_version=1),
        "queues": {"default": QueueFigures(queued=0, active=0, oldest_seconds=None)},
        "topology": TopologyRecord(1, ONE_QUEUE, enabled=True, owner_uid=SCALE_UID),
        "stored": {},
        "behind": (),
        "drained": frozenset(),
        "overview": Overview(dead_letters=0, slots=10, active_jobs=0, open_jobs=0),
        "redis_owner": SCALE_UID,
        "children": (),
        "pods": (),
    }
    return Observed(**{**ordinary, **changes})


def what_is_desired(scale: SynapseScale, observed: Observed | None = None) -> Desired:
    """Return the desired children of a scale that nothing blocks."""
    desired = desired_for_scale(scale, observed or an_observed(), default_image=IMAGE, hash_key=HASH_KEY)
    assert not isinstance(desired, Blocked), desired
    return desired


def manifest_of(desired: Desired, kind: Kind) -> Manifest:
    """Return the only manifest of a kind."""
    (found,) = [manifest for manifest in desired.manifests if manifest.ref.kind is kind]
    return found


def a_live_object(
    manifest: Manifest,
    *,
    uid: str = "",
    created: str = "2026-11-24T11:00:00Z",
    status: JsonObject | None = None,
    **metadata: Any,
) -> JsonObject:
    """Return the object that an API server has after our apply of `manifest`, managedFields included."""
    live = copy.deepcopy(manifest.body)
    live["metadata"] |= {
        "uid": uid or f"uid-of-{manifest.ref.name}",
        "resourceVersion": "7",
        "generation": 1,
        "creationTimestamp": created,
        "managedFields": [
            {
                "manager": naming.FIELD_MANAGER,
                "operation": "Apply",
                "apiVersion": live["apiVersion"],
                "time": created,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields_of(manifest.body),
            }
        ],
        **metadata,
    }
    if status is not None:
        live["status"] = status
    return live


def a_child(manifest: Manifest, **arguments: Any) -> Child:
    """Return `a_live_object`, read."""
    return Child.read(manifest.ref.kind, a_live_object(manifest, **arguments))


def a_deployment_status(replicas: int, *, ready: int | None = None, updated: int | None = None) -> JsonObject:
    """Return the status of a Deployment with `replicas` pods, by default all new and ready."""
    ready = replicas if ready is None else ready
    counts = {
        "replicas": replicas,
        "updatedReplicas": replicas if updated is None else updated,
        "readyReplicas": ready,
        "availableReplicas": ready,
    }
    # The controller leaves zeros out.
    return {"observedGeneration": 1, **{key: value for key, value in counts.items() if value}}


def children_of(desired: Desired, *, ready: int | None = None) -> tuple[Child, ...]:
    """Return all children as they are once a plan was carried out, each shard with `ready` workers (default: all)."""
    return tuple(
        a_child(
            manifest,
            status=a_deployment_status(manifest.body["spec"]["replicas"], ready=ready)
            if manifest.ref.kind is Kind.DEPLOYMENT
            else None,
        )
        for manifest in desired.manifests
    )


def a_pod(
    name: str = "demo-worker-0-x",
    *,
    ready: bool = False,
    waiting: Mapping[str, str] | None = None,
    last: Mapping[str, Any] | None = None,
    restarts: int = 0,
    conditions: Iterable[Mapping[str, str]] = (),
    phase: str = "Running",
    **metadata: Any,
) -> Pod:
    """Return a worker pod, read from what the API server would send."""
    container: JsonObject = {"name": "worker", "ready": ready, "restartCount": restarts, "state": {}}
    container["state"] = {"waiting": dict(waiting)} if waiting else {"running": {}}
    if last is not None:
        container["lastState"] = {"terminated": dict(last)}
    return Pod.read(
        {
            "metadata": {"name": name, **metadata},
            "status": {
                "phase": phase,
                "conditions": [{"type": "Ready", "status": str(ready)}, *conditions],
                "containerStatuses": [container],
            },
        }
    )


def a_secret(**values: str) -> JsonObject:
    """Return a Secret as the API server would send it."""
    return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}}


_LIST_KEYS = {
    "containers": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
    "ports": ("containerPort", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
_REFERENCE_KEYS = {"ownerReferences": ("uid",), "imagePullSecrets": ("name",)}
_ATOMIC = ("selector", "labelSelector", "podSelector", "secretKeyRef")


def fields_of(body: JsonObject) -> JsonObject:
    """Return the fieldsV1 that the API server records for an apply of `body`.

    tests/unit/operator/test_managed_fields.py compares it with what a real API server recorded.
    """
    metadata = {key: value for key, value in body["metadata"].items() if key not in ("name", "namespace")}
    content = {key: value for key, value in body.items() if key not in ("apiVersion", "kind", "metadata")}
    return _tree({"metadata": metadata, **content})


def _tree(value: JsonObject) -> JsonObject:
    tree: JsonObject = {}
    for key, item in value.items():
        if isinstance(item, dict) and key not in _ATOMIC:
            tree[f"f:{key}"] = _tree(item)
        elif key in _LIST_KEYS:
            tree[f"f:{key}"] = {_item_key(_LIST_KEYS[key], entry): {".": {}, **_tree(entry)} for entry in item}
        elif key in _REFERENCE_KEYS:
            tree[f"f:{key}"] = {_item_key(_REFERENCE_KEYS[key], entry): {} for entry in item}
        else:
            tree[f"f:{key}"] = {}
    return tree


def _item_key(names: tuple[str, ...], entry: JsonObject) -> str:
    if names[0] == "containerPort" and names[0] not in entry:
        names = ("port", *names[1:])  # a Service's
    return "k:" + json.dumps({name: entry[name] for name in names}, separators=(",", ":"))
