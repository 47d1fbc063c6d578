"""Requests of the V2 API that enqueue a run: how many a second, how long each, against a handler that only writes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import bare_api
from benchmarks.bare_api import NO_LIMIT
from benchmarks.http_load import Answered, Load, send
from benchmarks.measure import Figure, Row, alternate, percentile, processor_seconds
from benchmarks.runs import store_three_steps
from benchmarks.servers import Servers, Stores
from synapse_worker import settings
from synapse_worker.api.process import ApiProcess
from synapse_worker.queueing.client import known_queues
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.store import api_keys
from tests.support import api
from tests.support.runs import eventually
from tests.support.servers import free_port
from tests.support.workers import environment

REQUESTS = 3_000
WARM_UP = 300
CONNECTIONS = 16
TENANT = "acme"
_LIMITS = {"RATE_LIMIT_PER_TENANT_RPS": str(NO_LIMIT), "MAX_GLOBAL_QUEUE_DEPTH": str(NO_LIMIT)}
_AGAINST = "a FastAPI handler that does the same writes"


@dataclass(frozen=True, slots=True)
class Taken:
    """What one side came to: requests a second, milliseconds of answers and of the process's own time a request."""

    rate: float
    p50: float
    p99: float
    processor: float


async def _prepare(stores: Stores) -> str:
    """Store the orchestration and a tenant whose jobs are counted, count the queues; returns a key of the tenant."""
    await store_three_steps(stores)
    await stores.database.execute(
        "INSERT INTO tenants (tenant_id, name, max_queued_runs) VALUES ($1, $1, $2)", TENANT, NO_LIMIT
    )
    await Quotas(stores.client).rebase(await known_queues(stores.database))
    _, token = await api_keys.create(stores.database, name="bench", tenant_id=TENANT)
    return token.get_secret_value()


async def _load(stores: Stores, port: int, token: str) -> Answered:
    """Send the load and see that every request is a run in the queue."""
    body = json.dumps({"message": "hello", "tenant_id": TENANT})
    path, headers = "/api/v2/orchestrations/three/run", {"Authorization": f"Bearer {token}"}
    answered = await send(Load(port, path, headers, body, REQUESTS, WARM_UP, CONNECTIONS))
    assert answered.statuses == {"202": REQUESTS}, answered.statuses
    row = await stores.database.fetchrow(
        "SELECT count(*) AS runs FROM orchestration_runs JOIN job_ledger USING (job_id) WHERE status = 'queued'"
    )
    assert row is not None
    assert row["runs"] == REQUESTS + WARM_UP
    return answered


async def _taken(stores: Stores, port: int, pid: int, token: str) -> Taken:
    before = processor_seconds(pid)
    answered = await _load(stores, port, token)
    busy = (processor_seconds(pid) - before) * 1000 / (REQUESTS + WARM_UP)
    times = answered.milliseconds
    return Taken(REQUESTS / answered.seconds, percentile(times, 0.5), percentile(times, 0.99), busy)


async def _ours(servers: Servers) -> Taken:
    async with servers.empty() as stores:
        token = await _prepare(stores)
        process = api.ApiProcess(
            servers.redis.url, stores.postgres_url, **_LIMITS, API_AUTH="keys", LOG_LEVEL="warning"
        )
        try:
            await asyncio.to_thread(process.start().wait_ready)
            return await _taken(stores, process.port, process.pid, token)
        finally:
            process.close()


async def _bare(servers: Servers) -> Taken:
    async with servers.empty() as stores:
        token = await _prepare(stores)
        with bare_api.process(servers.redis.url, stores.postgres_url) as (port, pid):
            return await _taken(stores, port, pid, token)


async def _measure(servers: Servers, rounds: int) -> list[Row]:
    taken: dict[str, list[Taken]] = {"bare": [], "ours": []}

    async def one(name: str, side: Callable[[Servers], Awaitable[Taken]]) -> float:
        taken[name].append(await side(servers))
        return taken[name][-1].rate

    await alternate({"bare": partial(one, "bare", _bare), "ours": partial(one, "ours", _ours)}, rounds)

    def row(name: str, unit: str, part: str, goal: str = "") -> Row:
        ours, bare = ([float(getattr(each, part)) for each in taken[side]] for side in ("ours", "bare"))
        return Row(name, unit, ours, bare, _AGAINST, goal)

    return [
        row("POST run", "requests/s", "rate", ">= 0.7x"),
        row("POST run, p50", "ms", "p50"),
        row("POST run, p99", "ms", "p99", "<= 1.5x"),
        row("processor time of the API process", "ms/request", "processor"),
    ]


async def _profiled(servers: Servers) -> None:
    async with servers.empty() as stores:
        token = await _prepare(stores)
        port = free_port()
        given = environment(
            servers.redis.url, stores.postgres_url, **_LIMITS, API_PORT=str(port), API_AUTH="keys", LOG_LEVEL="warning"
        )
        running = asyncio.create_task(ApiProcess(settings.load(given)).run())
        await eventually("the API is ready", lambda: _is_ready(port))
        answered = await _load(stores, port, token)
        os.kill(os.getpid(), signal.SIGTERM)  # as a process is stopped
        await running
        print(f"{REQUESTS / answered.seconds:,.0f} requests/s under the profiler")


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return b" 200 " in answer.split(b"\r\n", 1)[0]


FIGURE = Figure(
    title=f"Runs enqueued over HTTP, one API process, {CONNECTIONS} connections",
    method=(
        f"A client process sends {REQUESTS:,} requests to POST .../run over {CONNECTIONS} connections that are kept "
        "open. Ours checks the key, the tenant and its limits, that the orchestration exists and by which topology the "
        "job goes. The reference is a handler of FastAPI and uvicorn that makes the same statement and calls the same "
        "scripts with the same clients, one after another, and checks nothing."
    ),
    limits=(
        "One core of Python is the limit on both sides: a quarter of it the six calls of Redis, a sixth PostgreSQL, a "
        "tenth h11. What ours needs besides is the topology's row, read for each request (a tenth), the parameters "
        "that FastAPI looks for (a twelfth), the key and the metrics. Keys, limits and definitions are read once a "
        "second."
    ),
    measure=_measure,
    profiled=_profiled,
)
