"""What the operator sees of the stores, and does there, through the connections that it keeps for a scale."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.backends import Backends, Stores, TenantsView, View
from synapse_operator.observed import (
    Found,
    NotTried,
    QueueFigures,
    RedisAnswers,
    SecretMissing,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_operator.tenants import NotMigrated
from synapse_worker.connections import open_redis
from synapse_worker.contract import DEFAULT_QUEUE
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put
from synapse_worker.queueing.owner import OWNER_SECONDS
from synapse_worker.store import tenants
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import ManagedRow, Standing
from tests.support.servers import RedisCluster, RedisServer, free_port


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    """The operator's connections, closed with the test."""
    opened = Backends()
    yield opened
    await opened.close()


async def _look(backends: Backends, url: str, scale: str = "scale") -> View:
    stores = Stores("team-a", Found(SecretStr(url)), SecretMissing("not asked for"), pgbouncer=False)
    return await backends.look(scale, f"uid-of-{scale}", stores, [DEFAULT_QUEUE, "1"])


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
    assert {shard: figures.queued for shard, figures in seen.queues.items()} == {DEFAULT_QUEUE: 1, "1": 1}


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
    assert seen.queues == {DEFAULT_QUEUE: QueueFigures(0, 0, None), "1": QueueFigures(0, 0, None)}


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
    assert (await _look(backends, redis_cluster.url, "first")).redis_owner == "uid-of-first"
    assert (await _look(backends, redis_cluster.url, "second")).redis_owner == "uid-of-first"


# ---- tenants


def _row(uid: str = "uid-of-tenant", tenant_id: str = "acme") -> ManagedRow:
    return ManagedRow(tenant_id, uid, None, max_concurrent_runs=5, max_queued_runs=10, priority=0)


async def _known(backends: Backends, redis: str, postgres: str, scale: str = "scale") -> None:
    """Have the operator look at a scale, which makes its stores known."""
    stores = Stores("team-a", Found(SecretStr(redis)), Found(SecretStr(postgres)), pgbouncer=False)
    await backends.look(scale, f"uid-of-{scale}", stores, [DEFAULT_QUEUE])


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
