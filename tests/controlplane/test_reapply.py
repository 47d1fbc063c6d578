"""What is applied again changes nothing, and an upgrade from the release before keeps what users made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ROOT, ControlPlane, Json, Operator, eventually
from tests.controlplane.stores import Stores

INSTALL = ROOT / "manifests" / "install.yaml"
BEFORE = ROOT / "tests" / "fixtures" / "install-before.yaml"
SAMPLES = ROOT / "manifests" / "samples"


def difference(plane: ControlPlane, *arguments: str, stdin: str = "") -> str:
    """What `kubectl diff` prints; 1 is its exit code for a difference."""
    done = plane.try_kubectl("diff", "--server-side", "-f", *arguments, stdin=stdin)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def all_generations(plane: ControlPlane, ns: str) -> dict[str, int]:
    return {each["metadata"]["name"]: each["metadata"]["generation"] for each in plane.find(ns, ["sscale", "stenant"])}


def install(plane: ControlPlane, path: Path) -> None:
    plane.kubectl("apply", "--server-side", "-f", str(path))
    for plural in (naming.SCALE_PLURAL, naming.TENANT_PLURAL):
        plane.kubectl("wait", "--for=condition=Established", "crd", f"{plural}.{naming.GROUP}")


@pytest.fixture
def before(plane: ControlPlane) -> Iterator[None]:
    """The release before, installed; afterwards the present one is again."""
    install(plane, BEFORE)
    yield
    install(plane, INSTALL)


def test_an_upgrade_keeps_what_users_made(plane: ControlPlane, ns: str, stores: Stores, before: None) -> None:
    made = [
        harness.scale(ns, workers={"replicas": 2}, queue={"shards": 2}),
        harness.tenant(ns, "acme", maxConcurrentRuns=3),
    ]
    plane.apply(*made)
    uids = [plane.get(ns, kind, name)["metadata"]["uid"] for kind, name in (("sscale", "main"), ("stenant", "acme"))]
    plane.kubectl("wait", "--for=jsonpath={.spec.queue.shards}=2", "sscale/main", "-n", ns, "--timeout=5s")

    install(plane, INSTALL)
    assert difference(plane, str(INSTALL)) == ""
    with Operator(plane) as operator:
        operator.lead()
        eventually("its shards", lambda: len(plane.deployments(ns)) == 2)
        plane.make_pods_ready(ns)
        plane.await_condition(ns, "Ready", "True", "WorkersReady")
        told = plane.await_tenant(ns, "acme", "TenantStored")
        assert told["metadata"]["generation"] == 1
        assert [plane.get(ns, "sscale", "main")["metadata"]["uid"], told["metadata"]["uid"]] == uids
        # What the present release has beside it can be used on what the one before stored.
        plane.apply(
            harness.scale(ns, workers={"replicas": 2}, queue={"shards": 2}, tenancy={"isolation": True}),
            harness.tenant(ns, "acme", maxConcurrentRuns=3, workers={"replicas": 1}),
        )
        eventually("workers of its own", lambda: naming.tenant_shard("acme") in plane.deployments(ns))
        operator.terminate()
    for plural in (naming.SCALE_PLURAL, naming.TENANT_PLURAL):
        crd = json.loads(plane.kubectl("get", "crd", f"{plural}.{naming.GROUP}", "-o", "json"))
        assert crd["status"]["storedVersions"] == [naming.VERSION]


def test_install_yaml_applied_again_is_no_difference(plane: ControlPlane) -> None:
    install(plane, INSTALL)
    assert difference(plane, str(INSTALL)) == ""


def test_the_samples_applied_again_are_no_difference_while_the_operator_works(
    plane: ControlPlane, ns: str, stores: Stores, operator: Operator
) -> None:
    assert operator.running
    scale = harness.scale(ns, tenancy={"isolation": True}, api={"enabled": True}, workers={"replicas": 1})
    made: list[Json] = [scale, harness.tenant(ns, "own", workers={"replicas": 1})]
    for file in ("quickstart.yaml", "tenants.yaml"):
        for document in yaml.safe_load_all((SAMPLES / file).read_text(encoding="utf-8")):
            if document["kind"] in (naming.SCALE_KIND, naming.TENANT_KIND):
                document["metadata"]["namespace"] = ns
                made.append(document)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    plane.await_tenant(ns, "own", "TenantStored")
    plane.await_condition(ns, "ChildrenApplied", "True")
    generations = all_generations(plane, ns)

    def versions() -> list[str]:
        return [each["metadata"]["resourceVersion"] for each in plane.find(ns, ["sscale", "stenant"])]

    def undisturbed() -> list[str]:
        """What kubectl says, unless a status was written between its two reads of an object: that it would show."""
        before, said = versions(), difference(plane, "-", stdin=text)
        return [said] if versions() == before else []

    assert eventually("nothing is written while kubectl compares", undisturbed, seconds=30) == [""]
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=text)
    assert all_generations(plane, ns) == generations
