"""Which SynapseScale uses a Redis, written where another one that is given the same Redis finds it.

The mark ends by itself when its owner no longer renews it. Workers do not look at it; what an owner may do that others
may not is the operator's business.
"""

from __future__ import annotations

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import load_script

OWNER_SECONDS = 600
"""How long a mark lasts without a renewal."""


async def own(client: Redis, uid: str) -> str:
    """Mark the Redis as used by the SynapseScale `uid`, or renew that; returns the UID of who has it.

    Raises:
        StoreUnavailable, StoreRefused: nothing is known.
    """
    with redis_errors_as_ours():
        owner: bytes = await load_script(client, "own")(keys=[keys.OWNER], args=[uid, OWNER_SECONDS])
    return owner.decode(errors="replace")


async def disown(client: Redis, uid: str) -> None:
    """Remove the mark of the SynapseScale `uid`; another's stays.

    Raises:
        StoreUnavailable, StoreRefused: it may be there until it ends by itself.
    """
    with redis_errors_as_ours():
        await load_script(client, "disown")(keys=[keys.OWNER], args=[uid])
