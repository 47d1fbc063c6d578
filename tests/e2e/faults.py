"""`make chaos-cluster`: rollouts, deleted and killed pods, a PostgreSQL that is away, with runs under way all the time.

Takes about a quarter of an hour, so `make test` has the short forms (`test_runs_in_pods`) and this file's name keeps it
out of them. Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import asyncpg
import pytest
from redis.asyncio import Redis

from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.e2e.test_runs_in_pods import kill_worker_process
from tests.support.kube import a_scale, apply, condition, eventually, get, items, kubectl, localcluster
from tests.support.load import Load
from tests.support.runs import store
from tests.support.workers import chain, slow_steps

TIMES = 10
AWAY_SECONDS = 60
STEPS = 12
PODS = 4


@pytest.fixture(scope="module")
def four_pods(place: Place) -> Iterator[Place]:
    """The shared scale with four workers, so that somebody always works while others are broken."""
    apply(a_scale(SCALE, replicas=PODS, drainTimeoutSeconds=60), namespace=place.namespace)
    all_available(place)
    yield place
    apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=place.namespace)


@pytest.fixture
async def load(four_pods: Place, cluster_database: Database, cluster_redis: Redis) -> Load:
    """Runs of twelve steps, eight at a time."""
    await store(cluster_database, chain("faults", slow_steps(STEPS, 0.1)))
    return Load(cluster_database, cluster_redis, "faults", steps=STEPS, in_flight=8)


def all_available(place: Place) -> None:
    """Wait until every wanted worker is Ready."""

    def available() -> bool:
        scale = get("sscale", SCALE, "-n", place.namespace)
        return len(ready_pods(place)) == PODS and condition(scale, "Ready")["status"] == "True"

    eventually("all workers are Ready", available, seconds=300)


def ready_pods(place: Place) -> list[dict[str, object]]:
    return [
        pod
        for pod in place.worker_pods()
        if any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))  # type: ignore[index,attr-defined]
    ]


def restarts(place: Place) -> int:
    return sum(
        each["restartCount"]
        for pod in items("pods", "-n", place.namespace, "-l", f"scale.synapseorch.com/scale={SCALE}")
        for each in pod["status"].get("containerStatuses", [])
    )


def restarted(place: Place, *, since: int) -> None:
    eventually("a container was started again", lambda: restarts(place) > since)


async def nothing_lost(load: Load, what: str) -> None:
    judged = await load.judged(seconds=300)
    print(f"\n{what}: {judged}", flush=True)
    assert not judged.lost
    assert not judged.doubled
    assert judged.dead_letters == judged.failures == 0


@pytest.mark.timeout(1200)
async def test_rollouts(load: Load, four_pods: Place) -> None:
    deployment = f"deploy/{four_pods.deployment()}"
    async with load.under_way():
        for _ in range(TIMES):
            await asyncio.to_thread(kubectl, "rollout", "restart", deployment, "-n", four_pods.namespace)
            await asyncio.to_thread(
                kubectl, "rollout", "status", deployment, "-n", four_pods.namespace, "--timeout=180s"
            )
    await nothing_lost(load, f"{TIMES} rollouts")


@pytest.mark.timeout(900)
async def test_forced_deletions(load: Load, four_pods: Place) -> None:
    async with load.under_way():
        for _ in range(TIMES):
            pod = random.choice(ready_pods(four_pods))
            name = str(pod["metadata"]["name"])  # type: ignore[index]
            await asyncio.to_thread(
                kubectl, "delete", "pod", name, "-n", four_pods.namespace, "--force", "--grace-period=0"
            )
            await asyncio.to_thread(all_available, four_pods)
    await nothing_lost(load, f"{TIMES} forced deletions")


@pytest.mark.timeout(1200)
async def test_kills_from_the_node(load: Load, four_pods: Place) -> None:
    async with load.under_way():
        for _ in range(TIMES):
            # The one with the fewest restarts: the kubelet makes a container wait longer after each.
            pod = min(
                ready_pods(four_pods),
                key=lambda each: each["status"]["containerStatuses"][0]["restartCount"],  # type: ignore[index]
            )
            before = restarts(four_pods)
            await asyncio.to_thread(kill_worker_process, str(pod["metadata"]["uid"]))  # type: ignore[index]
            # Until the kubelet has seen it, the pod still counts as Ready.
            await asyncio.to_thread(restarted, four_pods, since=before)
            await asyncio.to_thread(all_available, four_pods)
    await nothing_lost(load, f"{TIMES} kill -9 from the node")


@pytest.mark.timeout(600)
async def test_postgres_refuses(load: Load, four_pods: Place) -> None:
    before = restarts(four_pods)
    async with load.under_way():
        service = ("patch", "service", "postgres", "-n", four_pods.namespace, "--type=json", "-p")
        path = "/spec/selector/away"
        # A selector that fits no pod; who is connected already is sent away.
        await asyncio.to_thread(kubectl, *service, f'[{{"op": "add", "path": "{path}", "value": "yes"}}]')
        try:
            await send_all_away(four_pods)
            await asyncio.sleep(AWAY_SECONDS)
        finally:
            await asyncio.to_thread(kubectl, *service, f'[{{"op": "remove", "path": "{path}"}}]')
        await asyncio.to_thread(all_available, four_pods)
    await nothing_lost(load, f"PostgreSQL refusing for {AWAY_SECONDS} s")
    assert restarts(four_pods) == before


@pytest.mark.timeout(600)
async def test_postgres_hangs(load: Load, four_pods: Place) -> None:
    before = restarts(four_pods)
    (pod,) = items("pods", "-n", four_pods.namespace, "-l", "app.kubernetes.io/name=postgres")
    uid = pod["metadata"]["uid"]
    async with load.under_way():
        await asyncio.to_thread(signal_postgres, uid, "STOP")
        try:
            await asyncio.sleep(AWAY_SECONDS)
        finally:
            await asyncio.to_thread(signal_postgres, uid, "CONT")
        await asyncio.to_thread(all_available, four_pods)
    await nothing_lost(load, f"PostgreSQL hanging for {AWAY_SECONDS} s")
    assert restarts(four_pods) == before


async def send_all_away(place: Place) -> None:
    """End every connection to the database but ours, past the Service that leads nowhere now."""
    (pod,) = items("pods", "-n", place.namespace, "-l", "app.kubernetes.io/name=postgres")
    address = get("service", "postgres", "-n", place.namespace)["spec"]["clusterIP"]
    connection = await asyncpg.connect(place.postgres_url.replace(address, pod["status"]["podIP"]))
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )
    await connection.close()


def signal_postgres(pod_uid: str, name: str) -> None:
    """Stop or continue every process of the PostgreSQL pod, from the node."""
    script = (
        f"for pid in $(grep -ls '{pod_uid}' /proc/[0-9]*/cgroup | cut -d/ -f3); do "
        "if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q '^postgres'; "
        f"then kill -{name} $pid && echo signalled; fi; done"
    )
    assert "signalled" in localcluster("exec-node", "sh", "-c", script)
