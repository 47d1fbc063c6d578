"""Whether queues hold nothing at all, asked at the price of one command.

Who looks every few seconds at queues that are empty most of the time asks this first, and for figures only then.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.queueing import keys
from synapse_worker.redis_cluster import ClusterClient


def holding(queue_key: str) -> tuple[str, ...]:
    """Return the keys that hold what `queue_figures` counts of a queue; those of an empty one do not exist."""
    return (queue_key, *(of(queue_key) for of in (keys.again, keys.suspects, keys.leases, keys.parked)))


_EACH = len(holding(""))


async def none_exists(client: Redis, names: Sequence[str]) -> bool:
    """Return whether no key exists: the queues whose `holding` they are, one after another, hold no job.

    Raises:
        StoreRefused: the keys live in several slots of a cluster that does not say that it is one.
        StoreUnavailable: Redis does not answer.
    """
    with redis_errors_as_ours():
        if isinstance(client, ClusterClient):
            # Those of one queue share a slot.
            pipeline = client.pipeline(transaction=False)
            for start in range(0, len(names), _EACH):
                pipeline.exists(*names[start : start + _EACH])
            return not any(await pipeline.execute())
        there: int = await client.exists(*names)
    return there == 0
