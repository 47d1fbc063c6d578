"""Whether queues hold nothing at all, asked at the price of one command.

Who looks every few seconds at queues that are empty most of the time asks this first, and for figures only then.
"""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.queueing import keys


def holding(queue_key: str) -> tuple[str, ...]:
    """Return the keys that hold what `queue_figures` counts of a queue; those of an empty one do not exist."""
    return (queue_key, *(of(queue_key) for of in (keys.again, keys.suspects, keys.leases, keys.parked)))


async def all_empty(client: Redis, queue_keys: Sequence[str]) -> bool:
    """Return whether no queue holds a job, waiting or running.

    Raises:
        StoreRefused: the keys live in several slots of a cluster, so one command cannot ask for them.
        StoreUnavailable: Redis does not answer.
    """
    with redis_errors_as_ours():
        there: int = await client.exists(*(name for each in queue_keys for name in holding(each)))
    return there == 0
