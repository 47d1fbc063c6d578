"""When a queue that producers use no more may lose its workers: it has been empty at every look for half a minute.

The one thing that a single look cannot tell. What was seen is kept by the caller, in memory only: an operator that
starts anew begins to wait anew, which costs that time once more and can lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from synapse_operator.observed import QueueFigures, TopologyRecord, Unknown
from synapse_worker.contract import DEFAULT_QUEUE, TENANT_POOL
from synapse_worker.routing import ONE_QUEUE, is_tenants_own

EMPTY_FOR = timedelta(seconds=30)
"""Longer than it takes a producer that has read the row before it changed to write its job; the default of the
operator's setting SHARD_EMPTY_SECONDS."""


def emptied(
    since: Mapping[str, datetime],
    *,
    topology: TopologyRecord | Unknown | None,
    behind: tuple[str, ...] | Unknown,
    queues: Mapping[str, QueueFigures] | Unknown,
    now: datetime,
) -> dict[str, datetime]:
    """Return since when each shard that nobody enqueues to has been empty at every look.

    A shard is an index, or `tenants` for the queues of all tenants together, which one pool serves.

    Args:
        since: the answer of the last look.
        topology: the row; None = there is none, and everybody enqueues to `default`.
        behind: producers that may still go by an older row. While there is one, nothing counts as empty.
        queues: the figures of this look.
        now: the present time, UTC.
    """
    if isinstance(topology, Unknown) or isinstance(queues, Unknown) or isinstance(behind, Unknown) or behind:
        return {}
    used = ONE_QUEUE if topology is None else topology.topology
    figures: dict[str, list[QueueFigures]] = {} if used.isolation else {TENANT_POOL: []}
    for name, each in queues.items():
        if is_tenants_own(name):
            if not used.isolation:
                figures[TENANT_POOL].append(each)
        elif name != DEFAULT_QUEUE and int(name) >= used.shards:
            figures[name] = [each]
    return {
        name: since.get(name, now)
        for name, served in figures.items()
        if not any(each.queued or each.active for each in served)
    }


def drained(since: Mapping[str, datetime], now: datetime, empty_for: timedelta = EMPTY_FOR) -> frozenset[str]:
    """Return the shards that have been empty for long enough."""
    return frozenset(name for name, start in since.items() if now - start >= empty_for)
