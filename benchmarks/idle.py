"""What an operator costs while nothing happens: a hundred scales and a thousand tenants, all Ready.

The control plane is the test suite's, with an audit log, from which the writes are counted; the stores are servers of
this figure's own, since a hundred scales need more databases and connections than tests do.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import Figure, Row
from benchmarks.servers import Servers
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.support.servers import PostgresServer, RedisServer

SCALES = 100
TENANTS = 1000
WINDOW_SECONDS = 60.0
_PATIENCE = 300.0
_QUIET_SECONDS = 20.0
_CONNECTIONS = 300
_BY_LOAD = {"autoscaling": {"mode": "BuiltIn", "minReplicas": 1, "maxReplicas": 4}}
_DEFAULTS = {"RESYNC_SECONDS": "60", "SHARD_EMPTY_SECONDS": "30", "STATUS_FIGURES_SECONDS": "15"}
"""The operator's own; the test suite's are shorter."""


class _Redis(RedisServer):
    """One with a database for each scale."""

    def command(self) -> list[str]:
        return [*super().command(), "--databases", str(SCALES)]

    def database(self, number: int) -> str:
        """The URL of one of them."""
        return f"{self.url.removesuffix('/0')}/{number}"


class _Postgres(PostgresServer):
    """One with room for two connections of each scale."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", f"max_connections={_CONNECTIONS}"]


@dataclass(frozen=True, slots=True)
class _Window:
    """What was counted while nothing happened: share of a core in percent, writes, looks at scales."""

    percent: float
    writes: float
    looks: float


def _processor_seconds(operator: Operator) -> float:
    assert operator.process is not None
    # Behind the name, which may hold spaces: user and system time are the 12th and 13th.
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _observe(plane: ControlPlane, operator: Operator) -> _Window:
    mark, looks = plane.audit_mark(), operator.reconciles()
    began, used = time.monotonic(), _processor_seconds(operator)
    time.sleep(WINDOW_SECONDS)  # what is measured is this time
    share = (_processor_seconds(operator) - used) / (time.monotonic() - began)
    return _Window(100 * share, len(plane.writes(mark)), operator.reconciles() - looks)


def _ready(plane: ControlPlane, kind: str) -> int:
    found = plane.find("", [kind])
    conditions = [condition for each in found for condition in (each.get("status") or {}).get("conditions") or ()]
    return sum(1 for each in conditions if each["type"] == "Ready" and each["status"] == "True")


def _settle(plane: ControlPlane) -> None:
    """Wait until the operator has written nothing for a while."""
    mark, since = plane.audit_mark(), time.monotonic()

    def quiet() -> bool:
        nonlocal mark, since
        if plane.writes(mark):
            mark, since = plane.audit_mark(), time.monotonic()
        return time.monotonic() - since > _QUIET_SECONDS

    eventually("the operator has nothing to write", quiet, seconds=_PATIENCE)


def _objects(namespace: str, redis: str, postgres: str) -> list[Json]:
    tenants = [harness.tenant(namespace, f"tenant-{number}") for number in range(TENANTS // SCALES)]
    return [
        harness.namespace(namespace),
        harness.secret(namespace, redis, postgres),
        harness.scale(namespace, workers={"replicas": 1}),
        *tenants,
    ]


def _with_scales(plane: ControlPlane, operator: Operator, redis: _Redis, postgres: _Postgres) -> list[str]:
    """Make all of them and wait until they are Ready; returns their namespaces."""
    prefix = f"idle-{uuid.uuid4().hex[:6]}"
    migrated = harness.migrated(postgres.new_database())
    namespaces = [f"{prefix}-{number}" for number in range(SCALES)]
    for number, namespace in enumerate(namespaces):
        plane.apply(*_objects(namespace, redis.database(number), postgres.new_database(like=migrated)))
    for namespace in namespaces:
        eventually("its Deployment", partial(plane.child, namespace, "Deployment"), seconds=_PATIENCE)
        plane.make_pods_ready(namespace)
    eventually("all scales are Ready", lambda: _ready(plane, "sscale") == SCALES, seconds=_PATIENCE)
    eventually("all tenants are Ready", lambda: _ready(plane, "stenant") == TENANTS, seconds=_PATIENCE)
    _settle(plane)
    return namespaces


def _by_load(plane: ControlPlane, namespaces: Sequence[str]) -> None:
    for namespace in namespaces:
        plane.apply(harness.scale(namespace, workers=_BY_LOAD))
    _settle(plane)
    assert _ready(plane, "sscale") == SCALES


def _windows(plane: ControlPlane, redis: _Redis, postgres: _Postgres, rounds: int) -> dict[str, list[_Window]]:
    with Operator(plane, **_DEFAULTS) as operator:
        operator.lead()
        namespaces = _with_scales(plane, operator, redis, postgres)
        fixed = [_observe(plane, operator) for _ in range(rounds)]
        _by_load(plane, namespaces)
        counted = [_observe(plane, operator) for _ in range(rounds)]
        operator.terminate()
    return {"load read every 15 s": fixed, "every 5 s, workers by load": counted}


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    plane = ControlPlane(f"bench-{uuid.uuid4().hex[:6]}")
    redis, postgres = _Redis(), _Postgres()
    try:
        redis.start()
        postgres.start()
        await asyncio.to_thread(plane.start)
        windows = await asyncio.to_thread(_windows, plane, redis, postgres, rounds)
    finally:
        with suppress(Exception):
            await asyncio.to_thread(plane.remove)
        redis.remove()
        postgres.remove()
    core = [100.0] * rounds
    return [
        *(
            Row(f"processor, {name}", "%", [each.percent for each in found], core, "one core", "< 5 %")
            for name, found in windows.items()
        ),
        *(
            Row(f"writes but the Lease, {name}", "", _writes(found), _looks(found), "looks at scales meanwhile", "0")
            for name, found in windows.items()
        ),
    ]


def _writes(found: Sequence[_Window]) -> list[float]:
    return [each.writes for each in found]


def _looks(found: Sequence[_Window]) -> list[float]:
    return [each.looks for each in found]


FIGURE = Figure(
    title=f"An idle operator with {SCALES} scales and {TENANTS:,} tenants",
    method=(
        f"{SCALES} scales, each with one worker, ten tenants, a database of one PostgreSQL and one of one Redis, are "
        f"Ready, and the operator has written nothing for {_QUIET_SECONDS:.0f} s. Then its processor time (all "
        f"threads) and its requests in the API server's audit log are counted for {WINDOW_SECONDS:.0f} s a round; once "
        "with `replicas` and once with mode BuiltIn, where load is read every 5 s instead of every 15 s."
    ),
    limits=(
        "What is left is asking: a look at a scale at rest is one command of Redis over 325 keys and one statement, "
        "about 1 ms of Python. Once a minute its Secrets are read, and its tenants are listed and compared with their "
        "rows, about 10 ms; a whole look, about 25 ms, comes every five minutes."
    ),
    measure=_measure,
)
