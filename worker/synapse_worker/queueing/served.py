"""The queues of one worker: those that it serves by name, and those of the tenant pool where it is part of that."""

from __future__ import annotations

from collections.abc import Sequence

from synapse_worker.queueing.lease import LeaseQueue
from synapse_worker.queueing.pool import TenantPool


class Served:
    """What the claim loop and its neighbours know of queues; the list of the pool's changes while they look away."""

    def __init__(self, named: Sequence[LeaseQueue], pool: TenantPool | None = None) -> None:
        self._named = {queue.queue_key: queue for queue in named}
        self._pool = pool

    def add(self, queue: LeaseQueue) -> None:
        """Serve one more queue by name."""
        self._named[queue.queue_key] = queue

    async def look(self, now: float) -> None:
        """Bring the pool's list up to date; as `TenantPool.look`."""
        if self._pool is not None:
            await self._pool.look(now)

    @property
    def queues(self) -> list[LeaseQueue]:
        """Those that may hold work now."""
        return [*self._named.values(), *(self._pool.noted if self._pool is not None else ())]

    @property
    def to_ask(self) -> list[LeaseQueue]:
        """Those to claim from now: a named queue always, one of the pool until it has nothing more."""
        pooled = self._pool.noted if self._pool is not None else ()
        return [*self._named.values(), *(queue for queue in pooled if not queue.drained)]

    @property
    def keys(self) -> list[str]:
        """The keys of `queues`."""
        return [queue.queue_key for queue in self.queues]

    @property
    def recovered(self) -> int:
        """Leases of dead owners that this process has returned to their queues, ever."""
        pooled = self._pool.queues.values() if self._pool is not None else ()
        return sum(queue.recovered for queue in (*self._named.values(), *pooled))

    def __getitem__(self, queue_key: str) -> LeaseQueue:
        """Return a queue that is served, or was when a lease of it was taken."""
        if queue_key in self._named or self._pool is None:
            return self._named[queue_key]
        return self._pool.queues[queue_key]
