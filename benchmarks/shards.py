"""A SynapseScale with 64 shards applied, until all its objects are there: against kubectl's own apply of the same ones.

The control plane is the test suite's: a real API server and etcd, and the operator as a process of its own. While
kubectl is measured no operator runs.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from redis import Redis

from benchmarks.measure import Figure, Row, alternate
from benchmarks.servers import Servers
from synapse_operator.api.scale import SynapseScale, read_scale
from synapse_worker.contract import MAX_SHARDS
from tests.builders import an_observed, what_is_desired
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually

_PATIENCE = 300.0


@contextmanager
def _namespace(plane: ControlPlane, servers: Servers, *, redis_database: int = 0) -> Iterator[str]:
    """Give a namespace with a Secret `stores`; it is gone, with all that is in it, before the next side begins."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    with Redis.from_url(servers.redis.url) as client:
        client.flushall()  # the mark of the scale before this one
    redis = f"{servers.redis.url.removesuffix('/0')}/{redis_database}"
    postgres = harness.migrated(servers.postgres.new_database())
    plane.apply(harness.namespace(name), harness.secret(name, redis, postgres))
    try:
        yield name
    finally:
        plane.kubectl("delete", "namespace", name, "--timeout=80s")


def _manifests(plane: ControlPlane, namespace: str) -> list[Json]:
    """Render what the operator makes of the stored scale."""
    scale = read_scale(plane.get(namespace, "sscale", "main"))
    assert isinstance(scale, SynapseScale)
    return [each.body for each in what_is_desired(scale, an_observed()).manifests]


def _await_applied(plane: ControlPlane, namespace: str) -> None:
    eventually(
        f"all of {namespace} is applied",
        lambda: plane.condition(namespace, "ChildrenApplied").get("reason") == "Applied",
        seconds=_PATIENCE,
    )


def _operator(plane: ControlPlane, servers: Servers) -> float:
    """Return seconds from the start of `kubectl apply` until the status says that all is applied."""
    with (
        Operator(plane, RESYNC_SECONDS="60") as operator,
        _namespace(plane, servers, redis_database=1) as before,
        _namespace(plane, servers) as namespace,
    ):
        operator.lead()
        plane.apply(harness.scale(before))
        _await_applied(plane, before)  # from then on it watches, and has done all of this once
        began = time.monotonic()
        plane.kubectl_apply(harness.scale(namespace, queue={"shards": MAX_SHARDS}))
        _await_applied(plane, namespace)
        took = time.monotonic() - began
        there = {(each["kind"], each["metadata"]["name"]) for each in plane.children(namespace)}
        wanted = {(each["kind"], each["metadata"]["name"]) for each in _manifests(plane, namespace)}
        assert there == wanted
        operator.terminate()
    return took


def _kubectl(plane: ControlPlane, servers: Servers) -> float:
    """Return the seconds of one `kubectl apply --server-side` of the same objects."""
    with _namespace(plane, servers) as namespace:
        # Their owner, or the garbage collector would be at work too.
        plane.apply(harness.scale(namespace, queue={"shards": MAX_SHARDS}))
        manifests = _manifests(plane, namespace)
        began = time.monotonic()
        plane.kubectl_apply(*manifests)
        return time.monotonic() - began


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    plane = ControlPlane(f"bench-{uuid.uuid4().hex[:6]}")
    try:
        await asyncio.to_thread(plane.start)
        await asyncio.to_thread(_kubectl, plane, servers)  # a fresh API server is slow with its first objects
        taken = await alternate(
            {
                "ours": partial(asyncio.to_thread, _operator, plane, servers),
                "kubectl": partial(asyncio.to_thread, _kubectl, plane, servers),
            },
            rounds,
        )
    finally:
        await asyncio.to_thread(plane.remove)
    return [
        Row(
            "all objects there, and the status says so",
            "s",
            taken["ours"],
            taken["kubectl"],
            "kubectl apply --server-side of the same objects",
            "<= 1.5x",
        )
    ]


FIGURE = Figure(
    title=f"A SynapseScale with {MAX_SHARDS} shards applied",
    method=(
        f"kubectl applies a SynapseScale with {MAX_SHARDS} shards, whose stores answer; the time is from its start "
        "until the status says that all objects are applied (each shard has a Deployment, a ConfigMap and a "
        "PodDisruptionBudget, all share a Service and a ServiceAccount). The reference is one kubectl that applies the "
        "same objects, rendered by the operator's own builders, in another namespace."
    ),
    limits=(
        "The API server and etcd share two cores with the operator, which reads by its name what it cannot find by "
        "label, writes the first shard object by object and the others eight at a time, and posts an Event for each "
        "Deployment: 450 requests, about 1 s of Python, against kubectl's 194 one after another."
    ),
    measure=_measure,
)
