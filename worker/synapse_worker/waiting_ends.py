"""The last words of a run that ended while it waited: no worker owned it that could have said them."""

from __future__ import annotations

from redis.asyncio import Redis

from synapse_worker import run_events
from synapse_worker.events import append
from synapse_worker.store import claims
from synapse_worker.store.database import Database


async def say_ended(database: Database, client: Redis, run_id: str, sentence: str, *, ttl_seconds: int) -> None:
    """Write to the run's stream that it has failed, or "cancelled", and that nothing more comes.

    Raises:
        StoreUnavailable, StoreRefused: a store does not answer, or says no.
    """
    claim = await claims.claim_of(database, run_id)
    said = [run_events.failed(run_id, sentence), run_events.done(run_id)]
    await append(client, run_id, claim, said, ttl_seconds=ttl_seconds)
