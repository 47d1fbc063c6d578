"""A thousand SynapseTenants applied at once, until all are Ready with rows: against the time of kubectl's own apply.

The control plane is the test suite's: a real API server and etcd, and the operator as a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from pathlib import Path

from benchmarks.measure import Figure, Row
from benchmarks.servers import Servers, Stores
from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator

TENANTS = 1000
_PERIOD = 0.25
_PATIENCE = 300.0


def _count_ready(plane: ControlPlane, namespace: str) -> int:
    answer = json.loads(
        plane.kubectl("get", "--raw", f"/apis/{naming.API_VERSION}/namespaces/{namespace}/{naming.TENANT_PLURAL}")
    )
    conditions = [(item.get("status") or {}).get("conditions") or () for item in answer["items"]]
    return sum(1 for each in conditions if each and each[0]["status"] == "True")


def _peak_megabytes(operator: Operator) -> float:
    assert operator.process is not None
    text = Path(f"/proc/{operator.process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert found is not None
    return int(found.group(1)) / 1024


async def _round(plane: ControlPlane, servers: Servers, stores: Stores) -> tuple[float, float, float, float]:
    """Return seconds until all are ready, seconds of kubectl, and the operator's peak memory in MB after and before."""
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    tenants = [harness.tenant(namespace, f"tenant-{number:04}") for number in range(TENANTS)]
    with Operator(plane, RESYNC_SECONDS="60") as operator:
        await asyncio.to_thread(operator.lead)
        plane.apply(
            harness.namespace(namespace),
            harness.secret(namespace, servers.redis.url, stores.postgres_url),
            harness.scale(namespace),
        )
        await asyncio.to_thread(plane.await_condition, namespace, "PostgresReachable", "True")
        before = _peak_megabytes(operator)
        began = time.monotonic()
        await asyncio.to_thread(plane.kubectl_apply, *tenants)
        applied = time.monotonic() - began
        while await asyncio.to_thread(_count_ready, plane, namespace) < TENANTS:
            assert time.monotonic() - began < _PATIENCE, operator.log[-2000:]
            await asyncio.sleep(_PERIOD)
        ready = time.monotonic() - began
        (row,) = await stores.database.fetch("SELECT count(*) AS rows FROM tenants WHERE managed_by IS NOT NULL")
        assert row["rows"] == TENANTS
        after = _peak_megabytes(operator)
        operator.terminate()
    plane.kubectl("delete", "namespace", namespace, "--wait=false")
    return ready, applied, after, before


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    plane = ControlPlane(f"bench-{uuid.uuid4().hex[:6]}")
    taken: list[tuple[float, float, float, float]] = []
    try:
        await asyncio.to_thread(plane.start)
        for _ in range(rounds):
            async with servers.empty() as stores:
                taken.append(await _round(plane, servers, stores))
    finally:
        await asyncio.to_thread(plane.remove)
    ready, applied, after, before = (list(values) for values in zip(*taken, strict=True))
    return [
        Row("all Ready, with rows", "s", ready, applied, "kubectl apply --server-side of the same objects", "<= 1.3x"),
        Row("operator's peak memory", "MB", after, before, "the same process before the tenants", "< 150 MB"),
    ]


FIGURE = Figure(
    title=f"{TENANTS:,} SynapseTenants applied at once",
    method=(
        f"One kubectl applies {TENANTS:,} SynapseTenants of one scale; the time is from its start until the API server "
        "lists all of them as Ready, and all have rows. The reference is what that kubectl itself took."
    ),
    limits=(
        "Both share two cores with the API server and etcd, which do two writes for each tenant. Our side is one "
        "request for each status; a look at all tenants is a list of the namespace and a few statements."
    ),
    measure=_measure,
)
