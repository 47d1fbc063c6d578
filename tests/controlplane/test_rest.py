"""A scale with which nothing happens costs the API server nothing, and whatever happens ends that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from synapse_operator import naming
from synapse_worker.contract import TENANT_POOL
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.controlplane.stores import Stores

RESYNC_SECONDS = 20
"""Long beside the 5 s in which the load is read, so that there are looks in between."""


@pytest.fixture(scope="module")
def operator(plane: ControlPlane) -> Iterator[Operator]:
    with Operator(plane, RESYNC_SECONDS=str(RESYNC_SECONDS)) as operator:
        yield operator.lead()
        operator.terminate()


def a_scale(namespace: str, **metadata: object) -> Json:
    scale = harness.scale(namespace, workers={"autoscaling": {"mode": "BuiltIn", "minReplicas": 1, "maxReplicas": 3}})
    scale["metadata"] |= metadata
    return scale


@pytest.fixture
def resting(plane: ControlPlane, ns: str, stores: Stores, operator: Operator) -> Stores:
    """The stores of a scale that is Ready and at rest: its looks ask the API server nothing."""
    plane.apply(a_scale(ns))
    plane.await_children(ns)
    plane.make_pods_ready(ns)
    plane.await_condition(ns, "Ready", "True")
    mark, looks = plane.audit_mark(), operator.reconciles()

    def asked_nothing() -> bool:
        nonlocal mark, looks
        if any(call.namespace == ns for call in plane.audit(mark)):
            mark, looks = plane.audit_mark(), operator.reconciles()
        return operator.reconciles() >= looks + 2

    eventually("two looks without a request", asked_nothing, seconds=60)
    return stores


def test_jobs_are_seen_at_the_next_look(plane: ControlPlane, ns: str, resting: Stores) -> None:
    for number in range(12):
        resting.put("default", f"job-{number}")
    eventually("more workers", lambda: plane.deployments(ns)["0"]["spec"]["replicas"] == 2, seconds=10)
    eventually("the figures", lambda: plane.get(ns, "sscale", "main")["status"]["queue"].get("queued") == 12)


def test_what_only_postgres_knows_is_seen_at_the_next_look(plane: ControlPlane, ns: str, resting: Stores) -> None:
    resting.ask(
        "INSERT INTO workers (worker_id, hostname, status, active_jobs, max_jobs, last_heartbeat, registered_at)"
        " VALUES ('w', 'w', 'online', 0, 7, now(), now())"
    )
    eventually(
        "its places", lambda: plane.get(ns, "sscale", "main")["status"]["workers"].get("capacity") == 7, seconds=15
    )


def test_the_queue_of_a_tenant_that_a_main_instance_made_gets_a_worker(
    plane: ControlPlane, ns: str, resting: Stores
) -> None:
    resting.ask("INSERT INTO tenants (tenant_id, name) VALUES ('acme', 'acme')")
    resting.put("acme", "job")

    def has_a_worker() -> bool:
        pool = plane.deployments(ns).get(TENANT_POOL)
        return pool is not None and pool["spec"]["replicas"] == 1

    eventually("the pool of tenants has a worker", has_a_worker, seconds=25)


def test_drift_is_put_right_at_once(plane: ControlPlane, ns: str, resting: Stores) -> None:
    name = naming.metrics_service_name("main")
    uid = plane.get(ns, "service", name)["metadata"]["uid"]
    plane.kubectl("delete", "service", name, "-n", ns)
    eventually(
        "it is back",
        lambda: (plane.get(ns, "service", name) or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid,
        seconds=5,
    )


def test_an_annotation_is_seen_at_the_next_look(plane: ControlPlane, ns: str, resting: Stores) -> None:
    plane.kubectl("annotate", "sscale/main", "-n", ns, f"{naming.GROUP}/paused=true")
    plane.await_condition(ns, "Paused", "True", seconds=10)


def test_a_rotated_secret_is_seen_within_a_resync(plane: ControlPlane, ns: str, resting: Stores) -> None:
    def template() -> object:
        return plane.child(ns, "Deployment")["spec"]["template"]

    before = template()
    url = resting.redis.url.replace("redis://", "redis://default:@")
    plane.apply(harness.secret(ns, url, resting.postgres_url))
    eventually("another template", lambda: template() != before, seconds=RESYNC_SECONDS + 10)


def test_a_store_that_goes_is_seen_at_the_next_look(plane: ControlPlane, ns: str, resting: Stores) -> None:
    resting.redis.stop()
    plane.await_condition(ns, "RedisReachable", "False", "RedisUnreachable", seconds=15)
    resting.redis.start()
    plane.await_condition(ns, "RedisReachable", "True", seconds=30)
