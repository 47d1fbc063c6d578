"""Tenants with queues of their own, against a real control plane and real stores: their workers and their end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.controlplane.stores import Stores

SHARD = naming.tenant_shard("acme")
ISOLATION = {"isolation": True}


@pytest.fixture
def isolated(plane: ControlPlane, ns: str, stores: Stores, operator: Operator) -> Iterator[Stores]:
    """The stores of a scale whose tenants have queues of their own, which the pool serves."""
    assert operator.running
    plane.apply(harness.scale(ns, tenancy=ISOLATION))
    eventually("the pool", lambda: "tenants" in plane.deployments(ns))
    plane.make_pods_ready(ns)
    eventually("producers are told", lambda: (row := stores.topology()) and row.topology.isolation)
    yield stores
    # Nothing may hold the namespace, whatever a test left.
    plane.kubectl("delete", "sscale", "--all", "-n", ns, "--wait=false")


def row(stores: Stores, tenant_id: str = "acme") -> Json:
    """The tenant's row, {} = there is none."""
    found = stores.ask("SELECT * FROM tenants WHERE tenant_id = $1", tenant_id)
    return found[0] if found else {}


def held(plane: ControlPlane, ns: str, name: str = "acme") -> bool:
    return naming.DRAIN_FINALIZER in (plane.get(ns, "stenant", name)["metadata"].get("finalizers") or [])


def make(plane: ControlPlane, ns: str, name: str = "acme", **spec: Any) -> None:
    plane.apply(harness.tenant(ns, name, **spec))
    plane.await_tenant(ns, name, "TenantStored")


def served_by(plane: ControlPlane, ns: str) -> str:
    return str((plane.get(ns, "stenant", "acme").get("status") or {}).get("servedBy"))


# ---- workers of its own


def test_a_tenant_gets_workers_of_its_own_and_gives_them_back(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, workers={"replicas": 2, "concurrency": 3})
    own = eventually("its Deployment", lambda: plane.deployments(ns).get(SHARD))
    assert own["spec"]["replicas"] == 2
    assert own["metadata"]["labels"][naming.TENANT_LABEL] == "acme"
    assert own["metadata"]["ownerReferences"][0]["kind"] == "SynapseScale"
    # The pool serves until they are ready.
    assert row(isolated)["dedicated"] is False
    assert served_by(plane, ns) == "tenants"
    plane.make_pods_ready(ns)
    eventually("the pool is told", lambda: row(isolated)["dedicated"])
    eventually("the status says so", lambda: served_by(plane, ns) == own["metadata"]["name"])
    shards = plane.get(ns, "sscale", "main")["status"]["shards"]
    assert [(each["name"], each["queue"]) for each in shards] == [
        ("0", "default,0"),
        ("tenants", "tenants"),
        (SHARD, "acme"),
    ]

    make(plane, ns)
    eventually("they go", lambda: SHARD not in plane.deployments(ns))
    assert row(isolated)["dedicated"] is False
    eventually("the pool again", lambda: served_by(plane, ns) == "tenants")


def test_they_are_scaled_by_their_jobs_from_zero(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, workers={"autoscaling": {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 4}, "concurrency": 2})

    def replicas() -> int:
        return int(plane.deployments(ns).get(SHARD, {"spec": {"replicas": -1}})["spec"]["replicas"])

    eventually("no worker", lambda: replicas() == 0)
    eventually("the queue is theirs all the same", lambda: row(isolated)["dedicated"])
    for number in range(5):
        isolated.put("acme", f"job-{number}")
    eventually("three workers", lambda: replicas() == 3)


def test_without_isolation_they_are_not_made_and_it_says_so(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, workers={})
    eventually("its Deployment", lambda: SHARD in plane.deployments(ns))
    plane.make_pods_ready(ns)
    eventually("its workers", lambda: row(isolated)["dedicated"])
    plane.apply(harness.scale(ns))
    told = plane.await_tenant(ns, "acme", "IsolationOff")
    assert "tenancy.isolation is false" in told["status"]["conditions"][0]["message"]
    eventually("they go", lambda: SHARD not in plane.deployments(ns))
    assert row(isolated)["dedicated"] is False
    eventually("nothing holds it", lambda: not held(plane, ns))


def test_an_operator_that_starts_anew_keeps_them(
    plane: ControlPlane, ns: str, isolated: Stores, operator: Operator
) -> None:
    make(plane, ns, workers={})
    eventually("its Deployment", lambda: SHARD in plane.deployments(ns))
    plane.make_pods_ready(ns)
    eventually("its workers", lambda: row(isolated)["dedicated"])
    uid = plane.deployments(ns)[SHARD]["metadata"]["uid"]
    mark = plane.audit_mark()
    operator.terminate()
    operator.lead()
    make(plane, ns, "other")
    assert plane.deployments(ns)[SHARD]["metadata"]["uid"] == uid
    assert [call for call in plane.writes(mark) if call.resource == "deployments"] == []


# ---- its end


def going(plane: ControlPlane, ns: str, *, name: str = "acme") -> None:
    """Begin the deletion of a tenant that is held, and see that new runs are refused."""
    eventually("it is held", lambda: held(plane, ns, name))
    plane.kubectl("delete", "stenant", name, "-n", ns, "--wait=false")
    plane.await_tenant(ns, name, "Draining")


def gone(plane: ControlPlane, ns: str, name: str = "acme", *, seconds: float = 20.0) -> None:
    eventually(f"{name} is gone", lambda: not plane.get(ns, "stenant", name), seconds=seconds)


def test_its_queue_is_worked_off_before_it_goes(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, maxConcurrentRuns=7)
    isolated.put("acme", "job")
    going(plane, ns)
    eventually("new runs are refused", lambda: row(isolated)["deleting"])
    assert row(isolated)["max_concurrent_runs"] == 7
    isolated.claim("acme", "job", "worker")
    make(plane, ns, "other")  # a look meanwhile
    assert held(plane, ns)
    isolated.ask(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
        " VALUES ('r', 'o', 'acme', 'running', '{}', '[]')"
    )
    isolated.release("acme")
    make(plane, ns, "another")
    assert held(plane, ns)
    isolated.ask("UPDATE orchestration_runs SET status = 'completed'")
    gone(plane, ns)
    assert row(isolated) == {}


def test_an_idle_one_goes_at_once_and_its_workers_with_it(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, workers={})
    eventually("its workers", lambda: SHARD in plane.deployments(ns))
    eventually("it is held", lambda: held(plane, ns))
    plane.kubectl("delete", "stenant", "acme", "-n", ns, "--timeout=15s")
    assert row(isolated) == {}
    eventually("they go", lambda: SHARD not in plane.deployments(ns))


def test_the_annotation_ends_the_wait(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns)
    isolated.put("acme", "job")
    going(plane, ns)
    plane.kubectl("annotate", "stenant", "acme", "-n", ns, f"{naming.SKIP_DRAIN_ANNOTATION}=true")
    gone(plane, ns)
    assert row(isolated) == {}


def test_with_redis_gone_it_ends_by_its_deadline(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns, drainTimeoutSeconds=12)
    eventually("it is held", lambda: held(plane, ns))
    isolated.redis.stop()
    began = datetime.now(UTC)
    plane.kubectl("delete", "stenant", "acme", "-n", ns, "--wait=false")
    plane.await_tenant(ns, "acme", "Draining")
    gone(plane, ns, seconds=40)
    assert (datetime.now(UTC) - began).total_seconds() >= 11  # the API server's times are whole seconds


def test_the_deletion_of_the_scale_ends_the_wait(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns)
    isolated.put("acme", "job")
    going(plane, ns)
    plane.kubectl("delete", "sscale", "main", "-n", ns)
    gone(plane, ns)


def test_the_deletion_of_the_namespace_ends_the_wait(plane: ControlPlane, ns: str, isolated: Stores) -> None:
    make(plane, ns)
    isolated.put("acme", "job")
    going(plane, ns)
    plane.kubectl("delete", "namespace", ns, "--timeout=60s")


def test_without_isolation_nothing_is_held(plane: ControlPlane, ns: str, stores: Stores, operator: Operator) -> None:
    plane.apply(harness.scale(ns))
    make(plane, ns)
    stores.put("acme", "job")
    assert not held(plane, ns)
    plane.kubectl("delete", "stenant", "acme", "-n", ns, "--timeout=5s")
    eventually("the row is gone", lambda: row(stores) == {})
