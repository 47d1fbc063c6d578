"""Which queue a job goes to: the one rule that all our producers share, pure.

`store.topology` keeps the topology, `queueing.client` asks here and writes the job. Workers do not ask: a job stays in
the queue that it was put into, and every queue that holds jobs has somebody who serves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from synapse_worker.contract import DEFAULT_QUEUE, MAX_SHARDS, TENANT_ID_MAX_LENGTH

HIGHEST_PRIORITY = 9
"""A job's priority is 0 to this; only routes look at it."""

_HEALTH_SUFFIX = ":health-check"
_SHARD_NAMES = frozenset(str(shard) for shard in range(MAX_SHARDS))


@dataclass(frozen=True, slots=True)
class Route:
    """Sends jobs to a shard of their own: of these tenants, of at least this priority; where both are given, both hold.

    Attributes:
        shard: index of the shard, which no other job is hashed to.
        tenants: tenant ids; none = of any tenant.
        min_priority: lowest priority; None = any.
    """

    shard: int
    tenants: tuple[str, ...] = ()
    min_priority: int | None = None

    def takes(self, tenant_id: str, priority: int) -> bool:
        """Return whether a job goes this way."""
        return (not self.tenants or tenant_id in self.tenants) and (
            self.min_priority is None or priority >= self.min_priority
        )


@dataclass(frozen=True, slots=True)
class Topology:
    """The queues of an installation: `shards` (1 to 64) that jobs are spread over, or one for each tenant."""

    shards: int = 1
    isolation: bool = False
    routes: tuple[Route, ...] = ()


ONE_QUEUE = Topology()
"""What holds where nobody has said anything else: all jobs go to `default`."""


def shard_of_job(topology: Topology, *, key: str, tenant_id: str, priority: int = 0) -> str:
    """Return the name of the shard that a job goes to: `default`, an index, or its tenant's id.

    Args:
        key: what is hashed: the run id, of a chat turn the session id, so that its turns stay in order.
    """
    for route in topology.routes:
        if route.takes(tenant_id, priority):
            return str(route.shard)
    if topology.isolation and not why_no_queue(tenant_id):
        return tenant_id
    if topology.shards == 1:
        return DEFAULT_QUEUE
    return str(_hashed(key, _shards_to_hash(topology)))


def is_tenants_own(shard: str) -> bool:
    """Return whether a shard is a tenant's own: it is neither `default` nor an index."""
    return shard != DEFAULT_QUEUE and shard not in _SHARD_NAMES


def why_no_queue(tenant_id: str) -> str:
    """Return why a tenant cannot have a queue of its own, as the end of a sentence; "" when it can.

    `default` can: the queue of that name is served always, and it is the tenant of requests that name none.
    """
    if tenant_id in _SHARD_NAMES:
        return f"it is the name of a shard (0 to {MAX_SHARDS - 1})"
    if "{" in tenant_id or "}" in tenant_id:
        return "it holds a brace"
    if tenant_id.endswith(_HEALTH_SUFFIX):
        return f"it ends in {_HEALTH_SUFFIX}, as keys of arq do"
    if not 0 < len(tenant_id) <= TENANT_ID_MAX_LENGTH:
        return f"it has not 1 to {TENANT_ID_MAX_LENGTH} characters"
    return ""


def _shards_to_hash(topology: Topology) -> Sequence[int]:
    routed = {route.shard for route in topology.routes}
    # Where routes name every shard there is no right answer; spreading the rest over all loses nothing.
    return [shard for shard in range(topology.shards) if shard not in routed] or range(topology.shards)


def _hashed(key: str, shards: Sequence[int]) -> int:
    """Rendezvous hashing: with a shard more, only what goes to the new one moves."""
    encoded = key.encode(errors="surrogatepass")
    return max(shards, key=lambda shard: hashlib.blake2b(b"%d:" % shard + encoded, digest_size=8).digest())
