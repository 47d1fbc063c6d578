"""`make chaos-cluster`, third part: workers counted by their jobs, in real pods.

The rules are tested against a control plane without pods (tests/controlplane/test_autoscale.py); here pods really
come and go. Kept out of `make test` by its name, since it takes minutes. Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.kube import (
    Object,
    a_scale,
    apply,
    condition,
    eventually,
    get,
    items,
    localcluster,
)
from tests.support.load import judge
from tests.support.workers import chain, slow_steps

MOST = 4
AWAY_SECONDS = 45
LONG_STEPS, SHORT_STEPS = 120, 3


def by_load(**autoscaling: object) -> Object:
    """The shared scale with 0 to 4 workers of one slot each, fewer only after they were enough for 10 s."""
    bounds = {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": MOST, "targetJobsPerWorker": 1}
    window = {"scaleDownStabilizationSeconds": 10}
    return a_scale(SCALE, concurrency=1, drainTimeoutSeconds=60, autoscaling=bounds | window | autoscaling)


@pytest.fixture
def scaled(place: Place) -> Iterator[Place]:
    """The shared scale, counted by its jobs, without a worker; as it was before afterwards."""
    apply(by_load(), namespace=place.namespace)
    eventually("no worker is left", lambda: not all_pods(place), seconds=150)
    yield place
    apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=place.namespace)
    eventually("two workers are Ready", lambda: len(place.worker_pods()) == 2, seconds=120)


def all_pods(place: Place) -> list[Object]:
    """The scale's pods, those that are ending too."""
    return items("pods", "-n", place.namespace, "-l", f"{naming.SCALE_LABEL}={SCALE}")


def wanted(place: Place) -> int:
    return int(get("deploy", place.deployment(), "-n", place.namespace)["spec"]["replicas"])


async def nothing_lost(database: Database, client: Redis, run_ids: Sequence[str], steps: int, what: str) -> None:
    judged = await judge(database, client, run_ids, steps=steps, seconds=240)
    print(f"\n{what}: {judged}", flush=True)
    assert not judged.lost
    assert not judged.doubled
    assert judged.dead_letters == judged.failures == 0


async def owners(client: Redis, run_id: str) -> list[str]:
    """The workers that took a run, in order."""
    return [str(event["worker_id"]) for event in await runs.events_of(client, run_id) if "worker_id" in event]


@pytest.mark.timeout(600)
async def test_from_zero_and_back_and_only_idle_pods_go(
    scaled: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    await runs.store(
        cluster_database,
        chain("long", slow_steps(LONG_STEPS, 0.5)),
        chain("short", slow_steps(SHORT_STEPS, 0.2)),
    )
    enqueue = partial(runs.enqueue, cluster_database, cluster_redis)
    began = time.monotonic()
    long = [await enqueue("long")]
    await runs.eventually("the first run is taken", lambda: owners(cluster_redis, long[0]), seconds=60)
    from_zero = time.monotonic() - began
    short = [await enqueue("short") for _ in range(8)]
    await asyncio.to_thread(eventually, "all workers are wanted", lambda: wanted(scaled) == MOST)
    await runs.eventually("a second long run can be taken", partial(_ended, cluster_database, short), seconds=120)
    # The short ones have ended: the long one keeps its pod, while the others go.
    await asyncio.to_thread(eventually, "idle workers go", lambda: len(all_pods(scaled)) == 1, seconds=120)
    (left,) = (pod["metadata"]["name"] for pod in all_pods(scaled))
    assert await owners(cluster_redis, long[0]) == [left]
    await nothing_lost(cluster_database, cluster_redis, long, LONG_STEPS, "0 -> 4 -> 1 workers, the long run")
    await nothing_lost(cluster_database, cluster_redis, short, SHORT_STEPS, "0 -> 4 -> 1 workers, the short runs")
    assert await owners(cluster_redis, long[0]) == [left]
    await asyncio.to_thread(eventually, "no worker is left", lambda: not all_pods(scaled), seconds=150)
    scale = await asyncio.to_thread(get, "sscale", SCALE, "-n", scaled.namespace)
    assert condition(scale, "Ready")["reason"] == "ScaledToZero"
    print(f"\nfrom no worker to the first step: {from_zero:.1f} s", flush=True)


async def _ended(database: Database, run_ids: Sequence[str]) -> bool:
    row = await database.fetchrow(
        "SELECT count(*) AS n FROM orchestration_runs WHERE run_id = ANY($1::text[]) AND status = 'completed'", run_ids
    )
    return row is not None and row["n"] == len(run_ids)


@pytest.mark.timeout(600)
async def test_no_worker_goes_while_redis_hangs(
    scaled: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    await runs.store(cluster_database, chain("short", slow_steps(SHORT_STEPS, 1.0)))
    run_ids = [await runs.enqueue(cluster_database, cluster_redis, "short") for _ in range(3 * MOST)]
    await asyncio.to_thread(eventually, "all workers are wanted", lambda: wanted(scaled) == MOST)
    (pod,) = items("pods", "-n", scaled.namespace, "-l", "app.kubernetes.io/name=redis")
    await asyncio.to_thread(signal_redis, pod["metadata"]["uid"], "STOP")
    try:
        began = time.monotonic()

        def over() -> bool:
            assert wanted(scaled) == MOST
            return time.monotonic() - began > AWAY_SECONDS

        await asyncio.to_thread(eventually, "Redis was away", over, seconds=AWAY_SECONDS + 30)
        scale = await asyncio.to_thread(get, "sscale", SCALE, "-n", scaled.namespace)
        assert condition(scale, "RedisReachable")["status"] == "False"
    finally:
        await asyncio.to_thread(signal_redis, pod["metadata"]["uid"], "CONT")
    await nothing_lost(cluster_database, cluster_redis, run_ids, SHORT_STEPS, f"Redis hanging for {AWAY_SECONDS} s")
    await asyncio.to_thread(eventually, "no worker is left", lambda: not all_pods(scaled), seconds=150)


def signal_redis(pod_uid: str, name: str) -> None:
    """Stop or continue the Redis of a pod, from the node."""
    script = (
        f"for pid in $(grep -ls '{pod_uid}' /proc/[0-9]*/cgroup | cut -d/ -f3); do "
        "if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'redis-server'; "
        f"then kill -{name} $pid && echo signalled; fi; done"
    )
    assert "signalled" in localcluster("exec-node", "sh", "-c", script)
