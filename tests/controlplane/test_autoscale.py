"""Workers counted by their jobs, against a real control plane, Redis and PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, eventually
from tests.controlplane.stores import Stores

pytestmark = pytest.mark.usefixtures("operator")

JOBS = [f"job-{number}" for number in range(7)]
WINDOW_SECONDS = 3
"""Fewer workers must have been enough for so long."""
LOOKS_SECONDS = 3 * harness.RESYNC_SECONDS
"""The operator looks at least twice within."""


def by_load(namespace: str, **autoscaling: object) -> Json:
    """A scale of 0 to 5 workers with two jobs for each, which goes down after a short window."""
    bounds = {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 5, "targetJobsPerWorker": 2}
    window = {"scaleDownStabilizationSeconds": WINDOW_SECONDS}
    return harness.scale(namespace, workers={"autoscaling": {**bounds, **window, **autoscaling}})


def replicas(plane: ControlPlane, namespace: str) -> int | None:
    """The replicas of shard 0's Deployment; None = there is none."""
    deployment = plane.deployments(namespace).get("0")
    return None if deployment is None else int(deployment["spec"]["replicas"])


def has(plane: ControlPlane, namespace: str, count: int) -> bool:
    return replicas(plane, namespace) == count


def keeps(plane: ControlPlane, namespace: str, count: int, seconds: float) -> None:
    """Check that the replicas are the same at every look for so long."""
    began = time.monotonic()

    def over() -> bool:
        assert replicas(plane, namespace) == count
        return time.monotonic() - began >= seconds

    eventually(f"{count} workers for {seconds:g} s", over, seconds=seconds + 30)


def busy(plane: ControlPlane, namespace: str, stores: Stores) -> None:
    """Bring a scale to four workers by seven jobs."""
    plane.apply(by_load(namespace))
    eventually("no worker", partial(has, plane, namespace, 0))
    for job in JOBS:
        stores.put("default", job)
    eventually("four workers", partial(has, plane, namespace, 4))


def idle(stores: Stores) -> None:
    for job in JOBS:
        stores.take("default", job)


def test_from_zero_to_what_the_jobs_need_and_back_after_the_window(
    plane: ControlPlane, ns: str, stores: Stores
) -> None:
    busy(plane, ns, stores)
    shard = eventually("told", told(plane, ns, 4))
    assert (shard["desired"], shard["queued"]) == (4, 7)
    idle(stores)
    taken = time.monotonic()
    eventually("no worker", partial(has, plane, ns, 0))
    assert time.monotonic() - taken >= WINDOW_SECONDS - 1
    condition = plane.await_condition(ns, "Ready", "True", "ScaledToZero")
    assert condition["message"] == "No worker is wanted, since there is nothing to do; the next job brings one"


def told(plane: ControlPlane, namespace: str, desired: int) -> Callable[[], Json]:
    def shard() -> Json:
        status = plane.get(namespace, "sscale", "main").get("status") or {}
        (found,) = status.get("shards") or [{}]
        return found if found.get("desired") == desired and found.get("queued") else {}

    return shard


def test_nothing_goes_while_redis_cannot_be_asked(plane: ControlPlane, ns: str, stores: Stores) -> None:
    busy(plane, ns, stores)
    stores.redis.stop()
    plane.await_condition(ns, "RedisReachable", "False", "RedisUnreachable")
    keeps(plane, ns, 4, 2 * WINDOW_SECONDS + LOOKS_SECONDS)
    stores.redis.start()
    plane.await_condition(ns, "RedisReachable", "True")
    idle(stores)
    eventually("no worker", partial(has, plane, ns, 0), seconds=30)


def test_paused_keeps_what_there_is(plane: ControlPlane, ns: str, stores: Stores) -> None:
    busy(plane, ns, stores)
    plane.apply(by_load(ns, paused=True))
    idle(stores)
    keeps(plane, ns, 4, 2 * WINDOW_SECONDS)
    deployment = naming.deployment_name("main", "0")
    plane.kubectl("scale", "deploy", deployment, "-n", ns, "--replicas=2")
    keeps(plane, ns, 2, LOOKS_SECONDS)
    plane.apply(by_load(ns))
    eventually("no worker", partial(has, plane, ns, 0), seconds=30)


def ours(plane: ControlPlane, namespace: str) -> bool:
    """Whether the replicas are a field of our apply."""
    managed = plane.deployments(namespace)["0"]["metadata"]["managedFields"]
    (entry,) = [each for each in managed if each["manager"] == naming.FIELD_MANAGER and each["operation"] == "Apply"]
    return "f:replicas" in entry["fieldsV1"]["f:spec"]


def test_somebody_else_counts_and_gives_back(plane: ControlPlane, ns: str, stores: Stores) -> None:
    external: Json = {"replicas": 2, "autoscaling": {"mode": "External"}}
    plane.apply(harness.scale(ns, workers=external))
    eventually("two workers", partial(has, plane, ns, 2))
    plane.await_condition(ns, "ChildrenApplied", "True", "Applied")
    assert ours(plane, ns)
    deployment = naming.deployment_name("main", "0")
    mark = plane.audit_mark()
    plane.kubectl("scale", "deploy", deployment, "-n", ns, "--replicas=5")
    keeps(plane, ns, 5, LOOKS_SECONDS)
    assert not ours(plane, ns)
    plane.kubectl("scale", "deploy", deployment, "-n", ns, "--replicas=4")
    plane.apply(harness.scale(ns, workers=external, image="other/worker:2"))

    def image() -> str:
        spec: Json = plane.deployments(ns)["0"]["spec"]["template"]["spec"]
        return str(spec["containers"][0]["image"])

    eventually("the new image", lambda: image() == "other/worker:2")
    keeps(plane, ns, 4, LOOKS_SECONDS)
    assert not ours(plane, ns)
    # Handed over by one apply, changed by another: nothing else was written.
    assert len([call for call in plane.writes(mark) if call.namespace == ns and call.resource == "deployments"]) == 2
    plane.apply(by_load(ns, scaleDownStabilizationSeconds=3600))
    eventually("ours again", partial(ours, plane, ns))
    assert replicas(plane, ns) == 4
    plane.apply(harness.scale(ns, workers={"replicas": 3}))
    eventually("as the spec says", partial(has, plane, ns, 3))


def test_idle_workers_go_first(plane: ControlPlane, ns: str, stores: Stores) -> None:
    busy(plane, ns, stores)
    plane.make_pods_ready(ns)
    names = sorted(pod["metadata"]["name"] for pod in plane.find(ns, ["pods"]))
    kept = {names[0], names[3]}
    for job, name in zip(JOBS, (names[0], names[3], names[3]), strict=False):
        stores.claim("default", job, name)
    for job in JOBS[3:]:
        stores.take("default", job)
    mark = plane.audit_mark()

    def left() -> set[str]:
        pods = [pod["metadata"] for pod in plane.find(ns, ["pods"])]
        return {each["name"] for each in pods if "deletionTimestamp" not in each}

    eventually("two workers", lambda: len(left()) == 2, seconds=30)
    assert left() == kept

    def marked() -> list[str]:
        pods = [pod["metadata"] for pod in plane.find(ns, ["pods"])]
        return [each["name"] for each in pods if naming.DELETION_COST_ANNOTATION in each.get("annotations", {})]

    assert [call.code for call in plane.writes(mark) if call.resource == "pods"][:2] == [200, 200]
    eventually("the marks are taken away", lambda: not marked())
