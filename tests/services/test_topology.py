"""The topology's row against a real PostgreSQL, and where what is enqueued goes by it."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from synapse_worker.errors import StoreRefused, SynapseError
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import (
    NewRun,
    Seen,
    enqueue_run,
    known_queues,
    queue_figures,
    resume_run,
    retry_letter,
)
from synapse_worker.queueing.lease import HandBack, LeaseQueue
from synapse_worker.queueing.payload import decode
from synapse_worker.routing import ONE_QUEUE, Route, Topology, shard_of_job
from synapse_worker.store import dead_letters, overview, runs, topology, workers
from synapse_worker.store.database import Database, to_jsonb
from synapse_worker.store.topology import Role, TopologyRow

FOUR = Topology(4)
OWNER = "8d9e4c1e-uid"


async def now(database: Database, wanted: Topology, *, owner: str = OWNER) -> TopologyRow:
    """Make `wanted` the topology."""
    row = await topology.write(database, await topology.read(database), wanted, enabled=True, owner_uid=owner)
    assert row is not None
    return row


async def enqueue(database: Database, client: Redis, run_id: str, tenant: str = "default", *, priority: int = 0) -> str:
    """Enqueue a run; returns the shard that it is in, by Redis and by the ledger."""
    new = NewRun("any", "hi", tenant, priority=priority)
    await enqueue_run(database, client, new, run_id=run_id, now_ms=1_700_000_000_000)
    return await place(database, client, run_id)


async def place(database: Database, client: Redis, job_id: str) -> str:
    """Return the shard of a queued job."""
    row = await database.fetchrow("SELECT queue FROM job_ledger WHERE job_id = $1", job_id)
    assert row is not None
    assert await client.zscore(row["queue"], job_id) is not None
    names = [name async for name in client.scan_iter(keys.QUEUE_PREFIX + "*")]
    assert [name for name in names if await client.zscore(name, job_id) is not None] == [row["queue"].encode()]
    return keys.shard_of(row["queue"])


async def epoch_in(client: Redis, job_id: str) -> object:
    """Return the epoch that a job's payload names."""
    raw = await client.get(keys.job(job_id))
    assert raw is not None
    return decode(raw).extras["epoch"]


async def test_the_row_is_written_by_whoever_has_seen_it_last(database: Database) -> None:
    assert await topology.read(database) is None
    routed = Topology(4, True, (Route(1, ("a", "Größe"), 5), Route(2, min_priority=8)))
    first = await topology.write(database, None, routed, enabled=True, owner_uid="one")
    assert first == TopologyRow(1, routed, True, "one") == await topology.read(database)
    assert await topology.write(database, None, FOUR, enabled=True, owner_uid="two") is None
    second = await topology.write(database, first, FOUR, enabled=False, owner_uid="two")
    assert second == TopologyRow(2, FOUR, False, "two") == await topology.read(database)
    assert await topology.write(database, first, ONE_QUEUE, enabled=True, owner_uid="one") is None
    assert await topology.read(database) == second


async def test_of_many_that_write_at_once_one_does(database: Database) -> None:
    for was in (None, await now(database, FOUR)):
        await database.execute("DELETE FROM scale_topology") if was is None else None
        done = await asyncio.gather(
            *(topology.write(database, was, Topology(shards), enabled=True, owner_uid=OWNER) for shards in range(1, 9))
        )
        assert [row for row in done if row is not None] == [await topology.read(database)]


@pytest.mark.parametrize(
    ("shards", "routes", "sentence"),
    [
        (0, "[]", "names 0 shards"),
        (65, "[]", "names 65 shards"),
        (4, '{"a": 1}', "routes that are no list"),
        (4, '[{"shard": 64, "tenants": [], "minPriority": null}]', "a route of scale_topology cannot be read"),
        (4, '[{"shard": 1, "tenants": [7], "minPriority": null}]', "a route of scale_topology cannot be read"),
        (4, '[{"shard": "1", "tenants": [], "minPriority": null}]', "a route of scale_topology cannot be read"),
        (4, "[3]", "a route of scale_topology cannot be read"),
    ],
)
async def test_a_row_that_is_no_topology_is_refused(
    database: Database, shards: int, routes: str, sentence: str
) -> None:
    await database.execute(
        "INSERT INTO scale_topology (id, epoch, shards, isolation, enabled, routes)"
        " VALUES (1, 1, $1, false, true, $2::jsonb)",
        shards,
        routes,
    )
    with pytest.raises(StoreRefused, match=sentence):
        await topology.read(database)


async def test_runs_land_by_the_rule_of_the_row(database: Database, redis_client: Redis) -> None:
    assert await enqueue(database, redis_client, "run_0_1") == "default"
    assert await epoch_in(redis_client, "run_0_1") == 0
    await now(database, FOUR)
    ids = [f"run_{number:02}_1" for number in range(40)]
    shards = [await enqueue(database, redis_client, run_id) for run_id in ids]
    assert shards == [shard_of_job(FOUR, key=run_id, tenant_id="default") for run_id in ids]
    assert set(shards) == {"0", "1", "2", "3"}
    assert await epoch_in(redis_client, "run_00_1") == 1


async def test_the_row_wins_over_what_a_process_was_told(database: Database, redis_client: Redis) -> None:
    async def shard(run_id: str) -> str:
        run = NewRun("any", "hi", "acme")
        told = Topology(64, isolation=True)
        await enqueue_run(database, redis_client, run, run_id=run_id, now_ms=1, without_row=told)
        return await place(database, redis_client, run_id)

    assert await shard("run_1_1") == "acme"
    await now(database, ONE_QUEUE)
    assert await shard("run_2_1") == "default"


async def test_routes_send_tenants_and_priorities_to_shards_of_their_own(
    database: Database, redis_client: Redis
) -> None:
    await now(database, Topology(4, routes=(Route(1, ("acme",)), Route(2, min_priority=8))))
    assert await enqueue(database, redis_client, "run_1_1", "acme") == "1"
    assert await enqueue(database, redis_client, "run_2_1", "other", priority=8) == "2"
    assert {await enqueue(database, redis_client, f"run_{n}_1", "other", priority=7) for n in range(10, 30)} == {
        "0",
        "3",
    }


async def test_isolation_on_and_off(database: Database, redis_client: Redis) -> None:
    await now(database, Topology(4, isolation=True))
    assert await enqueue(database, redis_client, "run_1_1", "acme") == "acme"
    assert await enqueue(database, redis_client, "run_2_1", "default") == "default"
    assert await redis_client.zrange(keys.ACTIVE_TENANTS, 0, -1) == [b"acme"]
    for tenant in ("7", "a{b}", "x:health-check"):
        with pytest.raises(SynapseError, match="cannot have a queue of its own"):
            await enqueue(database, redis_client, f"run_{tenant}_1", tenant)
    assert [row["run_id"] for row in await database.fetch("SELECT run_id FROM job_ledger ORDER BY run_id")] == [
        "run_1_1",
        "run_2_1",
    ]
    await now(database, FOUR)
    assert await enqueue(database, redis_client, "run_3_1", "acme") in {"0", "1", "2", "3"}
    assert await enqueue(database, redis_client, "run_4_1", "7") in {"0", "1", "2", "3"}


async def test_what_was_decided_by_an_older_epoch_is_not_written(database: Database, redis_client: Redis) -> None:
    await now(database, FOUR)
    await now(database, ONE_QUEUE)
    late = runs.QueuedRun("run_1_1", "any", None, "default", "run_1_1", keys.queue("3"), b"x")
    assert await runs.create_queued(database, late, epoch=1) is None
    assert await runs.get(database, ["run_1_1"]) == []
    assert await runs.create_queued(database, late, epoch=2) == keys.queue("3")


async def test_what_a_caller_has_seen_is_gone_by_while_it_holds(database: Database, redis_client: Redis) -> None:
    async def enqueued(run_id: str, seen: Seen) -> tuple[str, object]:
        await enqueue_run(database, redis_client, NewRun("any", "hi", "acme"), run_id=run_id, now_ms=1, seen=seen)
        return await place(database, redis_client, run_id), await epoch_in(redis_client, run_id)

    to_three = Topology(4, routes=(Route(3, ("acme",)),))
    assert await enqueued("run_1_1", Seen(0, to_three)) == ("3", 0)
    await now(database, Topology(4, routes=(Route(2, ("acme",)),)))
    assert await enqueued("run_2_1", Seen(0, to_three)) == ("2", 1)


async def test_a_producer_that_tries_again_stays_in_the_first_queue(database: Database, redis_client: Redis) -> None:
    first = await enqueue(database, redis_client, "run_1_1")
    await now(database, FOUR)
    assert await enqueue(database, redis_client, "run_1_1") == first == "default"


async def test_a_run_that_is_queued_again_goes_by_the_topology_of_now(database: Database, redis_client: Redis) -> None:
    await now(database, Topology(4, routes=(Route(2, min_priority=8),)))
    await enqueue(database, redis_client, "run_1_1", "acme", priority=9)
    await runs.cancel_queued(database, "run_1_1")
    was, job_id = await resume_run(database, redis_client, "run_1_1", now_ms=1)
    assert (was, await place(database, redis_client, job_id)) == ("cancelled", "2")  # the priority is kept
    await now(database, Topology(4, isolation=True))
    await database.execute(
        "INSERT INTO dead_letter_queue (id, run_id, job_function, job_payload)"
        " VALUES (gen_random_uuid(), 'run_1_1', 'resume_failed_job', '{\"run_id\": \"run_1_1\"}')"
    )
    (letter,) = await dead_letters.unresolved(database, limit=5)
    retried = await retry_letter(database, redis_client, letter, now_ms=1)
    assert retried is not None
    assert await place(database, redis_client, retried) == "acme"
    assert await retry_letter(database, redis_client, letter, now_ms=1) is None
    assert await resume_run(database, redis_client, "nothing", now_ms=1) == ("", "")


async def test_who_has_to_be_waited_for_before_a_queue_is_drained(database: Database) -> None:
    await topology.report(database, "cli", hostname="h", role=Role.PRODUCER, epoch=1)
    await topology.report(database, "api-1", hostname="h", role=Role.API, epoch=2)
    assert await topology.producers_behind(database, 1) == []
    assert await topology.producers_behind(database, 2) == ["cli"]
    assert await topology.producers_behind(database, 3) == ["api-1", "cli"]
    await topology.report(database, "cli", hostname="h", role=Role.PRODUCER, epoch=3)
    await database.execute("UPDATE workers SET last_heartbeat = now() - interval '91 s' WHERE worker_id = 'api-1'")
    assert await topology.producers_behind(database, 3) == []
    await topology.report(database, "cli", hostname="h", role=Role.PRODUCER, epoch=2)
    assert await topology.producers_behind(database, 3) == ["cli"]
    await topology.leave(database, "cli")
    assert await topology.producers_behind(database, 3) == []


async def test_producers_are_no_workers(database: Database) -> None:
    await topology.report(database, "cli", hostname="h", role=Role.PRODUCER, epoch=1)
    assert await workers.count_online(database) == 0
    totals = await overview.overview(database)
    assert totals is not None
    assert totals.workers_online == 0


async def test_the_tenants_that_may_have_a_queue(database: Database, redis_client: Redis) -> None:
    assert await topology.known_tenants(database) == {}
    await database.execute(
        "INSERT INTO tenants (tenant_id, dedicated) VALUES ('a', DEFAULT), ('b', true), ('quiet', false)"
    )
    for tenant in ("a", "b", "new", "done"):
        await enqueue(database, redis_client, f"run_{tenant}_1", tenant)
    await runs.cancel_queued(database, "run_done_1")
    assert await topology.known_tenants(database) == {"a": False, "b": True, "quiet": False, "new": False}
    assert await topology.dedicated_tenants(database) == {"b"}
    await database.execute("UPDATE orchestration_runs SET status = 'running' WHERE tenant_id = 'new'")
    assert "new" in await topology.known_tenants(database)
    await database.execute("INSERT INTO tenants (tenant_id) VALUES ('default'), ('7'), ('a{b')")
    shards = [keys.shard_of(queue_key) for queue_key in await known_queues(database)]
    assert shards[:65] == ["default", *map(str, range(64))]
    assert sorted(shards[65:]) == ["a", "b", "new", "quiet"]


async def test_what_every_known_queue_holds(database: Database, redis_client: Redis) -> None:
    await now(database, Topology(4, isolation=True))
    for number in range(4):
        await enqueue(database, redis_client, f"run_{number}_1", "acme")
    acme = keys.queue("acme")
    worker = LeaseQueue(redis_client, acme, worker_id="w", lease_seconds=30)
    given_back, lost, _ = await worker.claim(3, 0.0)
    await worker.hand_back([HandBack(given_back, None)])
    await redis_client.zadd(keys.leases(acme), {lost.job_id: 1})
    figures = await queue_figures(redis_client, await known_queues(database))
    assert {queue_key for queue_key, figure in figures.items() if not figure.empty} == {acme}
    seen = figures[acme]
    assert (seen.queued, seen.again, seen.active, seen.expired, seen.parked) == (2, 1, 2, 1, 0)
    assert len(figures) == 66


@pytest.mark.parametrize("wanted", [Topology(isolation=True), FOUR], ids=["isolated", "sharded"])
async def test_a_chats_turn_is_retried_where_the_chats_turns_go(
    database: Database, redis_client: Redis, wanted: Topology
) -> None:
    await now(database, wanted)
    payload = {"session_id": "chat_7", "agent_id": "helper", "message": "hello", "tenant_id": "acme"}
    await database.execute(
        "INSERT INTO dead_letter_queue (id, job_function, job_payload, error_message, attempt_count, last_failed_at,"
        " resolved) VALUES (gen_random_uuid(), 'run_agent_chat_job', $1::jsonb, 'it failed', 1, now(), false)",
        to_jsonb(payload),
    )
    (letter,) = await dead_letters.unresolved(database, limit=1)
    job_id = await retry_letter(database, redis_client, letter, now_ms=1_700_000_000_000)
    assert job_id is not None
    expected = shard_of_job(wanted, key="chat_7", tenant_id="acme")
    assert await place(database, redis_client, job_id) == expected
    assert (expected == "acme") is wanted.isolation
