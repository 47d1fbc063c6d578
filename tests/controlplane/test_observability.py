"""spec.observability against an API server: the generated token, PodMonitors where the kind is known and where not."""

from __future__ import annotations

import base64

from synapse_operator import naming
from tests.controlplane import harness, pod_monitors
from tests.controlplane.harness import ControlPlane, Operator, eventually

TOKEN_SECRET = naming.metrics_token_secret_name("main")


def token(plane: ControlPlane, namespace: str) -> str:
    """The generated token, "" when there is none."""
    found = plane.get(namespace, "secret", TOKEN_SECRET)
    return base64.b64decode(found["data"]["token"]).decode() if found else ""


def pod_template(plane: ControlPlane, namespace: str) -> object:
    return plane.child(namespace, "Deployment")["spec"]["template"]


def test_the_token_is_made_once_and_outlives_everything_but_the_scale(plane: ControlPlane, ns: str) -> None:
    """It survives a restart of the operator, and a deletion: the same one comes back, and no pod is replaced."""
    with Operator(plane) as operator:
        operator.lead()
        plane.apply(harness.scale(ns))
        plane.await_children(ns)
        made, pods = token(plane, ns), pod_template(plane, ns)
        assert len(made) == 64
        operator.terminate()
    with Operator(plane) as operator:
        operator.lead()
        eventually("it has looked", lambda: operator.reconciles() >= 1)
        assert token(plane, ns) == made
        plane.kubectl("delete", "secret", TOKEN_SECRET, "-n", ns)
        plane.kubectl("annotate", "sscale", "main", "-n", ns, "look=again")
        eventually("the token is back", lambda: token(plane, ns), seconds=90)
        assert token(plane, ns) == made
        assert pod_template(plane, ns) == pods
        owners = plane.get(ns, "secret", TOKEN_SECRET)["metadata"]["ownerReferences"]
        assert [owner["kind"] for owner in owners] == ["SynapseScale"]


def test_a_secret_of_somebody_else_under_that_name_is_left_alone(
    plane: ControlPlane, ns: str, operator: Operator
) -> None:
    theirs = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": TOKEN_SECRET, "namespace": ns}}
    plane.apply({**theirs, "stringData": {"token": "theirs"}})
    plane.apply(harness.scale(ns))
    condition = plane.await_condition(ns, "Ready", "False", "SecretUnreadable")
    assert "does not belong to this SynapseScale" in condition["message"]
    assert "theirs" not in condition["message"].replace("Secret of yours", "")
    assert token(plane, ns) == "theirs"


def test_a_pod_monitor_where_the_cluster_knows_the_kind_and_where_not(
    plane: ControlPlane, ns: str, operator: Operator
) -> None:
    plane.kubectl("delete", "crd", pod_monitors.NAME, "--ignore-not-found")
    wanted = {"podMonitor": {"enabled": True, "labels": {"release": "stack"}}}
    plane.apply(harness.scale(ns, observability=wanted))
    condition = plane.await_condition(ns, "ChildrenApplied", "False", "KindAbsent")
    assert "PodMonitor" in condition["message"]
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= {child["kind"] for child in plane.children(ns)}

    pod_monitors.install(plane)
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied", seconds=90)
    monitor = pod_monitors.of_scale(plane, ns)
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": TOKEN_SECRET, "key": "token"}
    assert monitor["metadata"]["labels"]["release"] == "stack"
    plane.apply(harness.scale(ns))
    eventually("it goes", lambda: not pod_monitors.of_scale(plane, ns))
