"""What a spec says beside its stores: the overlay, the pause, the NetworkPolicy, the budget, certificates."""

from __future__ import annotations

import base64
import json

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually

pytestmark = pytest.mark.usefixtures("operator")

OVERLAY: Json = {
    "labels": {"team": "a"},
    "annotations": {"note": "größe"},
    "resources": {"requests": {"cpu": 1, "memory": "1.5Gi"}, "limits": {"memory": "2Gi"}},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 1, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}}
            ]
        }
    },
    "topologySpreadConstraints": [{"topologyKey": "rack"}],
    "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"},
    "env": [
        {"name": "LOG_LEVEL", "value": "debug"},
        {"name": "EMPTY", "value": ""},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "a"}}},
    ],
    "envFrom": [{"prefix": "X_", "configMapRef": {"name": "more", "optional": True}}],
    "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}, {"name": "more", "emptyDir": {}}],
    "volumeMounts": [
        {"name": "models", "mountPath": "/models", "readOnly": True},
        {"name": "more", "mountPath": "/more", "readOnly": False},
    ],
}


def quiet(plane: ControlPlane, operator: Operator, namespace: str) -> None:
    """Check that ten more looks write no child: what was applied is what the server stored."""
    mark, reconciles = plane.audit_mark(), operator.reconciles()
    eventually("ten more looks", lambda: operator.reconciles() >= reconciles + 10, seconds=60)
    writes = [
        call for call in plane.writes(mark) if call.namespace == namespace and call.resource != "synapsescales/status"
    ]
    assert [call for call in writes if call.resource != "events"] == []


def test_a_whole_overlay_is_applied_once(plane: ControlPlane, ns: str, operator: Operator) -> None:
    plane.apply(harness.scale(ns, workers={"template": OVERLAY}))
    plane.await_children(ns)
    pod = plane.child(ns, "Deployment")["spec"]["template"]
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["spec"]["nodeSelector"] == {"disk": "ssd"}
    container = pod["spec"]["containers"][0]
    assert container["resources"] == {
        "requests": {"cpu": "1", "memory": "1536Mi"},
        "limits": {"memory": "2Gi"},
    }
    assert {entry["name"] for entry in container["env"]} >= {"REDIS_URL", "LOG_LEVEL", "EMPTY", "NODE", "TOKEN"}
    role = OVERLAY["serviceAccountAnnotations"]
    assert role.items() <= plane.child(ns, "ServiceAccount")["metadata"]["annotations"].items()
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied")
    quiet(plane, operator, ns)


BAD_OVERLAYS: dict[str, tuple[Json, str]] = {
    "quantity": (
        {"volumes": [{"name": "x", "emptyDir": {"sizeLimit": "lots"}}]},
        "quantities must match the regular expression",
    ),
    "name of a resource": ({"resources": {"limits": {"a b": 1}}}, "must be a standard resource for containers"),
    "request above limit": (
        {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}},
        "must be less than or equal to memory limit",
    ),
    "mount of nothing": ({"volumeMounts": [{"name": "none", "mountPath": "/x"}]}, 'Not found: "none"'),
    "two sources": ({"volumes": [{"name": "x", "emptyDir": {}, "secret": {"secretName": "s"}}]}, "more than 1 volume"),
    "unknown source": ({"volumes": [{"name": "x", "diskette": {}}]}, "diskette: field not declared in schema"),
    "affinity": ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity: field not declared in schema"),
    "label key": ({"labels": {"a b": "c"}}, "a b"),
    "toleration": ({"tolerations": [{"value": "a"}]}, "operator must be Exists when `key` is empty"),
}


@pytest.mark.parametrize("name", BAD_OVERLAYS)
def test_an_overlay_that_the_server_refuses_is_said_and_no_pod_is_touched(
    plane: ControlPlane, ns: str, name: str
) -> None:
    template, sentence = BAD_OVERLAYS[name]
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    before = plane.child(ns, "Deployment")
    plane.apply(harness.scale(ns, workers={"template": template}))
    condition = plane.await_condition(ns, "ChildrenApplied", "False", "Refused")
    assert sentence in condition["message"]
    assert before["metadata"]["name"] in condition["message"]
    assert plane.await_condition(ns, "Stalled", "True", "Refused")["message"].startswith(condition["message"])
    assert plane.child(ns, "Deployment")["spec"] == before["spec"]
    plane.apply(harness.scale(ns, workers={"template": {"labels": {"now": "good"}}}))
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied")


def test_a_paused_scale_is_left_alone_and_goes_on_afterwards(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.PAUSED_ANNOTATION}=true")
    plane.await_condition(ns, "Paused", "True", "PausedByAnnotation")
    name = plane.child(ns, "Service")["metadata"]["name"]
    plane.kubectl("delete", "service", name, "-n", ns)
    plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=4")
    eventually(
        "the status of the new spec",
        lambda: plane.get(ns, "sscale", "main")["status"]["workers"]["desired"] == 4,
    )
    assert plane.child(ns, "Deployment")["spec"]["replicas"] == 1
    assert plane.child(ns, "Service") == {}
    plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.PAUSED_ANNOTATION}-")
    plane.await_condition(ns, "Paused", "False", "NotPaused", seconds=40)
    eventually("four replicas", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 4)
    eventually("the Service is back", lambda: plane.child(ns, "Service"))


def test_a_network_policy_comes_follows_the_url_and_goes(plane: ControlPlane, ns: str, operator: Operator) -> None:
    name = naming.network_policy_name("main")
    extra = {"to": [{"podSelector": {"matchLabels": {"app": "model"}}}], "ports": [{"port": 8000, "protocol": "TCP"}]}
    plane.apply(harness.scale(ns, networkPolicy={"enabled": True, "extraEgress": [extra]}))
    policy = eventually("the policy", lambda: plane.get(ns, "networkpolicy", name))
    assert policy["spec"]["egress"][-1] == extra
    plane.await_children(ns)
    quiet(plane, operator, ns)
    plane.apply(harness.secret(ns, "redis://127.0.0.1:7000/0", "postgresql://127.0.0.1:1/db"))
    eventually(
        "the port of the new URL",
        lambda: {"port": 7000, "protocol": "TCP"} in plane.get(ns, "networkpolicy", name)["spec"]["egress"][1]["ports"],
    )
    plane.apply(harness.scale(ns))
    eventually("the policy goes", lambda: not plane.get(ns, "networkpolicy", name))


def test_a_disruption_budget_goes_and_comes(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    plane.apply(harness.scale(ns, podDisruptionBudget={"enabled": False}))
    eventually("the budget goes", lambda: not plane.child(ns, "PodDisruptionBudget"))
    plane.apply(harness.scale(ns))
    eventually("the budget is back", lambda: plane.child(ns, "PodDisruptionBudget"))


def test_certificates_are_mounted_and_their_absence_is_said(plane: ControlPlane, ns: str) -> None:
    reference = {"name": "ca", "key": "ca.crt"}
    redis = {"urlSecretRef": {"name": "stores", "key": "redis"}, "caSecretRef": reference}
    plane.apply(harness.scale(ns, redis=redis))
    condition = plane.await_condition(ns, "Ready", "False", "SecretNotFound")
    assert condition["message"].startswith("redis.caSecretRef: Secret ca does not exist")
    pem = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").decode()
    plane.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "namespace": ns}, "data": {"ca.crt": pem}}
    )
    plane.await_children(ns)
    pod = plane.child(ns, "Deployment")["spec"]["template"]
    assert "redis-ca" in {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    other = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n").decode()
    plane.kubectl("patch", "secret", "ca", "-n", ns, "--type=merge", "-p", json.dumps({"data": {"ca.crt": other}}))
    eventually("new pods", lambda: plane.child(ns, "Deployment")["spec"]["template"] != pod)


def test_names_at_their_limits(plane: ControlPlane, ns: str) -> None:
    longest = "a." + "b" * 251
    plane.apply(harness.scale(ns, longest, queue={"shards": 2}, networkPolicy={"enabled": True}))
    eventually("both shards", lambda: set(plane.deployments(ns, longest)) == {"0", "1"})
    names = [(child["kind"], child["metadata"]["name"]) for child in plane.children(ns, longest)]
    assert len(names) == len(set(names)) == 8
    assert all(len(name) <= 63 for _, name in names)
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied", scale=longest)
