"""`make chaos-cluster`, fifth part: a tenant is deleted with `kubectl` while its jobs wait, with Redis and without.

Under isolation the deletion is a drain: what is queued is run, then the tenant goes. When nobody can say what is left,
it ends by its deadline, and what was queued is run by the pool once Redis is back. Kept out of `make test` by its name.
Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx2
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_worker.connections import open_redis
from synapse_worker.contract import TENANT_POOL
from synapse_worker.store.database import Database
from tests.e2e.changes import changed, open_runs
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.kube import a_tenant, apply, condition, eventually, get, items, kubectl
from tests.support.load import judge
from tests.support.workers import chain, slow_steps

TENANT = "leaver"
RUNS = 30
STEPS = 6
DEADLINE_SECONDS = 25
LATE_SECONDS = 10
"""How long after its deadline a deletion may still be there: the operator looks again at the deadline itself."""


@pytest.fixture(scope="module")
def isolated(place: Place) -> Iterator[Place]:
    """The shared scale with a worker for `default`, one for the pool of tenants, and the API; as it was afterwards."""
    api = {"enabled": True, "replicas": 1}
    changed(place, shards={"0", TENANT_POOL}, tenancy={"isolation": True}, api=api)
    kubectl("rollout", "status", f"deploy/{naming.api_name(SCALE)}", "-n", place.namespace, "--timeout=120s")
    yield place
    changed(place, shards={"0"})


async def queued(place: Place, database: Database, client: Redis, **spec: object) -> list[str]:
    """Make the tenant, of which two runs run at a time, and queue its runs."""
    await runs.store(database, chain("leaving", slow_steps(STEPS, 0.08)))
    apply(a_tenant(TENANT, SCALE, maxConcurrentRuns=2, **spec), namespace=place.namespace)
    kubectl("wait", "--for=condition=Ready", f"stenant/{TENANT}", "-n", place.namespace, "--timeout=60s")
    run_ids = [await runs.enqueue(database, client, "leaving", tenant=TENANT) for _ in range(RUNS)]
    await runs.steps_reach(database, run_ids[0], 1)
    return run_ids


async def one_more(place: Place) -> httpx2.Response:
    """Ask the API for another run of the tenant; returns its answer."""
    key = (await asyncio.to_thread(place.command, "keys", "create", "drains")).strip()
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        url = f"{await asyncio.to_thread(place.api_url)}/orchestrations/leaving/run"
        return await client.post(url, json={"tenant_id": TENANT})


def delete(place: Place) -> float:
    """Ask for the deletion; returns when (monotonic, s)."""
    kubectl("delete", "stenant", TENANT, "-n", place.namespace, "--wait=false")
    return time.monotonic()


def is_gone(place: Place) -> bool:
    return not get("stenant", TENANT, "-n", place.namespace)


@pytest.mark.timeout(400)
async def test_what_a_deleted_tenant_has_queued_is_run_before_it_goes(
    isolated: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    run_ids = await queued(isolated, cluster_database, cluster_redis)
    began = await asyncio.to_thread(delete, isolated)
    left = await open_runs(cluster_database, TENANT)
    assert left > RUNS / 2
    ready = "--for=jsonpath={.status.conditions[?(@.type=='Ready')].reason}=Draining"
    await asyncio.to_thread(kubectl, "wait", ready, f"stenant/{TENANT}", "-n", isolated.namespace, "--timeout=30s")
    refused = await one_more(isolated)
    await asyncio.to_thread(eventually, "the tenant is gone", lambda: is_gone(isolated), seconds=200)
    took = time.monotonic() - began
    open_still = await open_runs(cluster_database, TENANT)
    judged = await judge(cluster_database, cluster_redis, run_ids, steps=STEPS, seconds=1)
    print(
        f"\na tenant deleted with {left} runs open, gone after {took:.1f} s: {judged}; a new run meanwhile:"
        f" {refused.status_code} {refused.text}",
        flush=True,
    )
    assert refused.status_code == 429
    assert open_still == 0
    assert not judged.lost
    assert not judged.doubled
    assert await cluster_database.fetch("SELECT 1 FROM tenants WHERE tenant_id = $1", TENANT) == []


@contextmanager
def no_endpoints(place: Place) -> Iterator[None]:
    """The Service of Redis leads to no pod, and who is connected is sent away; the data stays."""
    (pod,) = items("pods", "-n", place.namespace, "-l", "app.kubernetes.io/name=redis")
    patch = ("patch", "service", "redis", "-n", place.namespace, "--type=json", "-p")
    kubectl(*patch, '[{"op": "add", "path": "/spec/selector/away", "value": "yes"}]')
    try:
        asyncio.run(send_all_away(place.redis_url.replace(place.redis_address, pod["status"]["podIP"])))
        yield
    finally:
        kubectl(*patch, '[{"op": "remove", "path": "/spec/selector/away"}]')


async def send_all_away(redis_url: str) -> None:
    client = open_redis(SecretStr(redis_url))
    await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]
    await client.aclose()


@contextmanager
def no_pod(place: Place) -> Iterator[None]:
    """Redis has no pod, and its data is gone with it."""
    kubectl("scale", "deploy/redis", "-n", place.namespace, "--replicas=0")
    try:
        yield
    finally:
        kubectl("scale", "deploy/redis", "-n", place.namespace, "--replicas=1")
        kubectl("rollout", "status", "deploy/redis", "-n", place.namespace, "--timeout=60s")


@pytest.mark.timeout(500)
@pytest.mark.parametrize(("away", "how"), [(no_endpoints, "its Service without endpoints"), (no_pod, "without a pod")])
async def test_without_redis_a_deletion_ends_by_its_deadline(
    isolated: Place,
    cluster_database: Database,
    cluster_redis: Redis,
    away: Callable[[Place], AbstractContextManager[None]],
    how: str,
) -> None:
    run_ids = await queued(isolated, cluster_database, cluster_redis, drainTimeoutSeconds=DEADLINE_SECONDS)

    def deleted_without_redis() -> tuple[float, str]:
        with away(isolated):
            began = delete(isolated)
            eventually("the tenant is gone", lambda: is_gone(isolated), seconds=DEADLINE_SECONDS + LATE_SECONDS)
            return time.monotonic() - began, condition(
                get("sscale", SCALE, "-n", isolated.namespace), "RedisReachable"
            )["status"]

    took, reachable = await asyncio.to_thread(deleted_without_redis)
    left = await open_runs(cluster_database, TENANT)
    judged = await judge(cluster_database, cluster_redis, run_ids, steps=STEPS, seconds=240)
    print(
        f"\na tenant deleted with Redis gone ({how}), deadline {DEADLINE_SECONDS} s: gone after {took:.1f} s with"
        f" {left} runs open, which are run once Redis is back: {judged}",
        flush=True,
    )
    assert reachable == "False"
    assert took >= DEADLINE_SECONDS - 2
    assert left
    assert not judged.lost
    assert not judged.doubled
