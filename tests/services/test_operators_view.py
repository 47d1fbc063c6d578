"""What the operator sees of a Redis in each of its forms, through the connections that it keeps for a scale."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.backends import Backends, Stores, View
from synapse_operator.observed import Found, QueueFigures, RedisAnswers, SecretMissing, Unreachable, Unusable
from synapse_worker.connections import open_redis
from synapse_worker.contract import DEFAULT_QUEUE
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put
from tests.support.servers import RedisCluster, RedisServer, free_port


@pytest.fixture
async def backends() -> AsyncIterator[Backends]:
    """The operator's connections, closed with the test."""
    opened = Backends()
    yield opened
    await opened.close()


async def _look(backends: Backends, url: str) -> View:
    stores = Stores("team-a", Found(SecretStr(url)), SecretMissing("not asked for"), None, None, pgbouncer=False)
    return await backends.look("scale", stores, [DEFAULT_QUEUE, "1"])


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
