"""What the operator sees of a scale's stores in each of their forms, and what it writes there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.backends import Backends, Stores, TenantsView, View
from synapse_operator.desired.shards import Flip
from synapse_operator.observed import (
    Found,
    NotTried,
    PostgresAnswers,
    QueueFigures,
    RedisAnswers,
    SecretMissing,
    TopologyRecord,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_operator.tenant_drains import Remains
from synapse_operator.tenants import NotMigrated
from synapse_worker.connections import open_redis
from synapse_worker.contract import DEFAULT_QUEUE, MAX_SHARDS
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put
from synapse_worker.queueing.lease import LeaseQueue
from synapse_worker.queueing.owner import OWNER_SECONDS
from synapse_worker.routing import Route, Topology
from synapse_worker.store import tenants, topology
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import ManagedRow, Standing
from tests.page.support import TlsPostgresServer, TlsRedisServer
from tests.support.servers import RedisCluster, RedisServer, Server, free_port

DEAD_REDIS = "redis://127.0.0.1:1"
DEAD_POSTGRES = "postgresql://synapse@127.0.0.1:1/synapse"


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    """The operator's connections, closed with the test."""
    opened = Backends()
    yield opened
    await opened.close()


async def _look(backends: Backends, url: str, scale: str = "scale") -> View:
    stores = Stores("team-a", Found(SecretStr(url)), SecretMissing("not asked for"), None, None, pgbouncer=False)
    return await backends.look(scale, f"uid-of-{scale}", stores)


async def test_a_cluster_answers_with_the_figures_of_all_queues(
    backends: Backends, redis_cluster: RedisCluster
) -> None:
    client = open_redis(SecretStr(redis_cluster.url))
    for shard in (DEFAULT_QUEUE, "1"):
        assert await put(client, keys.queue(shard), f"job-of-{shard}", b"payload")
    await client.aclose()
    seen = await _look(backends, redis_cluster.url)
    assert isinstance(seen.redis, RedisAnswers)
    assert (seen.redis.eviction_policy, seen.redis.clustered) == ("noeviction", True)
    assert isinstance(seen.queues, dict)
    assert set(seen.queues) == {DEFAULT_QUEUE, *map(str, range(MAX_SHARDS))}
    assert {shard for shard, figures in seen.queues.items() if figures.queued} == {DEFAULT_QUEUE, "1"}


@pytest.mark.usefixtures("redis_client")
async def test_who_holds_how_many_jobs(
    backends: Backends, redis_cluster: RedisCluster, redis_server: RedisServer
) -> None:
    for url in (redis_cluster.url, redis_server.url):
        client = open_redis(SecretStr(url))
        for shard, worker, count in (("7", "pod-a", 2), ("7", "pod-b", 1), ("8", "pod-a", 1), ("9", "pod-c", 1)):
            queue_key = keys.queue(shard)
            for number in range(count):
                assert await put(client, queue_key, f"held-{shard}-{worker}-{number}", b"payload")
            queue = LeaseQueue(client, queue_key, worker_id=worker, lease_seconds=30)
            assert len(await queue.claim(count, time.monotonic())) == count
        await client.aclose()
        await _look(backends, url)
        assert await backends.jobs_held("scale", ["7", "8"]) == {"pod-a": 3, "pod-b": 1}
        assert await backends.jobs_held("scale", ["10"]) == {}


async def test_who_holds_jobs_of_a_dead_redis_is_unknown(backends: Backends) -> None:
    await _look(backends, DEAD_REDIS)
    held = await backends.jobs_held("scale", ["default"])
    assert isinstance(held, Unknown)


async def test_a_master_with_an_unsafe_policy_is_seen_among_safe_ones(
    backends: Backends, redis_cluster: RedisCluster
) -> None:
    redis_cluster.masters[1].ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        seen = await _look(backends, redis_cluster.url)
    finally:
        redis_cluster.masters[1].ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert isinstance(seen.redis, RedisAnswers)
    assert seen.redis.eviction_policy == "allkeys-lru"


async def test_a_single_redis_is_not_clustered(
    backends: Backends, redis_server: RedisServer, redis_client: Redis
) -> None:
    seen = await _look(backends, redis_server.url)
    assert isinstance(seen.redis, RedisAnswers)
    assert not seen.redis.clustered
    assert isinstance(seen.queues, dict)
    assert set(seen.queues.values()) == {QueueFigures(0, 0, None)}


async def test_the_wrong_form_has_to_be_changed_by_somebody(
    backends: Backends, redis_cluster: RedisCluster, redis_server: RedisServer
) -> None:
    node = f"redis://127.0.0.1:{redis_cluster.masters[0].port}"
    for url, sentence in ((node, "redis+cluster://"), (f"redis+cluster://127.0.0.1:{redis_server.port}", "redis://")):
        seen = await _look(backends, url)
        assert isinstance(seen.redis, Unusable)
        assert sentence in seen.redis.sentence


async def test_nodes_that_are_away_are_unreachable(backends: Backends) -> None:
    seen = await _look(backends, f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    assert isinstance(seen.redis, Unreachable)
    assert "none of the cluster's nodes answers (2 asked)" in seen.redis.sentence


async def test_the_first_scale_owns_its_redis_and_another_is_told_so(
    backends: Backends, redis_server: RedisServer, redis_client: Redis
) -> None:
    for _ in range(2):
        assert (await _look(backends, redis_server.url, "first")).redis_owner == "uid-of-first"
        assert (await _look(backends, redis_server.url, "second")).redis_owner == "uid-of-first"
    assert 0 < await redis_client.ttl(keys.OWNER) <= OWNER_SECONDS


async def test_each_look_renews_the_mark(backends: Backends, redis_server: RedisServer, redis_client: Redis) -> None:
    await _look(backends, redis_server.url)
    await redis_client.expire(keys.OWNER, 5)
    await _look(backends, redis_server.url)
    assert await redis_client.ttl(keys.OWNER) > 5


async def test_a_scale_that_is_gone_leaves_its_redis_to_the_next(
    backends: Backends, redis_server: RedisServer, redis_client: Redis
) -> None:
    await _look(backends, redis_server.url, "first")
    await _look(backends, redis_server.url, "second")
    backends.forget("second")
    backends.forget("first")
    await backends.close()
    assert await redis_client.get(keys.OWNER) is None
    assert (await _look(backends, redis_server.url, "second")).redis_owner == "uid-of-second"


async def test_a_leader_that_ends_leaves_the_mark(redis_server: RedisServer, redis_client: Redis) -> None:
    ending = Backends()
    await _look(ending, redis_server.url)
    await ending.close()
    assert await redis_client.get(keys.OWNER) == b"uid-of-scale"


async def test_a_redis_that_takes_no_mark_answers_all_the_same(
    backends: Backends, redis_server: RedisServer, redis_client: Redis
) -> None:
    await redis_client.hset(keys.OWNER, "a", "b")  # type: ignore[misc]
    seen = await _look(backends, redis_server.url)
    assert isinstance(seen.redis, RedisAnswers)
    assert seen.redis_owner == Unknown(
        "Redis holds a key of ours with another type; another program uses this database"
    )


async def test_a_full_redis_is_still_its_owners(
    backends: Backends, redis_server: RedisServer, redis_client: Redis
) -> None:
    await _look(backends, redis_server.url)
    await redis_client.config_set("maxmemory", "1")
    try:
        assert (await _look(backends, redis_server.url)).redis_owner == "uid-of-scale"
        await redis_client.delete(keys.OWNER)
        assert isinstance((await _look(backends, redis_server.url)).redis_owner, Unknown)
    finally:
        await redis_client.config_set("maxmemory", "0")


async def test_a_cluster_has_an_owner_too(backends: Backends, redis_cluster: RedisCluster) -> None:
    seen = await _look(backends, redis_cluster.url, "first")
    assert seen.redis_owner == "uid-of-first"
    assert isinstance(seen.redis, RedisAnswers)
    assert (seen.redis.clustered, seen.redis.masters) == (True, 3)
    assert (await _look(backends, redis_cluster.url, "second")).redis_owner == "uid-of-first"


# ---- scales at rest


async def _view(backends: Backends, redis: str, postgres: str) -> View:
    return await backends.look("scale", "uid-of-scale", _both(redis, postgres))


@pytest.mark.parametrize(
    "made",
    [
        "INSERT INTO tenants (tenant_id, name) VALUES ('late', 'late')",
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
        " VALUES ('r', 'o', 'late', 'queued', '{}', '[]')",
    ],
    ids=["a row", "a run without a row"],
)
async def test_the_queue_of_a_tenant_that_comes_later_is_asked_for(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str, made: str
) -> None:
    """By a main instance, which tells nobody of it."""
    seen = await _view(backends, redis_server.url, postgres_url)
    assert await backends.is_still("scale", seen, run_days=None)
    await database.execute(made)
    assert await put(redis_client, keys.queue("late"), "job", b"payload")
    assert not await backends.is_still("scale", seen, run_days=None)
    seen = await _view(backends, redis_server.url, postgres_url)
    assert not await backends.is_still("scale", seen, run_days=None)
    seen = await _view(backends, redis_server.url, postgres_url)
    assert isinstance(seen.queues, dict)
    assert seen.queues["late"].queued == 1


async def test_a_tenant_that_goes_leaves_a_scale_at_rest(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    await database.execute("INSERT INTO tenants (tenant_id, name) VALUES ('early', 'early')")
    seen = await _view(backends, redis_server.url, postgres_url)
    assert await backends.is_still("scale", seen, run_days=None)
    await database.execute("DELETE FROM tenants")
    assert await backends.is_still("scale", seen, run_days=None)


async def test_a_check_sees_another_policy_another_owner_and_other_settings(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    async def is_as_before() -> bool:
        return await backends.renew("scale", "uid-of-scale", seen)

    seen = await _view(backends, redis_server.url, postgres_url)
    assert await is_as_before()
    await redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert not await is_as_before()
    finally:
        await redis_client.config_set("maxmemory-policy", "noeviction")
    assert await is_as_before()
    await redis_client.set(keys.OWNER, "another")
    assert not await is_as_before()
    await redis_client.delete(keys.OWNER)
    assert await is_as_before()
    await database.execute("INSERT INTO scale_settings (key, value) VALUES ('runs_retention_days', '20')")
    assert not await is_as_before()


# ---- tenants


def _row(uid: str = "uid-of-tenant", tenant_id: str = "acme") -> ManagedRow:
    return ManagedRow(tenant_id, uid, None, max_concurrent_runs=5, max_queued_runs=10, priority=0)


async def _known(backends: Backends, redis: str, postgres: str, scale: str = "scale") -> None:
    """Have the operator look at a scale, which makes its stores known, and own its database where nobody does."""
    stores = Stores("team-a", Found(SecretStr(redis)), Found(SecretStr(postgres)), None, None, pgbouncer=False)
    seen = await backends.look(scale, f"uid-of-{scale}", stores)
    if seen.topology is None:
        assert await backends.flip(scale, Flip(None, Topology(), enabled=True), f"uid-of-{scale}") == ""


async def _kept(backends: Backends, *rows: ManagedRow, scale: str = "scale") -> TenantsView:
    view = await backends.keep_tenants(scale, f"uid-of-{scale}", rows, [row.managed_by for row in rows])
    assert view is not None
    return view


async def test_tenants_wait_until_their_scale_was_looked_at(backends: Backends) -> None:
    assert await backends.keep_tenants("scale", "uid-of-scale", [_row()], []) is None


async def test_rows_come_and_go_with_their_tenants(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    await _known(backends, redis_server.url, postgres_url)
    view = await _kept(backends, _row())
    assert (view.exclusive, view.changes.created) == (True, {"acme"})
    assert view.store == {"acme": Standing(True, "uid-of-tenant", 0, 0)}
    assert (await tenants.read_all(database))["acme"].concurrent_runs == 5
    view = await _kept(backends)
    assert (view.store, view.changes.deleted) == ({}, {"acme"})


async def test_who_shares_a_redis_deletes_no_row(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    for scale in ("first", "second"):
        await _known(backends, redis_server.url, postgres_url, scale)
    await _kept(backends, _row(), scale="first")
    other = _row("uid-of-other", "other")
    view = await _kept(backends, other, scale="second")
    assert (view.exclusive, view.changes.deleted) == (False, frozenset())
    assert isinstance(view.store, dict)
    assert view.store["other"].managed_by == "uid-of-other"
    assert (await _kept(backends, scale="second")).changes.deleted == frozenset()
    assert set(await tenants.read_all(database)) == {"acme", "other"}


async def test_who_shares_a_database_alone_deletes_no_row(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    await _known(backends, redis_server.url, postgres_url, "first")
    await _known(backends, f"{redis_server.url.rsplit('/', 1)[0]}/9", postgres_url, "second")
    await _kept(backends, _row(), scale="first")
    view = await _kept(backends, _row("uid-of-other", "other"), scale="second")
    assert (view.exclusive, view.changes.deleted) == (False, frozenset())
    view = await _kept(backends, _row(), scale="first")
    assert (view.exclusive, view.changes.deleted) == (True, {"other"})


async def test_a_database_has_an_owner_until_it_goes_or_is_silent(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    stores = _both(redis_server.url, postgres_url)
    await _known(backends, redis_server.url, postgres_url, "first")
    row = (await backends.look("second", "uid-of-second", stores)).topology
    assert isinstance(row, TopologyRecord)
    assert (row.is_free_for("uid-of-first"), row.is_free_for("uid-of-second")) == (True, False)
    # Silent for over ten minutes, as another cluster's operator that is gone.
    await database.execute("UPDATE scale_topology SET owner_seen_at = now() - interval '11 minutes'")
    row = (await backends.look("second", "uid-of-second", stores)).topology
    assert isinstance(row, TopologyRecord)
    assert row.is_free_for("uid-of-second")
    # A look renews it.
    row = (await backends.look("first", "uid-of-first", stores)).topology
    assert isinstance(row, TopologyRecord)
    assert not row.is_free_for("uid-of-second")
    backends.forget("first")
    await backends.close()
    row = (await backends.look("second", "uid-of-second", stores)).topology
    assert isinstance(row, TopologyRecord)
    assert (row.owner_uid, row.is_free_for("uid-of-second")) == ("", True)


async def test_what_is_left_of_a_tenants_work(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, database: Database, postgres_url: str
) -> None:
    assert isinstance(await backends.remains("scale", "uid-of-scale", ["acme"]), Unknown)
    await _known(backends, redis_server.url, postgres_url)
    await _kept(backends, replace(_row(), deleting=True))
    await redis_client.zadd(keys.queue("acme"), {"a": 1, "b": 2})
    await redis_client.zadd(keys.leases(keys.queue("acme")), {"c": 1})
    await redis_client.hset(keys.parked(keys.queue("acme")), "acme", "1")
    left = await backends.remains("scale", "uid-of-scale", ["acme", "none"])
    assert left == {
        "acme": Remains(Standing(True, "uid-of-tenant", 0, 0, deleting=True), jobs=4),
        "none": Remains(Standing(False, None, 0, 0), jobs=0),
    }


async def test_without_a_store_it_is_unknown_what_is_left(
    backends: Backends, redis_server: RedisServer, database: Database, postgres_url: str
) -> None:
    await _known(backends, f"redis://127.0.0.1:{free_port()}", postgres_url)
    assert isinstance(await backends.remains("scale", "uid-of-scale", ["acme"]), Unknown)
    await _known(backends, redis_server.url, f"postgresql://synapse@127.0.0.1:{free_port()}/synapse", "away")
    assert isinstance(await backends.remains("away", "uid-of-away", ["acme"]), Unknown)


async def test_without_redis_no_row_is_deleted_but_new_ones_come(
    backends: Backends, database: Database, postgres_url: str
) -> None:
    await _known(backends, f"redis://127.0.0.1:{free_port()}", postgres_url)
    await _kept(backends, _row())
    view = await _kept(backends)
    assert (view.exclusive, view.changes.deleted) == (False, frozenset())
    assert set(await tenants.read_all(database)) == {"acme"}


async def test_a_database_that_cannot_be_asked_says_why(
    backends: Backends, redis_server: RedisServer, postgres_url: str
) -> None:
    await _known(backends, redis_server.url, postgres_url, "empty")
    assert (await _kept(backends, _row(), scale="empty")).store == NotMigrated()
    await _known(backends, redis_server.url, f"postgresql://synapse@127.0.0.1:{free_port()}/synapse", "away")
    assert isinstance((await _kept(backends, _row(), scale="away")).store, Unreachable)
    await _look(backends, redis_server.url, "no-url")
    assert isinstance((await _kept(backends, _row(), scale="no-url")).store, NotTried)


# ---- PostgreSQL


def _both(redis_url: str, postgres_url: str, *, ca: str = "") -> Stores:
    authority = Found(SecretStr(ca)) if ca else None
    return Stores(
        "team-a", Found(SecretStr(redis_url)), Found(SecretStr(postgres_url)), authority, authority, pgbouncer=False
    )


async def test_a_database_without_tables_leaves_the_topology_unknown(
    backends: Backends, redis_server: RedisServer, postgres_url: str
) -> None:
    seen = await backends.look("scale", "uid", _both(redis_server.url, postgres_url))
    assert isinstance(seen.postgres, PostgresAnswers)
    assert isinstance(seen.topology, Unknown)
    assert isinstance(seen.behind, Unknown)
    assert isinstance(seen.stored, Unknown)


async def test_tables_of_an_older_release_are_not_taken_for_idle(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, postgres_url: str, database: Database
) -> None:
    await database.execute("UPDATE synapse_scale_schema SET version = version - 1")
    seen = await backends.look("scale", "uid", _both(redis_server.url, postgres_url))
    assert seen.postgres == PostgresAnswers(None)
    assert isinstance(seen.overview, Unknown)
    assert "of an older release" in seen.overview.sentence


async def test_work_without_a_job_is_told_by_the_days_that_hold(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, postgres_url: str, database: Database
) -> None:
    """Runs that should have been removed a day ago: by the spec, else as stored, else 90 days."""
    stores = _both(redis_server.url, postgres_url)

    async def due(run_days: int | None = None) -> bool:
        overview = (await backends.look("scale", "uid", stores, run_days=run_days)).overview
        assert not isinstance(overview, Unknown)
        return overview.work_due

    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
        " ended_at) VALUES ('r', 'o', 't', 'completed', '{}', '[]', now() - interval '40 days')"
    )
    assert not await due()
    assert await due(run_days=30)
    await database.execute("INSERT INTO scale_settings (key, value) VALUES ('runs_retention_days', '20')")
    assert await due()
    assert not await due(run_days=50)


async def test_the_row_is_written_once_and_never_over_anothers_change(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, postgres_url: str, database: Database
) -> None:
    stores = _both(redis_server.url, postgres_url)
    assert (await backends.look("scale", "uid", stores)).topology is None
    first = Flip(None, Topology(3, routes=(Route(1, ("acme",)),)), enabled=True)
    assert await backends.flip("scale", first, "uid") == ""
    row = (await backends.look("scale", "uid", stores)).topology
    assert row == TopologyRecord(1, first.topology, enabled=True, owner_uid="uid")
    # Out of date: somebody else was first.
    assert await backends.flip("scale", Flip(None, Topology(9), enabled=True), "other") == ""
    assert (await backends.look("scale", "uid", stores)).topology == row
    assert await backends.flip("scale", Flip(row, Topology(2), enabled=False), "uid") == ""
    now = (await backends.look("scale", "uid", stores)).topology
    assert now == TopologyRecord(2, Topology(2), enabled=False, owner_uid="uid")


async def test_a_row_that_cannot_be_written_is_a_sentence(
    backends: Backends, redis_server: RedisServer, postgres_url: str, database: Database
) -> None:
    stores = _both(redis_server.url, postgres_url)
    await backends.look("scale", "uid", stores)
    await database.execute("ALTER TABLE scale_topology RENAME TO elsewhere")
    assert "lacks our tables" in await backends.flip("scale", Flip(None, Topology(), enabled=True), "uid")


async def test_a_producer_behind_is_named_until_it_reports(
    backends: Backends, redis_server: RedisServer, postgres_url: str, database: Database
) -> None:
    stores = _both(redis_server.url, postgres_url)
    await topology.write(database, None, Topology(2), enabled=True, owner_uid="uid")
    for epoch, behind in ((0, ("api-1",)), (1, ())):
        await topology.report(database, "api-1", hostname="api", role=topology.Role.API, epoch=epoch)
        assert (await backends.look("scale", "uid", stores)).behind == behind


async def test_the_queues_of_tenants_are_among_the_figures(
    backends: Backends, redis_server: RedisServer, redis_client: Redis, postgres_url: str, database: Database
) -> None:
    stores = _both(redis_server.url, postgres_url)
    await database.execute("INSERT INTO tenants (tenant_id, name) VALUES ('acme', 'Acme')")
    assert await put(redis_client, keys.queue("acme"), "job", b"payload")
    await backends.look("scale", "uid", stores)
    seen = await backends.look("scale", "uid", stores)
    assert isinstance(seen.queues, dict)
    assert seen.queues["acme"].queued == 1


async def test_stored_settings_are_seen_without_the_keys_of_models(
    backends: Backends, redis_server: RedisServer, postgres_url: str, database: Database
) -> None:
    for key, value in (("worker_concurrency", "7"), ("max_retries", '"many"'), ("openai_key", '"sk-hidden"')):
        await database.execute("INSERT INTO scale_settings (key, value) VALUES ($1, $2)", key, value)
    seen = await backends.look("scale", "uid", _both(redis_server.url, postgres_url))
    assert seen.stored == {"worker_concurrency": 7}
    assert "sk-hidden" not in repr(seen)


# ---- certificates of a private authority


@pytest.fixture
def tls_redis() -> Iterator[TlsRedisServer]:
    server = TlsRedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def tls_postgres() -> Iterator[TlsPostgresServer]:
    server = TlsPostgresServer()
    server.start()
    yield server
    server.remove()


def _authority(server: Server) -> str:
    return (server.folder / "ca.crt").read_text(encoding="ascii")


async def test_redis_is_reached_with_the_certificates_of_the_spec(
    backends: Backends, tls_redis: TlsRedisServer
) -> None:
    seen = await backends.look("scale", "uid", _both(tls_redis.url, DEAD_POSTGRES, ca=_authority(tls_redis)))
    assert isinstance(seen.redis, RedisAnswers)
    seen = await backends.look("scale", "uid", _both(tls_redis.url, DEAD_POSTGRES))
    assert isinstance(seen.redis, Unreachable)
    assert "certificate" in seen.redis.sentence


async def test_postgres_is_reached_with_the_certificates_of_the_spec(
    backends: Backends, tls_postgres: TlsPostgresServer
) -> None:
    url = tls_postgres.url() + "?sslmode=verify-full"
    seen = await backends.look("scale", "uid", _both(DEAD_REDIS, url, ca=_authority(tls_postgres)))
    assert isinstance(seen.postgres, PostgresAnswers)
    seen = await backends.look("scale", "uid", _both(DEAD_REDIS, url))
    assert isinstance(seen.postgres, Unreachable)
    assert "certificate" in seen.postgres.sentence


async def test_what_is_no_certificate_has_to_be_changed_by_somebody(backends: Backends) -> None:
    tls = _both("rediss://127.0.0.1:1", "postgresql://p@127.0.0.1:1/d?sslmode=verify-full", ca="not a certificate")
    seen = await backends.look("scale", "uid", tls)
    assert isinstance(seen.redis, Unusable)
    assert isinstance(seen.postgres, Unusable)
    assert seen.redis.sentence.startswith("the CA of Redis is not a certificate in PEM form")
