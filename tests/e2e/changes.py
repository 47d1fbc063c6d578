"""`make chaos-cluster`, second part: shards, a password and tenants change while producers go on, and runs are counted.

`faults` breaks things; here a user changes them. Kept out of `make test` by its name, since it takes minutes; the
short form is `test_first_steps`. Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_worker.contract import TENANT_POOL
from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.kube import Object, a_scale, a_tenant, apply, eventually, get, items, kubectl
from tests.support.load import judge
from tests.support.producers import ProducerPod, stock_producer
from tests.support.workers import chain, slow_steps

ORCHESTRATION = "changes"
STEPS = 6
RATE = 1.5
"""Runs a second of all tenants of the producer pod together."""
STOCK_RATE = 0.5
USER = "rotating"


def scale(**spec: object) -> Object:
    """The shared scale with one worker for each shard; `spec` adds fields."""
    found = a_scale(SCALE, replicas=1, drainTimeoutSeconds=60)
    found["spec"] |= spec
    return found


@pytest.fixture
def settled(place: Place) -> Iterator[Place]:
    """The shared scale with one shard and one worker, before and afterwards."""
    changed(place, shards={"0"})
    yield place
    changed(place, shards={"0"})


def changed(place: Place, *, shards: set[str], **spec: object) -> None:
    """Apply the scale and wait until it has these shards and no others, all in use, with their pods Ready."""
    apply(scale(**spec), namespace=place.namespace)

    def done() -> bool:
        found = get("sscale", SCALE, "-n", place.namespace)
        status = found["status"]
        states = {each["name"]: each["state"] for each in status.get("shards", [])}
        return (
            status["observedGeneration"] == found["metadata"]["generation"]
            and states == dict.fromkeys(shards, "Active")
            and sorted(map(shard_of, pods(place))) == sorted(shards)
            and all(map(ready, pods(place)))
        )

    eventually(f"the shards are {sorted(shards)}", done, seconds=240)


def pods(place: Place) -> list[Object]:
    """The scale's worker pods, those that are ending too."""
    return items("pods", "-n", place.namespace, "-l", naming.selector_text(naming.worker_selector(SCALE)))


def shard_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"][naming.SHARD_LABEL])


def ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


def starts(place: Place, *shards: str) -> dict[str, int]:
    """The pods of shards: name -> restarts."""
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
        for pod in pods(place)
        if shard_of(pod) in shards
    }


@asynccontextmanager
async def under_way(
    place: Place, database: Database, *, tenants: Sequence[str], deleted: Sequence[str] = ()
) -> AsyncIterator[list[str]]:
    """Runs from a pod, for each tenant, and from stock arq while the body lasts, which begins once a step is done.

    Args:
        deleted: those of the tenants that the body deletes.

    Yields:
        The runs' ids: complete once the body has ended.
    """
    await runs.store(database, chain(ORCHESTRATION, slow_steps(STEPS, 0.05)))
    image = get("sscale", SCALE, "-n", place.namespace)["status"]["image"]
    pod = ProducerPod(place.namespace, image, ORCHESTRATION, tenants=tenants, rate=RATE / len(tenants))
    run_ids: list[str] = []
    done = await completed(database)
    try:
        await asyncio.to_thread(pod.start)
        async with stock_producer(
            place.redis_address, place.redis_password, ORCHESTRATION, tenant=tenants[0], rate=STOCK_RATE
        ) as stock_ids:
            await more_completed(database, done)
            yield run_ids
        run_ids += await asyncio.to_thread(pod.stop, deleted=deleted)
        run_ids += stock_ids
    finally:
        await asyncio.to_thread(pod.remove)


async def completed(database: Database) -> int:
    """How many runs have completed so far."""
    return sum((await completed_in(database)).values())


async def completed_in(database: Database) -> dict[str, int]:
    """How many runs have completed so far: shard that their job was put into -> runs."""
    rows = await database.fetch(
        "SELECT queue, count(*) AS n FROM job_ledger WHERE outcome = 'completed' GROUP BY queue"
    )
    return {keys.shard_of(row["queue"]): row["n"] for row in rows}


async def more_completed(database: Database, before: int, more: int = 10) -> None:
    """Wait until so many runs more have completed."""

    async def done() -> bool:
        return await completed(database) >= before + more

    await runs.eventually(f"{more} runs more are completed", done, seconds=60)


async def completed_in_each(database: Database, before: dict[str, int], queues: Sequence[str]) -> None:
    """Wait until each of the queues has had a run that completed since."""

    async def done() -> bool:
        now = await completed_in(database)
        return all(now.get(queue, 0) > before.get(queue, 0) for queue in queues)

    await runs.eventually(f"runs of the queues {queues} are completed", done, seconds=90)


async def nothing_lost(database: Database, client: Redis, run_ids: Sequence[str], what: str) -> None:
    judged = await judge(database, client, run_ids, steps=STEPS, seconds=180)
    print(f"\n{what}: {judged}", flush=True)
    assert not judged.lost
    assert not judged.doubled
    assert judged.dead_letters == judged.failures == 0


@pytest.mark.timeout(600)
async def test_one_to_eight_to_two_shards(settled: Place, cluster_database: Database, cluster_redis: Redis) -> None:
    eight = [str(shard) for shard in range(8)]
    async with under_way(settled, cluster_database, tenants=("default",)) as run_ids:
        first = await asyncio.to_thread(starts, settled, "0")
        before = await completed_in(cluster_database)
        await asyncio.to_thread(changed, settled, shards=set(eight), queue={"shards": 8})
        await completed_in_each(cluster_database, before, ["default", *eight])
        both = await asyncio.to_thread(starts, settled, "0", "1")
        await asyncio.to_thread(changed, settled, shards={"0", "1"}, queue={"shards": 2})
        await more_completed(cluster_database, await completed(cluster_database))
        assert await asyncio.to_thread(starts, settled, "0", "1") == both
        assert both.items() >= first.items()
    await nothing_lost(cluster_database, cluster_redis, run_ids, "1 -> 8 -> 2 shards")


@pytest.mark.timeout(600)
async def test_only_the_pods_concerned_are_rolled(
    settled: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    spec: Object = {"queue": {"shards": 2}, "pools": [{"name": "big", "shards": [1], "replicas": 1, "concurrency": 4}]}
    await asyncio.to_thread(partial(changed, settled, shards={"0", "1"}, **spec))
    async with under_way(settled, cluster_database, tenants=("default",)) as run_ids:
        first = await asyncio.to_thread(starts, settled, "0")
        second = await asyncio.to_thread(starts, settled, "1")
        spec["pools"][0]["concurrency"] = 6
        await asyncio.to_thread(partial(changed, settled, shards={"0", "1"}, **spec))

        def rolled_out() -> bool:
            return not starts(settled, "1").keys() & second.keys() and all(map(ready, pods(settled)))

        await asyncio.to_thread(eventually, "the pool is rolled", rolled_out, seconds=120)
        assert await asyncio.to_thread(starts, settled, "0") == first
        both = await asyncio.to_thread(starts, settled, "0", "1")
        spec["api"] = {"enabled": True, "replicas": 1}
        for depth in (5_000, 6_000):  # the API comes, and is rolled
            spec["queue"] = {"shards": 2, "maxDepth": depth}
            await asyncio.to_thread(partial(changed, settled, shards={"0", "1"}, **spec))
            await asyncio.to_thread(
                kubectl, "rollout", "status", f"deploy/{naming.api_name(SCALE)}", "-n", settled.namespace
            )
        assert await asyncio.to_thread(starts, settled, "0", "1") == both
        await completed_in_each(cluster_database, await completed_in(cluster_database), ["0", "1"])
    await nothing_lost(cluster_database, cluster_redis, run_ids, "a pool and the API rolled, no other pod")


@pytest.fixture
async def rotating(settled: Place, cluster_redis: Redis) -> AsyncIterator[Place]:
    """A scale of two shards, and a user of Redis whose password can change without the user that Redis' probe has."""
    await asyncio.to_thread(changed, settled, shards={"0", "1"}, queue={"shards": 2})
    await users_acl(cluster_redis, "reset", "on", "~*", "&*", "+@all", ">first")
    yield settled
    await asyncio.to_thread(rolled, settled, settled.redis_url.replace(settled.redis_address, "redis"))
    await cluster_redis.execute_command("ACL", "DELUSER", USER)  # type: ignore[no-untyped-call]


async def users_acl(client: Redis, *rules: str) -> None:
    await client.execute_command("ACL", "SETUSER", USER, *rules)  # type: ignore[no-untyped-call]


def rolled(place: Place, redis_url: str) -> None:
    """Put a URL into the Secret of Redis, and wait until every pod that was there has given way to a Ready one."""
    before = pods(place)
    patch = json.dumps({"stringData": {"url": redis_url}})
    kubectl("patch", "secret", "synapse-redis", "-n", place.namespace, "-p", patch)

    def done() -> bool:
        now = pods(place)
        names = {pod["metadata"]["name"] for pod in now} & {pod["metadata"]["name"] for pod in before}
        return not names and len(now) == len(before) and all(map(ready, now))

    eventually("every pod is a new one", done, seconds=200)


@pytest.mark.timeout(700)
async def test_a_rotated_redis_password(rotating: Place, cluster_database: Database, cluster_redis: Redis) -> None:
    async with under_way(rotating, cluster_database, tenants=("default",)) as run_ids:
        await asyncio.to_thread(rolled, rotating, f"redis://{USER}:first@redis:6379/0")
        await users_acl(cluster_redis, ">second")
        await asyncio.to_thread(rolled, rotating, f"redis://{USER}:second@redis:6379/0")
        await users_acl(cluster_redis, "<first")
        # Who has connected with the old one would go on for as long as the connection lasts.
        await cluster_redis.execute_command("CLIENT", "KILL", "USER", USER)  # type: ignore[no-untyped-call]
        await more_completed(cluster_database, await completed(cluster_database))
        assert set((await asyncio.to_thread(starts, rotating, "0", "1")).values()) == {0}
    await nothing_lost(cluster_database, cluster_redis, run_ids, "a Redis password rotated twice")


@pytest.fixture
def tenants(settled: Place) -> Iterator[tuple[str, ...]]:
    """Three tenants; of the last one a single run runs at a time."""
    names = ("ada", "bob", "cyd")
    limits = dict.fromkeys(names, 100) | {"cyd": 1}
    apply(
        *(a_tenant(name, SCALE, maxConcurrentRuns=limit) for name, limit in limits.items()),
        namespace=settled.namespace,
    )
    kubectl("wait", "--for=condition=Ready", "stenant", "--all", "-n", settled.namespace, "--timeout=30s")
    yield names
    kubectl("delete", "stenant", "--all", "-n", settled.namespace)


@pytest.mark.timeout(600)
async def test_isolation_on_and_off_and_a_tenant_that_goes(
    settled: Place, tenants: tuple[str, ...], cluster_database: Database, cluster_redis: Redis
) -> None:
    async with under_way(settled, cluster_database, tenants=tenants, deleted=("cyd",)) as run_ids:
        isolated = {"tenancy": {"isolation": True}}
        await asyncio.to_thread(changed, settled, shards={"0", TENANT_POOL}, **isolated)
        await completed_in_each(cluster_database, await completed_in(cluster_database), ["default", *tenants])
        run_ids += await asyncio.to_thread(many_runs, settled, "cyd")
        waiting = await open_runs(cluster_database, "cyd")
        await asyncio.to_thread(gone, settled, "cyd")
        left = await open_runs(cluster_database, "cyd")
        print(f"\nruns of the tenant before and after its deletion: {waiting}, {left}", flush=True)
        assert left > 1
        await asyncio.to_thread(changed, settled, shards={"0"})
        await more_completed(cluster_database, await completed(cluster_database))
    await nothing_lost(cluster_database, cluster_redis, run_ids, "isolation on and off, a tenant deleted")


def gone(place: Place, tenant: str) -> None:
    """Delete a tenant while its jobs wait and come: it is held until its deletion is told not to wait."""
    kubectl("delete", "stenant", tenant, "-n", place.namespace, "--wait=false")
    kubectl("wait", "--for=condition=Ready=false", f"stenant/{tenant}", "-n", place.namespace, "--timeout=30s")
    kubectl("annotate", "stenant", tenant, "-n", place.namespace, f"{naming.SKIP_DRAIN_ANNOTATION}=true")
    kubectl("wait", "--for=delete", f"stenant/{tenant}", "-n", place.namespace, "--timeout=30s")


def many_runs(place: Place, tenant: str) -> list[str]:
    """Enqueue thirty runs of a tenant at once, in a worker pod; returns their ids."""
    pod = next(iter(starts(place, "0")))
    command = ("synapse-worker", "enqueue", ORCHESTRATION, f"--tenant={tenant}", "--count=30")
    return kubectl("exec", pod, "-n", place.namespace, "--", *command).split()


async def open_runs(database: Database, tenant: str) -> int:
    """How many runs of a tenant wait or run."""
    row = await database.fetchrow(
        "SELECT count(*) AS n FROM orchestration_runs WHERE tenant_id = $1 AND status IN ('queued', 'running')", tenant
    )
    assert row is not None
    return int(row["n"])
