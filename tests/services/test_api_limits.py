"""Limits over several replicas: counts of 202, 429 and 503 equal them; a store that is away is a 503."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial

import httpx2
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database, open_redis
from synapse_worker.queueing import keys
from synapse_worker.routing import Topology
from synapse_worker.store import api_keys, migrate, topology
from synapse_worker.store.database import Database
from tests.page.support import printing
from tests.support.api import ApiProcess, StartApi
from tests.support.runs import eventually, store
from tests.support.servers import PostgresServer, RedisServer
from tests.support.workers import StartWorker, command

Q = keys.queue("default")
RUN = "/orchestrations/hello/run"


async def add_tenant(database: Database, tenant_id: str, **columns: int | bool) -> None:
    """Add a tenant's row, or change it."""
    await database.execute("INSERT INTO tenants (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant_id)
    for column, value in columns.items():
        await database.execute(f"UPDATE tenants SET {column} = $2 WHERE tenant_id = $1", tenant_id, value)  # noqa: S608


async def replicas(start_api: StartApi, count: int, **extra: str) -> list[ApiProcess]:
    """Start API processes, all at once."""
    return list(await asyncio.gather(*(asyncio.to_thread(start_api, **extra) for _ in range(count))))


async def burst(apis: list[ApiProcess], bodies: list[dict[str, object]]) -> list[httpx2.Response]:
    """Ask for runs, all at once, in turn of the replicas."""
    clients = [api.client() for api in apis]
    asked = zip(itertools.cycle(clients), bodies, strict=False)
    try:
        return list(await asyncio.gather(*(client.post(RUN, json=body) for client, body in asked)))
    finally:
        for client in clients:
            await client.aclose()


def statuses(answers: list[httpx2.Response]) -> dict[int, int]:
    """Count answers by status; each refusal is a sentence and says when to come back."""
    for answer in answers:
        if answer.status_code != 202:
            assert isinstance(answer.json()["detail"], str)
            assert int(answer.headers["retry-after"]) >= 1
    return dict(Counter(answer.status_code for answer in answers))


async def metric(api: ApiProcess, reason: str) -> float:
    """Return how many refusals of a reason a process has counted."""
    _, text = await asyncio.to_thread(api.get, "/api/v2/metrics")
    lines = [line for line in text.splitlines() if line.startswith(f'synapse_api_refusals_total{{reason="{reason}"}}')]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


async def test_a_burst_over_three_replicas_is_accepted_exactly_up_to_the_limits(
    database: Database, redis_client: Redis, start_api: StartApi, start_worker: StartWorker
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", max_queued_runs=30)
    apis = await replicas(start_api, 3, MAX_GLOBAL_QUEUE_DEPTH="70")
    of_acme = await burst(apis, [{"tenant_id": "acme"}] * 60)
    assert statuses(of_acme) == {202: 30, 429: 30}
    of_others = await burst(apis, [{"tenant_id": f"t{number % 7}"} for number in range(100)])
    assert statuses(of_others) == {202: 40, 503: 60}
    assert await redis_client.zcard(Q) == 70
    assert sum([await metric(api, "tenant_queue") for api in apis]) == 30
    assert sum([await metric(api, "depth") for api in apis]) == 60
    accepted = {answer.json()["run_id"] for answer in (*of_acme, *of_others) if answer.status_code == 202}
    start_worker()

    async def all_completed() -> bool:
        rows = await database.fetch("SELECT run_id, status FROM orchestration_runs")
        assert {row["run_id"] for row in rows} == accepted
        return all(row["status"] == "completed" for row in rows)

    await eventually("what was accepted is completed, and nothing else is there", all_completed)
    await eventually("the places are free", lambda: room_again(apis, redis_client))


async def room_again(apis: list[ApiProcess], redis_client: Redis) -> bool:
    """Whether the limited tenant and everybody else may enqueue again."""
    assert await redis_client.zcard(keys.queued("acme")) == 0
    return statuses(await burst(apis, [{"tenant_id": "acme"}, {}])) == {202: 2}


async def test_the_rate_of_a_tenant_holds_for_every_route(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", rate_limit_rps=2)
    (api,) = await replicas(start_api, 1, RATE_LIMIT_PER_TENANT_RPS="3")
    async with api.client() as client:
        listed = [await client.get("/agents") for _ in range(1)]
        run_id = (await client.post(RUN, json={"tenant_id": "acme"})).json()["run_id"]
        asked = await asyncio.gather(*(client.get(f"/orchestrations/runs/{run_id}/status") for _ in range(20)))
    assert listed[0].headers["x-ratelimit-limit"] == "3"
    assert listed[0].headers["x-ratelimit-remaining"] == "2"
    refused = [answer for answer in asked if answer.status_code == 429]
    assert refused
    assert {answer.headers["x-ratelimit-limit"] for answer in asked} == {"2"}
    assert {answer.headers["x-ratelimit-remaining"] for answer in refused} == {"0"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert await metric(api, "rate") == len(refused)


async def test_what_cannot_be_read_counts_too(database: Database, redis_client: Redis, start_api: StartApi) -> None:
    await add_tenant(database, "acme", rate_limit_rps=2)
    _, key = await api_keys.create(database, name="acme", tenant_id="acme")
    (api,) = await replicas(start_api, 1, API_AUTH="keys")
    async with api.client(key.get_secret_value()) as client:
        answers = await asyncio.gather(
            *(client.post(RUN, json={"message": 1}) for _ in range(10)),
            *(client.post(RUN, content=b"{", headers={"Content-Type": "application/json"}) for _ in range(10)),
        )
    counted = Counter(answer.status_code for answer in answers)
    assert counted[422] >= 2
    assert counted[429] >= 10, "the rate is 2 in each second"
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"2"}


async def test_a_tenant_that_is_being_deleted_takes_nothing_new(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", deleting=True)
    (api,) = await replicas(start_api, 1)
    answers = await burst([api], [{"tenant_id": "acme"}, {}])
    assert [answer.status_code for answer in answers] == [429, 202]
    assert "being deleted" in answers[0].json()["detail"]


async def test_the_command_line_refuses_what_the_api_does(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", deleting=True)
    refused = command(redis_server.url, postgres_url, "enqueue", "hello", "--tenant", "acme")
    assert refused.returncode == 1
    assert "the tenant is being deleted: it finishes what it has and takes nothing new" in refused.stderr
    assert await database.fetch("SELECT 1 FROM job_ledger") == []
    assert command(redis_server.url, postgres_url, "enqueue", "hello").returncode == 0


async def test_tenants_that_cannot_have_a_queue_under_isolation(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await topology.write(database, None, Topology(isolation=True), enabled=True, owner_uid="scale")
    (api,) = await replicas(start_api, 1)
    bad = ["0", "63", "a{b", "x:health-check"]
    answers = await burst([api], [{"tenant_id": tenant} for tenant in (*bad, "64")])
    assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 202]
    assert answers[0].json() == {
        "detail": "tenant_id '0' cannot have a queue of its own: it is the name of a shard (0 to 63)"
    }
    assert await redis_client.zcard(keys.queue("64")) == 1
    assert await redis_client.zcard(Q) == 0


async def test_a_cancelled_run_leaves_its_place_at_once(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", max_queued_runs=1)
    (api,) = await replicas(start_api, 1)
    async with api.client() as client:
        body = {"tenant_id": "acme"}
        run_id = (await client.post(RUN, json=body)).json()["run_id"]
        assert (await client.post(RUN, json=body)).status_code == 429
        await client.post(f"/orchestrations/runs/{run_id}/cancel")
        assert (await client.post(RUN, json=body)).status_code == 202


async def test_an_idempotency_key_makes_a_retry_safe(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", max_queued_runs=1)
    apis = await replicas(start_api, 2)
    key = {"Idempotency-Key": "order 7"}
    async with apis[0].client() as one, apis[1].client() as other:
        body = {"message": "hi", "tenant_id": "acme"}
        answers = await asyncio.gather(*(client.post(RUN, json=body, headers=key) for client in (one, other) * 5))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["run_id"] for answer in answers}) == 1
        changed = await one.post(RUN, json={**body, "message": "ho"}, headers=key)
        assert changed.status_code == 409
        assert "Idempotency-Key" in changed.json()["detail"]
        assert (await other.post(RUN, json={"message": "ho"}, headers=key)).status_code == 202  # another tenant's
        await database.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
        assert (await one.post(RUN, json={**body, "message": "ho"}, headers=key)).status_code == 429  # a new request
    assert await redis_client.zcard(Q) == 2


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that a test may stop."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL that a test may stop."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


async def test_without_a_store_nothing_is_accepted_and_nothing_is_lost(
    own_redis: RedisServer, own_postgres: PostgresServer
) -> None:
    url = own_postgres.new_database()
    database, client = open_database(SecretStr(url)), open_redis(SecretStr(own_redis.url))
    api = ApiProcess(own_redis.url, url)
    accepted: set[str] = set()

    async def ask(clients: httpx2.AsyncClient, times: int) -> set[int]:
        answers = [await clients.post(RUN, json={}) for _ in range(times)]
        accepted.update(answer.json()["run_id"] for answer in answers if answer.status_code == 202)
        return {answer.status_code for answer in answers}

    async def back() -> bool:
        return 202 in await ask(asking, 1)

    try:
        await migrate.migrate(database)
        await store(database, printing("hello"))
        api.start()
        await asyncio.to_thread(api.wait_ready)
        async with api.client() as asking:
            assert await ask(asking, 5) == {202}
            for server in (own_redis, own_postgres):
                await asyncio.to_thread(server.stop)
                assert await ask(asking, 5) == {503}
                assert (await asking.get("/agents")).status_code == 503
                assert (await asyncio.to_thread(api.get, "/livez"))[0] == 200
                await eventually("it is not ready", lambda: unready(api))
                await asyncio.to_thread(server.start)
                await eventually("it accepts again", back)
            assert await metric(api, "store") >= 10
        rows = await database.fetch("SELECT run_id FROM orchestration_runs")
        assert {row["run_id"] for row in rows} == accepted
        queued = {member.decode() for member in await client.zrange(Q, 0, -1)}
        lost_with_redis = accepted - queued  # it keeps nothing here; the sweep brings them back
        assert len(lost_with_redis) <= 5
    finally:
        await database.close()
        await client.aclose()
        api.close()


async def unready(api: ApiProcess) -> bool:
    """Whether /readyz says no."""
    return (await asyncio.to_thread(api.get, "/readyz"))[0] == 503


async def test_a_request_beside_its_twin_is_not_refused_for_the_place_that_the_twin_has_taken(
    database: Database, redis_client: Redis, start_api: StartApi
) -> None:
    await store(database, printing("hello"))
    await add_tenant(database, "acme", max_queued_runs=1)
    apis = await replicas(start_api, 2, MAX_GLOBAL_QUEUE_DEPTH="1")
    clients = [api.client() for api in apis]
    try:
        for number in range(5):
            headers = {"Idempotency-Key": f"key-{number}"}
            asked = (client.post(RUN, json={"tenant_id": "acme"}, headers=headers) for client in clients * 8)
            answers = await asyncio.gather(*asked)
            assert {answer.status_code for answer in answers} == {202}
            (run_id,) = {answer.json()["run_id"] for answer in answers}
            assert (await clients[0].post(f"/orchestrations/runs/{run_id}/cancel")).status_code == 200
            await redis_client.delete(keys.job(run_id))
            await redis_client.zrem(Q, run_id)
            await eventually("the place is free", partial(admits, redis_client))
    finally:
        for client in clients:
            await client.aclose()


async def admits(client: Redis) -> bool:
    """Whether the replicas have counted the empty queues since."""
    return bool(await client.hget(keys.ADMISSION, "base") == b"0")  # type: ignore[misc]
