"""A SynapseScale's life in the cluster: what users see when something is wrong, and that it leaves nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Place
from tests.support.kube import a_scale, apply, condition, eventually, get, items, kubectl, namespace

OWNED = "deploy,replicaset,pod,service,configmap,serviceaccount,pdb,secret,endpointslice"


@pytest.fixture
def empty(operator: None) -> Iterator[str]:
    """A restricted namespace with nothing in it."""
    name = f"e2e-life-{os.getpid()}"
    kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(namespace(name)))
    yield name
    kubectl("delete", "namespace", name, "--ignore-not-found", "--timeout=60s")


def has(name: str, scale: str, kind: str, status: str, reason: str, *words: str) -> None:
    """Wait until a condition says this, with these words in its sentence."""

    def says() -> bool:
        found = condition(get("sscale", scale, "-n", name), kind)
        return (
            found["status"] == status and found["reason"] == reason and all(word in found["message"] for word in words)
        )

    try:
        eventually(f"{kind}={status} ({reason}) with {words}", says, seconds=60)
    except TimeoutError as error:
        found = get("sscale", scale, "-n", name).get("status")
        raise AssertionError(f"{error}: {json.dumps(found, indent=1)}") from None


def test_a_missing_secret_becomes_a_condition_and_its_coming_repairs_it(empty: str) -> None:
    apply(a_scale("lonely"), namespace=empty)
    has(empty, "lonely", "Ready", "False", "SecretNotFound", "synapse-redis")
    assert items("deploy", "-n", empty) == []
    kubectl("apply", "--server-side", "-n", empty, "-k", "manifests/dev/local")
    eventually(
        "the SynapseScale is Ready once its Secrets are there",
        lambda: condition(get("sscale", "lonely", "-n", empty), "Ready")["status"] == "True",
        seconds=150,
    )
    shown = kubectl("get", "sscale", "-n", empty)
    assert shown.split()[:7] == ["NAME", "READY", "SHARDS", "WORKERS", "QUEUED", "ACTIVE", "AGE"]
    assert "1/1" in shown


def test_an_image_that_cannot_be_pulled_becomes_a_condition(empty: str) -> None:
    kubectl("apply", "--server-side", "-n", empty, "-k", "manifests/dev/local")
    scale = a_scale("wrong")
    scale["spec"]["image"] = "localhost/no-such-image:1"
    apply(scale, namespace=empty)
    has(empty, "wrong", "Ready", "False", "ImagePullFailed", "localhost/no-such-image:1")


def test_a_quota_becomes_a_condition_with_the_servers_words(empty: str) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none"},
        "spec": {"hard": {"pods": "0"}},
    }
    apply(quota, namespace=empty)
    for name in ("redis", "postgres"):
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"synapse-{name}"},
            "stringData": {"url": f"{'redis' if name == 'redis' else 'postgresql'}://127.0.0.1:1/0"},
        }
        apply(secret, namespace=empty)
    apply(a_scale("crowded"), namespace=empty)
    has(empty, "crowded", "ChildrenApplied", "False", "QuotaExceeded", "quota")


def test_deleting_a_scale_leaves_no_labelled_object(place: Place) -> None:
    apply(a_scale("gone", replicas=1), namespace=place.namespace)
    label = "scale.synapseorch.com/scale=gone"
    # Not Ready yet: its container is about to start, or has just started and hears no signal of its own yet.
    eventually("the scale's pods are there", lambda: items("pod", "-n", place.namespace, "-l", label) != [])
    kubectl("delete", "sscale", "gone", "-n", place.namespace, "--timeout=30s")
    eventually(
        "nothing labelled is left",
        lambda: items(OWNED, "-n", place.namespace, "-l", label) == [],
        seconds=90,
    )


@pytest.mark.timeout(200)
def test_a_namespace_goes_while_the_operator_is_down(empty: str) -> None:
    kubectl("apply", "--server-side", "-n", empty, "-k", "manifests/dev/local")
    apply(a_scale("orphan"), namespace=empty)
    eventually("the operator has seen it", lambda: "status" in get("sscale", "orphan", "-n", empty))
    kubectl("scale", "deploy/synapse-operator", "-n", "synapse-system", "--replicas=0")
    try:
        kubectl("delete", "namespace", empty, "--timeout=100s")
        assert get("namespace", empty) == {}
    finally:
        kubectl("scale", "deploy/synapse-operator", "-n", "synapse-system", "--replicas=1")
        kubectl("rollout", "status", "deploy/synapse-operator", "-n", "synapse-system", "--timeout=120s")
