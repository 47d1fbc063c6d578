"""A SynapseScale from its creation to its end, against a real control plane."""

from __future__ import annotations

import json
import time

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.support.servers import RedisServer

pytestmark = pytest.mark.usefixtures("operator")


def test_the_children_appear_owned_labelled_and_once(plane: ControlPlane, live_ns: str) -> None:
    plane.apply(harness.scale(live_ns, workers={"replicas": 3, "concurrency": 7}))
    children = plane.await_children(live_ns)
    uid = plane.get(live_ns, "sscale", "main")["metadata"]["uid"]
    assert sorted(child["kind"] for child in children) == [
        "ConfigMap",
        "Deployment",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ]
    for child in children:
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [uid]
        assert child["metadata"]["labels"][naming.MANAGED_BY_LABEL] == naming.FIELD_MANAGER
        assert "finalizers" not in child["metadata"]
        assert not any("kopf" in key for key in child["metadata"]["annotations"])
    deployment = plane.child(live_ns, "Deployment")
    assert deployment["spec"]["replicas"] == 3
    config_map = plane.child(live_ns, "ConfigMap")
    assert config_map["immutable"] is True
    assert config_map["data"]["WORKER_CONCURRENCY"] == "7"


def test_both_stores_are_reached_and_a_scale_whose_pods_are_ready_is_ready(plane: ControlPlane, live_ns: str) -> None:
    plane.apply(harness.scale(live_ns, workers={"replicas": 2}))
    plane.await_condition(live_ns, "RedisReachable", "True")
    plane.await_condition(live_ns, "PostgresReachable", "True")
    plane.await_condition(live_ns, "Ready", "False", "WorkersNotReady")
    plane.make_pods_ready(live_ns)
    plane.kubectl("wait", "--for=condition=Ready", "sscale/main", "-n", live_ns, "--timeout=20s")
    stored = plane.get(live_ns, "sscale", "main")
    assert stored["status"]["observedGeneration"] == stored["metadata"]["generation"]
    assert "finalizers" not in stored["metadata"]
    assert not any("kopf" in key for key in stored["metadata"].get("annotations", {}))


def test_columns(plane: ControlPlane, live_ns: str) -> None:
    plane.apply(harness.scale(live_ns, workers={"replicas": 2}))
    plane.await_children(live_ns)
    plane.make_pods_ready(live_ns)
    plane.await_condition(live_ns, "Ready", "True")
    # Figures follow within their rhythm.
    eventually(
        "the queue's figures", lambda: "queued" in (plane.get(live_ns, "sscale", "main")["status"].get("queue") or {})
    )
    header, row = plane.kubectl("get", "sscale", "-n", live_ns).splitlines()
    assert header.split() == ["NAME", "READY", "SHARDS", "WORKERS", "QUEUED", "ACTIVE", "AGE"]
    assert row.split()[:6] == ["main", "True", "1", "2/2", "0", "0"]
    header, row = plane.kubectl("get", "sscale", "-n", live_ns, "-o", "wide").splitlines()
    assert [word for word in header.split() if word in ("REDIS", "POSTGRES", "IMAGE", "REASON")]
    assert harness.WORKER_IMAGE in row


def test_kubectl_scale_changes_the_workers(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=4")
    eventually("four replicas", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 4)


def test_a_missing_secret_is_said_and_touches_no_child(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    before = {child["metadata"]["name"]: child for child in plane.await_children(ns)}
    plane.kubectl("delete", "secret", "stores", "-n", ns)
    plane.kubectl("patch", "sscale", "main", "-n", ns, "--type=merge", "-p", '{"spec":{"workers":{"replicas":5}}}')
    condition = plane.await_condition(ns, "Ready", "False", "SecretNotFound")
    assert "stores" in condition["message"]
    assert plane.condition(ns, "Stalled")["status"] == "True"
    after = {child["metadata"]["name"]: child for child in plane.children(ns)}
    assert {
        name: child["metadata"]["generation"] for name, child in after.items() if child["kind"] == "Deployment"
    } == {name: child["metadata"]["generation"] for name, child in before.items() if child["kind"] == "Deployment"}
    assert set(after) == set(before)
    plane.apply(harness.secret(ns, "redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/db"))
    eventually("five replicas", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 5)


def test_unreachable_stores_are_said_in_sentences_without_their_secrets(
    plane: ControlPlane, ns: str, operator: Operator
) -> None:
    plane.apply(harness.scale(ns))
    redis = plane.await_condition(ns, "RedisReachable", "False", "RedisUnreachable")
    postgres = plane.await_condition(ns, "PostgresReachable", "False", "PostgresUnreachable")
    assert redis["message"].startswith("Redis cannot be reached")
    assert postgres["message"].startswith("PostgreSQL cannot be reached")
    plane.await_children(ns)
    everything = plane.find(ns, ["sscale", *harness.CHILD_KINDS, "replicasets", "pods", "events"])
    for text in (json.dumps(everything), operator.log):
        assert "hidden-redis-word" not in text
        assert "hidden-postgres-word" not in text


def test_a_rotated_secret_rolls_the_pods_and_a_resize_does_not(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)

    def template() -> object:
        return plane.child(ns, "Deployment")["spec"]["template"]

    first = template()
    plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=2")
    eventually("two replicas", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 2)
    assert template() == first
    plane.apply(harness.secret(ns, "redis://:another@127.0.0.1:1/0", "postgresql://127.0.0.1:1/db"))
    eventually("another template", lambda: template() != first)


def test_an_object_that_somebody_else_made_under_our_name_is_not_taken(plane: ControlPlane, ns: str) -> None:
    name = naming.metrics_service_name("main")
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"ports": [{"port": 1}]},
    }
    plane.apply(foreign)
    plane.apply(harness.scale(ns))
    condition = plane.await_condition(ns, "ChildrenApplied", "False", "NameTaken")
    assert name in condition["message"]
    assert plane.get(ns, "service", name)["spec"]["ports"][0]["port"] == 1


def test_a_quota_is_said_with_the_servers_sentence_and_nothing_loops(
    plane: ControlPlane, ns: str, operator: Operator
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": ns},
        "spec": {"hard": {"count/deployments.apps": "0"}},
    }
    plane.apply(quota)
    eventually("the quota counts", lambda: "hard" in (plane.get(ns, "resourcequota", "none").get("status") or {}))
    plane.apply(harness.scale(ns))
    condition = plane.await_condition(ns, "ChildrenApplied", "False", "QuotaExceeded")
    assert "exceeded quota: none" in condition["message"]
    mark, reconciles, began = plane.audit_mark(), operator.reconciles(), time.monotonic()
    eventually("ten more looks at the scales", lambda: operator.reconciles() >= reconciles + 10, seconds=40)
    tries = [call for call in plane.writes(mark) if call.namespace == ns and call.resource == "deployments"]
    # One for each resync; a hot loop would try dozens of times.
    assert 1 <= len(tries) <= 2 + (time.monotonic() - began) / (0.75 * harness.RESYNC_SECONDS)
    plane.kubectl("delete", "resourcequota", "none", "-n", ns)
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied", seconds=40)


def test_pods_that_a_quota_refuses_are_said(plane: ControlPlane, ns: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none", "namespace": ns},
        "spec": {"hard": {"pods": "0"}},
    }
    plane.apply(quota)
    eventually("the quota counts", lambda: "hard" in (plane.get(ns, "resourcequota", "none").get("status") or {}))
    plane.apply(harness.scale(ns))
    condition = plane.await_condition(ns, "ChildrenApplied", "False", "QuotaExceeded", seconds=40)
    assert "exceeded quota" in condition["message"]


def test_events_tell_each_transition_once(plane: ControlPlane, live_ns: str) -> None:
    plane.apply(harness.scale(live_ns))
    plane.await_children(live_ns)
    plane.make_pods_ready(live_ns)
    plane.await_condition(live_ns, "Ready", "True")

    def ours() -> list[str]:
        events = plane.find(live_ns, ["events.v1.events.k8s.io"])
        return sorted(event["reason"] for event in events if event["regarding"]["kind"] == naming.SCALE_KIND)

    eventually("its Events", lambda: "BecameReady" in ours())
    assert len(ours()) == len(set(ours())), ours()
    assert "Created" in ours()


def test_a_redis_that_may_drop_keys_is_said(plane: ControlPlane, ns: str) -> None:
    class Evicting(RedisServer):
        def command(self) -> list[str]:
            return [*super().command(), "--maxmemory-policy", "allkeys-lru"]

    server = Evicting()
    server.start()
    try:
        plane.apply(harness.secret(ns, server.url, "postgresql://127.0.0.1:1/db"))
        plane.apply(harness.scale(ns))
        condition = plane.await_condition(ns, "RedisSafe", "False", "EvictionPolicy")
        assert "allkeys-lru" in condition["message"]
        server.stop()
        plane.await_condition(ns, "RedisReachable", "False", "RedisUnreachable")
        server.start()
        plane.await_condition(ns, "RedisReachable", "True")
    finally:
        server.remove()


def test_deleting_a_scale_leaves_no_labelled_object(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns), harness.scale(ns, "other"))
    plane.await_children(ns)
    others = {child["metadata"]["name"] for child in plane.await_children(ns, "other")}
    plane.kubectl("delete", "sscale", "main", "-n", ns, "--timeout=30s")
    kinds = [*harness.CHILD_KINDS, "replicasets", "pods"]
    selector = f"{naming.SCALE_LABEL}=main"
    eventually("nothing is left", lambda: not plane.find(ns, kinds, selector), seconds=40)
    assert {child["metadata"]["name"] for child in plane.children(ns, "other")} == others


def test_a_scale_made_again_under_the_same_name_gets_new_children(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns))
    plane.await_children(ns)
    old = plane.get(ns, "sscale", "main")["metadata"]["uid"]
    plane.kubectl("delete", "sscale", "main", "-n", ns, "--wait=false")
    plane.apply(harness.scale(ns))
    new = plane.get(ns, "sscale", "main")["metadata"]["uid"]
    assert new != old

    def all_new() -> bool:
        owners = [child["metadata"]["ownerReferences"][0]["uid"] for child in plane.children(ns)]
        return len(owners) == len(harness.CHILD_KINDS) and set(owners) == {new}

    eventually("all children belong to the new one", all_new, seconds=40)
