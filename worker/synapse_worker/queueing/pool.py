"""The tenant pool: which queues of tenants without workers of their own hold work now.

One key says so (`keys.ACTIVE_TENANTS`). Our producers note a tenant there with each job; what other producers enqueue,
what was given back and what a dead worker has left is found by one worker of the pool, which looks through all known
tenants' queues once a second. A queue is asked once for each time that it was noted, and on until it has nothing more:
a thousand quiet queues cost nothing. How much each gets is `turns`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.errors import StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import readable_figures
from synapse_worker.queueing.lease import LeaseQueue, load_script
from synapse_worker.routing import is_tenants_own, why_no_queue
from synapse_worker.store import topology
from synapse_worker.store.database import Database

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
"""How often the key is read at most; idle workers poll less often."""
_TICK_MS = 900
_NOTED_US = 3_000_000
"""How long a note holds: longer than a tick takes, so that none of a producer's is dropped unseen."""
_KNOWN_SECONDS = 5.0
_PAGE = 500


class TenantPool:
    """The tenants' queues of one worker of the pool. Run `keep` as a task."""

    def __init__(
        self,
        database: Database,
        client: Redis,
        gate: StoreGate,
        open_queue: Callable[[str], LeaseQueue],
        *,
        worker_id: str,
        apart: Collection[str],
    ) -> None:
        """Make a pool that serves no queue yet.

        Args:
            open_queue: makes a queue of its key.
            apart: shards that this worker serves by name.
        """
        self._database = database
        self._client = client
        self._gate = gate
        self._open_queue = open_queue
        self._worker_id = worker_id
        self._apart = frozenset(apart)
        self._note = load_script(client, "note_active")
        self._dedicated: frozenset[str] | None = None
        self._known: Sequence[str] = ()
        self._known_at = float("-inf")
        self._dedicated_at = float("-inf")
        self._looked_at = float("-inf")
        self._noted: dict[str, float] = {}
        self._complained = False
        self.queues: dict[str, LeaseQueue] = {}
        """Every queue that this process has served, by its key: leases of it may be held still."""

    @property
    def noted(self) -> list[LeaseQueue]:
        """The queues that hold, or held until a moment ago, work for a worker or jobs that are parked."""
        return [self.queues[queue_key] for queue_key in self._noted]

    async def look(self, now: float) -> None:
        """Read which queues hold work, unless that was done a moment ago, or nobody knows yet which are not ours.

        Args:
            now: local monotonic time (s).

        Raises:
            StoreUnavailable, StoreRefused: Redis does not answer, or says no.
        """
        if self._dedicated is None or now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            with redis_errors_as_ours():
                entries: list[tuple[bytes, float]] = await self._client.zrange(
                    keys.ACTIVE_TENANTS, 0, -1, withscores=True
                )
        except WrongKeyType as error:
            self._complain(error)
            return
        noted: dict[str, float] = {}
        for member, at in entries:
            tenant = member.decode(errors="surrogateescape")
            if tenant in self._apart or tenant in self._dedicated or not _can_be_served(tenant):
                continue
            queue_key = keys.queue(tenant)
            if queue_key not in self.queues:
                self.queues[queue_key] = self._open_queue(queue_key)
            if self._noted.get(queue_key) != at:
                self.queues[queue_key].drained = False
            noted[queue_key] = at
        self._noted = noted

    async def keep(self) -> None:
        """Take our turns in looking through all tenants' queues; for ever, while both stores answer."""
        while True:
            pause = _TICK_MS / 1000
            if self._gate.is_open:
                try:
                    await self.read_dedicated()
                    pause = await self.tick()
                    self._complained = False
                except WrongKeyType as error:
                    self._complain(error)
                except (StoreUnavailable, StoreRefused) as error:
                    self._gate.trip(error)
            await asyncio.sleep(pause)

    async def read_dedicated(self) -> None:
        """Read which tenants have workers of their own, unless that was done lately."""
        now = asyncio.get_running_loop().time()
        if now - self._dedicated_at >= _KNOWN_SECONDS:
            self._dedicated = await topology.dedicated_tenants(self._database)
            self._dedicated_at = now

    async def tick(self) -> float:
        """Look through all queues if nobody has since the last tick; returns how long to wait for the next (s)."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.set(keys.ACTIVE_TENANTS_TICK, self._worker_id, nx=True, px=_TICK_MS)
        pipeline.pttl(keys.ACTIVE_TENANTS_TICK)
        with redis_errors_as_ours():
            mine, left_ms = await pipeline.execute()
        due = asyncio.get_running_loop().time() + int(left_ms) / 1000
        if mine:
            await self.note_all()
        return max(0.01, due - asyncio.get_running_loop().time())

    async def note_all(self) -> None:
        """Note all tenants whose queues hold work for a worker or parked jobs, and drop old notes."""
        names = [keys.queue(tenant) for tenant in await self._known_tenants()]
        for start in range(0, max(1, len(names)), _PAGE):
            figures = await readable_figures(self._client, names[start : start + _PAGE])
            hold = [keys.shard_of(name) for name, figure in figures.items() if figure.queued or figure.expired]
            with redis_errors_as_ours():
                await self._note(keys=[keys.ACTIVE_TENANTS], args=[_NOTED_US, *hold])

    async def _known_tenants(self) -> Sequence[str]:
        now = asyncio.get_running_loop().time()
        if now - self._known_at >= _KNOWN_SECONDS:
            known = await topology.known_tenants(self._database)
            self._known = [tenant for tenant, dedicated in known.items() if not dedicated and _can_be_served(tenant)]
            self._known_at = now
        return self._known

    def _complain(self, error: WrongKeyType) -> None:
        if not self._complained:
            self._complained = True
            log.error("the tenant pool finds no work until %s is repaired: %s", keys.ACTIVE_TENANTS, error)


def _can_be_served(tenant: str) -> bool:
    return is_tenants_own(tenant) and not why_no_queue(tenant)
