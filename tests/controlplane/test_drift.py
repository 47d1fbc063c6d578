"""What others change or delete in our objects comes back within seconds, and what they add stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_operator import naming
from synapse_operator.api.reasons import Reason
from synapse_operator.cluster.apply import carry_out
from synapse_operator.cluster.client import Client, load_configuration
from synapse_operator.desired.manifest import Manifest
from synapse_operator.naming import Kind, Ref
from synapse_operator.observed import Child
from synapse_operator.plan import Apply, Cause, Plan
from synapse_operator.telemetry import Metrics
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually

DRIFT = {
    "an image": ("Deployment", ["set", "image", "deployment/{name}", "worker=elsewhere/image:1"]),
    "replicas": ("Deployment", ["scale", "deployment/{name}", "--replicas=9"]),
    "a deleted deployment": ("Deployment", ["delete", "deployment", "{name}"]),
    "a deleted service": ("Service", ["delete", "service", "{name}"]),
    "a deleted config map": ("ConfigMap", ["delete", "configmap", "{name}"]),
    "a deleted budget": ("PodDisruptionBudget", ["delete", "pdb", "{name}"]),
    "a deleted account": ("ServiceAccount", ["delete", "serviceaccount", "{name}"]),
    "a label": ("Service", ["label", "service", "{name}", naming.SCALE_LABEL + "-"]),
    "the managed-by label": ("Deployment", ["label", "deployment", "{name}", naming.MANAGED_BY_LABEL + "-"]),
    "an owner": (
        "Service",
        ["patch", "service", "{name}", "--type=json", "-p", '[{"op":"remove","path":"/metadata/ownerReferences"}]'],
    ),
    "a port": (
        "Service",
        ["patch", "service", "{name}", "--type=json", "-p", '[{"op":"replace","path":"/spec/ports/0/port","value":1}]'],
    ),
    "a second way to budget": (
        "PodDisruptionBudget",
        [
            *("patch", "pdb", "{name}", "--type=merge", "-p", '{"spec":{"maxUnavailable":null,"minAvailable":1}}'),
        ],
    ),
    "a URL of somebody else": ("Deployment", ["set", "env", "deployment/{name}", "REDIS_URL=redis://elsewhere"]),
}


@pytest.fixture(scope="module")
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """An operator that would not look again for an hour: what repairs is the watch."""
    with Operator(plane, RESYNC_SECONDS="3600") as operator:
        yield operator.lead()
        operator.terminate()


@pytest.fixture(scope="module")
def drift_ns(plane: ControlPlane, operator: Operator) -> str:
    """A namespace with one scale for all tests of this module."""
    plane.apply(
        harness.namespace("drift"), harness.secret("drift", "redis://127.0.0.1:1", "postgresql://127.0.0.1:1/d")
    )
    plane.apply(harness.scale("drift"))
    plane.await_children("drift")
    return "drift"


@pytest.mark.parametrize("what", DRIFT)
def test_drift_is_repaired_within_seconds(plane: ControlPlane, drift_ns: str, what: str) -> None:
    kind, command = DRIFT[what]
    before = essence(plane.child(drift_ns, kind))
    plane.kubectl(*(part.replace("{name}", before["name"]) for part in command), "-n", drift_ns)
    eventually(f"{what} is put right", lambda: essence(plane.child(drift_ns, kind)) == before, seconds=5)


async def test_what_was_taken_away_is_not_brought_back_by_an_apply_meant_for_it(
    plane: ControlPlane, ns: str, tmp_path: Path
) -> None:
    """As it goes when a scale is deleted, and its children with it, while it is looked at."""
    ref = Ref(Kind.CONFIG_MAP, ns, "gone")
    wanted = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "gone", "namespace": ns}}
    plane.apply(wanted)
    live = Child.read(Kind.CONFIG_MAP, plane.get(ns, "configmap", "gone"))
    step = Apply(Manifest(ref, "", wanted), Cause.CHANGED, None, live)
    plane.operator_kubeconfig(tmp_path / "kubeconfig")
    client = Client(await load_configuration(str(tmp_path / "kubeconfig")), Metrics())
    try:
        assert (await carry_out(client, Plan(apply=(step,)))).applied == (ref,)
        plane.kubectl("delete", "configmap", "gone", "-n", ns)
        report = await carry_out(client, Plan(apply=(step,)))
    finally:
        await client.close()
    assert [failure.reason for failure in report.failures] == [Reason.CLUSTER_UNAVAILABLE]
    assert "gone" not in [each["metadata"]["name"] for each in plane.find(ns, ["configmaps"])]


def essence(child: harness.Json) -> harness.Json:
    """What of a child is ours and must come back."""
    if not child:
        return {}
    metadata = child["metadata"]
    spec = dict(child.get("spec") or {})
    spec.pop("clusterIP", None)
    spec.pop("clusterIPs", None)
    owners = [owner["uid"] for owner in metadata.get("ownerReferences", [])]
    return {
        "name": metadata["name"],
        "labels": metadata["labels"],
        "owners": owners,
        "spec": spec,
        "data": child.get("data"),
    }


def test_what_others_add_is_left_alone(plane: ControlPlane, ns: str, operator: Operator) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    name = plane.child(ns, "Deployment")["metadata"]["name"]
    plane.kubectl("annotate", "deployment", name, "-n", ns, "team=blue")
    plane.kubectl("rollout", "restart", f"deployment/{name}", "-n", ns)
    plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=2")
    eventually("two replicas", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 2)
    deployment = plane.child(ns, "Deployment")
    assert deployment["metadata"]["annotations"]["team"] == "blue"
    assert "kubectl.kubernetes.io/restartedAt" in deployment["spec"]["template"]["metadata"]["annotations"]
