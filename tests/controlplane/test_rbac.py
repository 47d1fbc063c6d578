"""The operator's rights are what it uses, no more and no less: the rules against the audit log.

One test takes the operator through everything that it does, under its own service account.
"""

from __future__ import annotations

import json
from functools import partial
from typing import NamedTuple

from synapse_operator import naming
from tests.controlplane import harness, pod_monitors
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.controlplane.stores import Stores


class Right(NamedTuple):
    """One verb on one resource, subresource included."""

    group: str
    resource: str
    verb: str


CONTRADICTIONS = {
    "Service": [{"op": "replace", "path": "/spec/ports/0/port", "value": 1}],
    "PodDisruptionBudget": [
        {"op": "remove", "path": "/spec/maxUnavailable"},
        {"op": "add", "path": "/spec/minAvailable", "value": 1},
    ],
    "Deployment": [
        {"op": "remove", "path": "/spec/template/spec/containers/0/env/0/valueFrom"},
        {"op": "add", "path": "/spec/template/spec/containers/0/env/0/value", "value": "redis://elsewhere"},
    ],
}
"""JSON patches after which a plain apply of our fields would be invalid."""

NEVER_CALLED = {Right(naming.GROUP, "synapsescales/finalizers", "update")}
"""Asked for by an admission plugin that this control plane does not run; the manifest says so."""


def test_the_rules_cover_the_calls_and_nothing_more(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.kubectl(
        "delete", "secret", "synapse-operator-hash-key", "-n", harness.OPERATOR_NAMESPACE, "--ignore-not-found"
    )
    plane.kubectl("delete", "lease", harness.LEASE, "-n", harness.OPERATOR_NAMESPACE, "--ignore-not-found")
    # Those could have the turns to replace pods.
    eventually("scales of namespaces that are going are gone", partial(none_is_going, plane), seconds=60)
    mark = plane.audit_mark()
    with Operator(plane) as operator:
        operator.lead()
        plane.apply(harness.definitions(ns, agent="id: helper\nsystem_prompt: Help.\n"))
        sources = [{"configMapRef": {"name": "definitions"}}]
        plane.apply(harness.scale(ns, sync={"sources": sources}), harness.tenant(ns, "acme"))
        plane.await_children(ns)
        plane.await_condition(ns, "DefinitionsSynced", "True", "Synced")
        plane.await_tenant(ns, "acme", "TenantStored")
        # Two changes of the environment leave an old ConfigMap to delete.
        for concurrency in (5, 6, 7):
            plane.apply(harness.scale(ns, workers={"concurrency": concurrency}))
            eventually("the new environment", partial(has_concurrency, plane, ns, str(concurrency)))
            plane.make_pods_ready(ns)
        eventually("old ConfigMaps are deleted", partial(was_deleted, plane, mark, "configmaps"))
        # When there are to be fewer workers, those that run jobs are marked.
        plane.apply(harness.scale(ns, workers={"replicas": 3}))
        eventually("three workers", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 3)
        plane.make_pods_ready(ns)
        stores.claim("default", "job", plane.find(ns, ["pods"])[0]["metadata"]["name"])
        plane.apply(harness.scale(ns, workers={"replicas": 1}))
        eventually("the busy one is marked", partial(was_patched, plane, mark, "pods"))
        # Additions that make our apply invalid are put right by an update.
        for kind, patch in CONTRADICTIONS.items():
            name = plane.child(ns, kind)["metadata"]["name"]
            plane.kubectl("patch", kind, name, "-n", ns, "--type=json", "-p", json.dumps(patch))
            eventually(f"{kind} is put right", partial(was_updated, plane, mark, f"{kind}s".lower()))
        # What the spec takes away is deleted, a shard once it is drained.
        pod_monitors.install(plane)
        monitored = {"podMonitor": {"enabled": True}}
        everything = {"networkPolicy": {"enabled": True}, "observability": monitored, "api": {"enabled": True}}
        plane.apply(harness.scale(ns, queue={"shards": 2}, **everything))
        eventually("two shards and the API", lambda: len(plane.deployments(ns)) == 3)
        plane.make_pods_ready(ns)
        eventually("producers are told", lambda: (row := stores.topology()) and row.topology.shards == 2)
        plane.apply(harness.scale(ns, podDisruptionBudget={"enabled": False}))
        for resource in ("poddisruptionbudgets", "networkpolicies", "podmonitors", "services", "deployments"):
            eventually(f"{resource} are deleted", partial(was_deleted, plane, mark, resource), seconds=90)
        # Under isolation a tenant is held while its queue is worked off.
        plane.apply(harness.scale(ns, tenancy={"isolation": True}))
        eventually("it is held", lambda: plane.get(ns, "stenant", "acme")["metadata"].get("finalizers"))
        stores.put("acme", "job")
        plane.kubectl("delete", "stenant", "acme", "-n", ns, "--wait=false")
        plane.await_tenant(ns, "acme", "Draining")
        operator.terminate()

    calls = [call for call in plane.audit(mark) if call.resource]
    # A namespace of another test that is going refuses what is created in it.
    here = ("", ns, harness.OPERATOR_NAMESPACE)
    assert [call for call in calls if call.code == 403 and call.namespace in here] == []
    used = {Right(call.group, call.resource, call.verb) for call in calls}
    # The log calls an apply that made the object a patch; the authorizer asked for create too.
    used |= {Right(call.group, call.resource, "create") for call in calls if call.verb == "patch" and call.code == 201}
    granted = rights(plane)
    assert used - granted == set()
    assert granted - used == NEVER_CALLED


def none_is_going(plane: ControlPlane) -> bool:
    going = [each["metadata"]["name"] for each in plane.find("", ["ns"]) if "deletionTimestamp" in each["metadata"]]
    return all(each["metadata"]["namespace"] not in going for each in plane.find("", ["sscale"]))


def was_deleted(plane: ControlPlane, mark: int, resource: str) -> bool:
    return any(call.verb == "delete" and call.resource == resource and call.code == 200 for call in plane.audit(mark))


def was_patched(plane: ControlPlane, mark: int, resource: str) -> bool:
    return any(call.verb == "patch" and call.resource == resource and call.code == 200 for call in plane.audit(mark))


def was_updated(plane: ControlPlane, mark: int, resource: str) -> bool:
    calls = plane.audit(mark)
    return any(call.verb == "update" and call.resource == resource and call.code == 200 for call in calls)


def has_concurrency(plane: ControlPlane, namespace: str, value: str) -> bool:
    maps = [child for child in plane.children(namespace) if child["kind"] == "ConfigMap"]
    return any(child["data"].get("WORKER_CONCURRENCY") == value for child in maps)


def rights(plane: ControlPlane) -> set[Right]:
    """What install.yaml grants the operator."""
    rules = [
        rule
        for kind in ("clusterrole", "role")
        for rule in json.loads(
            plane.kubectl("get", kind, "synapse-operator", "-n", harness.OPERATOR_NAMESPACE, "-o", "json")
        )["rules"]
    ]
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_users_get_what_their_role_in_the_namespace_says(plane: ControlPlane, ns: str) -> None:
    for role in ("view", "edit", "admin"):
        plane.kubectl("create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}", "-n", ns)

    def may(user: str, verb: str, subresource: str = "", plural: str = naming.SCALE_PLURAL) -> bool:
        resource = f"{plural}.{naming.GROUP}"
        who, what = f"--as={user}", f"--subresource={subresource}"
        return plane.try_kubectl("auth", "can-i", verb, resource, what, "-n", ns, who).stdout.strip() == "yes"

    # The roles are gathered by a controller.
    eventually("view may read", lambda: may("view", "list"))
    eventually("edit may write", lambda: may("edit", "create"))
    assert not may("view", "create")
    assert not may("view", "patch", "scale")
    for user in ("edit", "admin"):
        assert all(may(user, verb) for verb in ("get", "create", "update", "patch", "delete"))
        assert may(user, "patch", "scale")
        for plural in (naming.SCALE_PLURAL, naming.TENANT_PLURAL):
            assert not may(user, "patch", "status", plural)
            assert may(user, "create", plural=plural)
    for verb in ("get", "list", "watch"):
        assert may("view", verb, plural=naming.TENANT_PLURAL)
    for verb in ("create", "update", "patch", "delete", "deletecollection"):
        assert not may("view", verb, plural=naming.TENANT_PLURAL)
        assert all(may(user, verb, plural=naming.TENANT_PLURAL) for user in ("edit", "admin"))
