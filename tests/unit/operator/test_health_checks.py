"""What Argo CD and kstatus make of the statuses that the operator writes: the shipped Lua is run, in Lua 5.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.api.tenant import SynapseTenant
from synapse_operator.desired import desired_for_scale
from synapse_operator.naming import GROUP, PAUSED_ANNOTATION, SCALE_KIND, TENANT_KIND, Kind
from synapse_operator.observed import Child, SecretMissing, Unreachable
from synapse_operator.plan import ApplyReport
from synapse_operator.status import invalid_status, next_status
from synapse_operator.tenant_status import next_status as next_tenant_status
from synapse_operator.tenants import Verdict
from tests.builders import (
    HASH_KEY,
    IMAGE,
    NOW,
    a_deployment_status,
    a_pod,
    a_scale,
    a_tenant,
    an_invalid_scale,
    an_observed,
    children_of,
    what_is_desired,
)

ROOT = Path(__file__).parents[3]
SCRIPTS: dict[str, str] = yaml.safe_load((ROOT / "manifests" / "argocd" / "argocd-cm.yaml").read_text())["data"]


def argo(kind: str, body: JsonObject) -> str:
    """Run the check as Argo CD does: `obj` is the object, the answer a table of status and message."""
    lua = LuaRuntime()
    lua.globals().obj = lua.table_from(body, recursive=True)
    answer = lua.execute(SCRIPTS[f"resource.customizations.health.{GROUP}_{kind}"])
    assert isinstance(answer.message, str)
    return str(answer.status)


def kstatus(body: JsonObject) -> str:
    """The rules of kstatus for a kind that it does not know (sigs.k8s.io/cli-utils, pkg/kstatus)."""
    status, metadata = body.get("status") or {}, body["metadata"]
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if status.get("observedGeneration", metadata["generation"]) != metadata["generation"]:
        return "InProgress"
    held = {each["type"]: each["status"] for each in status.get("conditions") or ()}
    if held.get("Reconciling") == "True":
        return "InProgress"
    if held.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if held.get("Ready", "True") != "True" else "Current"


SCALE = a_scale()
ALL = children_of(what_is_desired(SCALE))


def a_status(**changes: Any) -> JsonObject:
    """The status of a scale; by default one whose workers are ready."""
    scale = changes.pop("scale", SCALE)
    report = changes.pop("report", ApplyReport())
    observed = an_observed(**{"children": ALL, **changes})
    desired = desired_for_scale(scale, observed, default_image=IMAGE, hash_key=HASH_KEY)
    status = next_status(scale, desired, observed, report, previous={}, now=NOW, figures=True)
    assert status is not None
    return status


def _workers(**status: Any) -> tuple[Child, ...]:
    return tuple(
        Child.read(child.ref.kind, child.raw | {"status": a_deployment_status(1, **status)})
        if child.ref.kind is Kind.DEPLOYMENT
        else child
        for child in ALL
    )


PAUSED = a_scale(annotations={PAUSED_ANNOTATION: "true"})
PULL = {"children": _workers(ready=0), "pods": (a_pod(waiting={"reason": "ImagePullBackOff"}),)}
INVALID = invalid_status(an_invalid_scale(), previous={}, now=NOW)
ROLLS = tuple(
    Child.read(child.ref.kind, child.raw | {"status": a_deployment_status(2, updated=1)})
    if child.ref.kind is Kind.DEPLOYMENT
    else child
    for child in ALL
)

SCALES = {
    "ready": (a_status(), "Healthy", "Current"),
    "new": (a_status(children=()), "Progressing", "InProgress"),
    "workers start": (a_status(children=_workers(ready=0)), "Progressing", "InProgress"),
    "a rollout": (a_status(children=ROLLS), "Progressing", "InProgress"),
    "an image that cannot be pulled": (a_status(**PULL), "Degraded", "Failed"),
    "redis away": (a_status(redis=Unreachable("away")), "Degraded", "InProgress"),
    "postgres away": (a_status(postgres=Unreachable("away")), "Degraded", "InProgress"),
    "a missing secret": (
        a_status(redis_url=SecretMissing("there is none")),
        "Degraded",
        "Failed",
    ),
    "paused": (a_status(scale=PAUSED), "Suspended", "Current"),
    "unreadable": (INVALID, "Degraded", "Failed"),
    "off": (a_status(scale=a_scale(spec={"enabled": False})), "Progressing", "InProgress"),
}


@pytest.mark.parametrize("case", SCALES)
def test_a_scale(case: str) -> None:
    status, health, progress = SCALES[case]
    body = {"metadata": {"name": "demo", "generation": 1}, "status": status}
    assert (argo(SCALE_KIND, body), kstatus(body)) == (health, progress)


TENANTS = {
    Reason.TENANT_STORED: "Healthy",
    Reason.NOT_MIGRATED: "Progressing",
    Reason.NOT_TRIED: "Progressing",
    Reason.SCALE_NOT_FOUND: "Progressing",
    Reason.DUPLICATE_TENANT_ID: "Degraded",
    Reason.NOT_MANAGED: "Degraded",
    Reason.ISOLATION_OFF: "Degraded",
    Reason.WORKERS_UNUSED: "Degraded",
    Reason.POSTGRES_UNREACHABLE: "Degraded",
    Reason.POSTGRES_UNUSABLE: "Degraded",
    Reason.INVALID_SPEC: "Degraded",
}


@pytest.mark.parametrize("reason", TENANTS)
def test_a_tenant(reason: Reason) -> None:
    tenant: SynapseTenant = a_tenant("acme")
    status = next_tenant_status(tenant, Verdict(reason, "why"), previous={}, now=NOW, figures=True).status
    body = {"metadata": {"name": "acme", "generation": 1}, "status": status}
    assert argo(TENANT_KIND, body) == TENANTS[reason]
    assert kstatus(body) == ("Current" if reason is Reason.TENANT_STORED else "InProgress")


@pytest.mark.parametrize("kind", [SCALE_KIND, TENANT_KIND])
def test_what_was_not_looked_at_yet_or_goes_is_on_its_way(kind: str) -> None:
    ready = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True", "reason": "X", "message": ""}]}
    metadata: JsonObject = {"name": "a", "generation": 1}
    assert argo(kind, {"metadata": metadata, "status": ready}) == "Healthy"
    assert argo(kind, {"metadata": metadata}) == "Progressing"
    assert argo(kind, {"metadata": metadata, "status": {"observedGeneration": 1}}) == "Progressing"
    assert argo(kind, {"metadata": {**metadata, "generation": 2}, "status": ready}) == "Progressing"
    going = {**metadata, "deletionTimestamp": "2026-11-24T12:00:00Z"}
    assert argo(kind, {"metadata": going, "status": ready}) == "Progressing"
    assert kstatus({"metadata": {**metadata, "generation": 2}, "status": ready}) == "InProgress"


def test_both_kinds_are_judged_by_the_same_rules() -> None:
    assert len(SCRIPTS) == 2
    assert len(set(SCRIPTS.values())) == 1
