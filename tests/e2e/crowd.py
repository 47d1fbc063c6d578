"""`make chaos-cluster`, last part: a tenant with ten thousand queued jobs beside another one, in real pods.

The crowd's five running jobs wait for a model, so that what is measured is the queue and not the processor. The other
tenant is compared with itself before, and with a second scale that has nothing to do: a run here, a run there, so that
both meet the same machine. Leaves its jobs behind, so nothing comes after it. Kept out of `make test` by its name.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from benchmarks.measure import percentile
from synapse_worker.connections import open_database, open_redis
from synapse_worker.queueing import keys
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.support import runs
from tests.support.kube import Object, a_scale, a_tenant, apply, kubectl
from tests.support.model_server import ModelServer, model_server, script
from tests.support.outside import address_for_pods
from tests.support.workers import chain, slow_steps

IDLE = "idle"
TENANTS_JOBS = 10_000
SAMPLES = 200
WAIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Start:
    """Of one run: milliseconds until it was queued, and until its first event."""

    queued: float
    started: float


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores of a scale."""

    database: Database
    client: Redis

    async def start(self) -> Start:
        """Queue a run of the tenant `other` and see it start."""
        began = time.time()
        run_id = await runs.enqueue(self.database, self.client, "short", tenant="other")
        queued = time.time()
        stream = keys.run_events(run_id)
        await runs.eventually("it starts", partial(self.client.exists, stream))
        entries = await self.client.xrange(stream, count=1)
        started = int(entries[0][0].split(b"-")[0]) / 1000
        await runs.until(self.database, run_id, "completed")
        await asyncio.sleep(random.uniform(0.2, 0.4))  # meanwhile the workers fall back to their idle pace
        return Start((queued - began) * 1000, (started - began) * 1000)


@asynccontextmanager
async def idle_stores(place: Place) -> AsyncIterator[tuple[Stores, Object]]:
    """Databases of the namespace's servers that nobody else uses, and the Secret that leads there."""
    urls = {"redis": place.redis_url.rsplit("/", 1)[0] + "/1", "postgres": place.postgres_url.rsplit("/", 1)[0]}
    urls["postgres"] += f"/{IDLE}"
    inside = {name: url.replace(place.redis_address, "redis") for name, url in urls.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": IDLE}, "stringData": inside}
    database, client = open_database(SecretStr(urls["postgres"])), open_redis(SecretStr(urls["redis"]))
    await migrate.migrate(database)
    yield Stores(database, client), secret
    await database.close()
    await client.aclose()


def idle_scale() -> Object:
    found = a_scale(IDLE, replicas=2)
    for store in ("redis", "postgres"):
        found["spec"][store] = {"urlSecretRef": {"name": IDLE, "key": store}}
    return found


@pytest.fixture
async def idle(place: Place, cluster_database: Database) -> AsyncIterator[Stores]:
    """A second scale, alike, that is never busy."""
    await cluster_database.execute(f"CREATE DATABASE {IDLE}")
    async with idle_stores(place) as (stores, secret):
        tenant = a_tenant(f"other-{IDLE}", IDLE, tenantId="other")
        await asyncio.to_thread(partial(apply, secret, idle_scale(), tenant, namespace=place.namespace))
        ready = ("wait", "--for=condition=Ready", f"sscale/{IDLE}", f"stenant/other-{IDLE}", "-n", place.namespace)
        await asyncio.to_thread(kubectl, *ready, "--timeout=120s")
        await runs.store(stores.database, chain("short", slow_steps(1, 0.001)))
        yield stores


@pytest.fixture
def neighbours(place: Place) -> None:
    """Two tenants: `crowd` may run five at a time, `other` a hundred."""
    apply(
        a_tenant("crowd", SCALE, maxConcurrentRuns=5, maxQueuedRuns=100_000),
        a_tenant("other", SCALE),
        namespace=place.namespace,
    )
    kubectl("wait", "--for=condition=Ready", "stenant/crowd", "stenant/other", "-n", place.namespace, "--timeout=60s")


@pytest.fixture
def models(place: Place) -> Iterator[ModelServer]:
    """A model that takes its time."""
    with model_server(host=address_for_pods(place.redis_address)) as running:
        yield running


@pytest.mark.timeout(900)
async def test_a_crowd_of_one_tenant_beside_another(
    place: Place,
    neighbours: None,
    idle: Stores,
    models: ModelServer,
    cluster_database: Database,
    cluster_redis: Redis,
) -> None:
    here = Stores(cluster_database, cluster_redis)
    await runs.store_settings(cluster_database, models.settings())
    waits = {"id": "wait", "type": "llm", "prompt_template": script({"say": "late", "wait": WAIT_SECONDS})}
    await runs.store(cluster_database, chain("slow", [waits]), chain("short", slow_steps(1, 0.001)))
    empty = [await here.start() for _ in range(SAMPLES)]
    began = time.monotonic()
    queued = await asyncio.to_thread(place.command, "enqueue", "slow", "--tenant=crowd", f"--count={TENANTS_JOBS}")
    assert len(queued.split()) == TENANTS_JOBS
    queue = keys.queue("default")

    async def parked() -> bool:
        return not await cluster_redis.zcard(queue)

    await runs.eventually("all but five are parked", parked, seconds=120)
    took = time.monotonic() - began
    beside, meanwhile = [], []
    for _ in range(SAMPLES):
        beside.append(await here.start())
        meanwhile.append(await idle.start())
    worst = percentile([each.started for each in beside], 0.99)
    before, at_idle = (percentile([each.started for each in side], 0.99) for side in (empty, meanwhile))
    print(
        f"\n{TENANTS_JOBS} jobs of one tenant queued and parked in {took:.1f} s; another tenant from enqueue to start,"
        f" {SAMPLES} samples each: before {said(empty)}; beside them {said(beside)}; a scale without them at the same"
        f" time {said(meanwhile)}; p99 {worst / before:.2f}x of before, {worst / at_idle:.2f}x of the other scale",
        flush=True,
    )
    assert worst <= 2 * max(before, at_idle)
    assert await running(cluster_database) <= 5
    assert len(models.asked) >= 5


def said(starts: Sequence[Start]) -> str:
    started = [each.started for each in starts]
    return (
        f"p50 {median(started):.0f} ms, p99 {percentile(started, 0.99):.0f} ms"
        f" (of which the enqueue p50 {median(each.queued for each in starts):.0f} ms)"
    )


async def running(database: Database) -> int:
    row = await database.fetchrow(
        "SELECT count(*) AS n FROM orchestration_runs WHERE tenant_id = 'crowd' AND status = 'running'"
    )
    assert row is not None
    return int(row["n"])
