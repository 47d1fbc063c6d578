"""Shards against a real control plane, Redis and PostgreSQL: many, more, fewer."""

from __future__ import annotations

import time

import pytest

from synapse_operator import naming
from synapse_worker.contract import MAX_SHARDS
from synapse_worker.store import topology
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, eventually
from tests.controlplane.stores import Stores

pytestmark = pytest.mark.usefixtures("operator")


def states(plane: ControlPlane, namespace: str) -> dict[str, str]:
    """The shards of the status: name -> state."""
    status: Json = plane.get(namespace, "sscale", "main").get("status") or {}
    return {shard["name"]: shard["state"] for shard in status.get("shards", [])}


def grown(plane: ControlPlane, namespace: str, stores: Stores, shards: int) -> topology.TopologyRow:
    """Have a scale of so many shards whose producers have been told."""
    plane.apply(harness.scale(namespace, queue={"shards": shards}))
    eventually("its Deployments", lambda: len(plane.deployments(namespace)) == shards, seconds=60)
    plane.make_pods_ready(namespace)

    def told() -> topology.TopologyRow | None:
        row = stores.topology()
        return row if row is not None and row.topology.shards == shards else None

    return eventually("producers are told", told)


def test_sixty_four_shards(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns, queue={"shards": MAX_SHARDS}))
    eventually("64 Deployments", lambda: len(plane.deployments(ns)) == MAX_SHARDS, seconds=90)
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied", seconds=60)
    children = plane.children(ns)
    kinds = [child["kind"] for child in children]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "Deployment": MAX_SHARDS,
        "PodDisruptionBudget": MAX_SHARDS,
        "ConfigMap": MAX_SHARDS,
        "Service": 1,
        "ServiceAccount": 1,
    }
    assert len(states(plane, ns)) == MAX_SHARDS
    header, row = plane.kubectl("get", "sscale", "-n", ns).splitlines()
    assert header.split()[2:4] == ["SHARDS", "WORKERS"]
    assert row.split()[2:4] == ["64", "0/64"]


def test_growing_tells_producers_once_the_new_workers_are_ready_and_rolls_nothing(
    plane: ControlPlane, ns: str, stores: Stores
) -> None:
    before = grown(plane, ns, stores, 1)
    first = plane.deployments(ns)["0"]
    plane.apply(harness.scale(ns, queue={"shards": 3}))
    eventually("three Deployments", lambda: len(plane.deployments(ns)) == 3)
    eventually("told as idle", lambda: states(plane, ns) == {"0": "Active", "1": "Idle", "2": "Idle"})
    assert stores.topology() == before
    plane.make_pods_ready(ns)
    eventually("all active", lambda: states(plane, ns) == dict.fromkeys("012", "Active"))
    row = stores.topology()
    assert row is not None
    assert (row.topology.shards, row.epoch) == (3, before.epoch + 1)
    assert row.owner_uid == plane.get(ns, "sscale", "main")["metadata"]["uid"]
    now = plane.deployments(ns)["0"]
    assert (now["metadata"]["generation"], now["spec"]) == (first["metadata"]["generation"], first["spec"])


def test_shrinking_waits_for_producers_and_for_the_queues(plane: ControlPlane, ns: str, stores: Stores) -> None:
    row = grown(plane, ns, stores, 3)
    stores.producer(row.epoch)
    stores.put("2", "job")
    plane.apply(harness.scale(ns, queue={"shards": 1}))
    eventually("producers are told", lambda: (found := stores.topology()) and found.topology.shards == 1)
    eventually("draining", lambda: states(plane, ns) == {"0": "Active", "1": "Draining", "2": "Draining"})
    # A producer that goes by the old row may still enqueue: both stay, longer than an empty queue is waited for.
    began = time.monotonic()
    longer = 1.5 * harness.SHARD_EMPTY_SECONDS
    eventually(f"{longer} s with a producer behind", lambda: stays(plane, ns, {"0", "1", "2"}, began, longer))
    stores.producer(row.epoch + 1)
    told = time.monotonic()
    eventually("the empty shard goes", lambda: set(plane.deployments(ns)) == {"0", "2"}, seconds=90)
    assert time.monotonic() - told >= harness.SHARD_EMPTY_SECONDS - 1
    budgets = [each for each in plane.children(ns) if each["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == 2
    stores.take("2", "job")
    eventually("the other one goes", lambda: set(plane.deployments(ns)) == {"0"}, seconds=90)
    stores.put("2", "late")
    eventually("one worker comes back", lambda: set(plane.deployments(ns)) == {"0", "2"}, seconds=40)
    assert plane.deployments(ns)["2"]["spec"]["replicas"] == 1
    assert states(plane, ns)["2"] == "Draining"


def stays(plane: ControlPlane, namespace: str, shards: set[str], began: float, seconds: float) -> bool:
    """Whether the shards have had their Deployments at every look for so long."""
    assert set(plane.deployments(namespace)) == shards
    return time.monotonic() - began >= seconds


def test_nothing_goes_while_a_store_is_away(plane: ControlPlane, ns: str, stores: Stores) -> None:
    grown(plane, ns, stores, 2)
    stores.redis.stop()
    plane.await_condition(ns, "RedisReachable", "False", "RedisUnreachable")
    plane.apply(harness.scale(ns, queue={"shards": 1}))
    eventually("producers are told", lambda: (found := stores.topology()) and found.topology.shards == 1)
    began = time.monotonic()
    longer = 2 * harness.SHARD_EMPTY_SECONDS
    eventually(f"{longer} s without Redis", lambda: stays(plane, ns, {"0", "1"}, began, longer), seconds=30)
    stores.redis.start()
    eventually("the shard goes", lambda: set(plane.deployments(ns)) == {"0"}, seconds=90)


def test_a_pool_has_other_workers(plane: ControlPlane, ns: str) -> None:
    pool = {"name": "big", "shards": [1], "replicas": 3, "concurrency": 2}
    plane.apply(harness.scale(ns, queue={"shards": 2}, pools=[pool]))
    eventually("both", lambda: set(plane.deployments(ns)) == {"0", "1"})
    assert {name: each["spec"]["replicas"] for name, each in plane.deployments(ns).items()} == {"0": 1, "1": 3}
    status = eventually("the status", lambda: plane.get(ns, "sscale", "main").get("status", {}).get("shards"))
    assert [(shard["name"], shard.get("pool")) for shard in status] == [("0", None), ("1", "big")]
    concurrency = {
        child["data"]["WORKER_QUEUE_SHARD"]: child["data"].get("WORKER_CONCURRENCY")
        for child in plane.children(ns)
        if child["kind"] == "ConfigMap"
    }
    assert concurrency == {"default,0": None, "1": "2"}


def test_a_new_image_rolls_four_deployments_at_a_time(plane: ControlPlane, ns: str) -> None:
    plane.apply(harness.scale(ns, queue={"shards": 6}))
    eventually("six Deployments", lambda: len(plane.deployments(ns)) == 6)
    plane.make_pods_ready(ns)
    plane.apply(harness.scale(ns, queue={"shards": 6}, image="other/worker:2"))

    def changed() -> int:
        images = [each["spec"]["template"]["spec"]["containers"][0]["image"] for each in plane.deployments(ns).values()]
        return images.count("other/worker:2")

    eventually("four of them", lambda: changed() == 4)
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied")
    assert changed() == 4
    plane.make_pods_ready(ns)
    eventually("all of them", lambda: changed() == 6)


def test_routes_are_told_to_producers(plane: ControlPlane, ns: str, stores: Stores) -> None:
    grown(plane, ns, stores, 2)
    plane.apply(harness.scale(ns, queue={"shards": 2, "routes": [{"shard": 1, "tenants": ["acme"]}]}))

    def told() -> bool:
        row = stores.topology()
        return row is not None and [(each.shard, each.tenants) for each in row.topology.routes] == [(1, ("acme",))]

    eventually("the route", told)
    assert naming.deployment_name("main", "1") in {each["metadata"]["name"] for each in plane.deployments(ns).values()}


def test_tenant_isolation_brings_the_pool_and_takes_it_away(plane: ControlPlane, ns: str, stores: Stores) -> None:
    grown(plane, ns, stores, 1)
    plane.apply(harness.scale(ns, tenancy={"isolation": True, "pool": {"replicas": 2}}))
    eventually("the pool", lambda: set(plane.deployments(ns)) == {"0", "tenants"})
    assert plane.deployments(ns)["tenants"]["spec"]["replicas"] == 2
    row = stores.topology()
    assert row is not None
    assert not row.topology.isolation
    plane.make_pods_ready(ns)
    eventually("producers are told", lambda: (found := stores.topology()) and found.topology.isolation)
    plane.apply(harness.scale(ns))
    eventually("and told again", lambda: (found := stores.topology()) and not found.topology.isolation)
    condition = plane.await_condition(ns, "Reconciling", "True", "Draining")
    assert condition["message"].startswith("Shards tenants work off what they hold")
    eventually("the pool goes", lambda: set(plane.deployments(ns)) == {"0"}, seconds=90)
    plane.await_condition(ns, "Reconciling", "False", "Settled")
