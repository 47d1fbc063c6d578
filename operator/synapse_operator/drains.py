"""When a queue that producers use no more may lose its workers: it has been empty twice, half a minute apart.

The one thing that a single look cannot tell. What was seen is kept by the caller, in memory only: an operator that
starts anew begins to wait anew, which costs half a minute and can lose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from synapse_operator.observed import QueueFigures, TopologyRecord, Unknown

EMPTY_FOR = timedelta(seconds=30)
"""Longer than it takes a producer that has read the row before it changed to write its job."""


def emptied(
    since: Mapping[str, datetime],
    *,
    topology: TopologyRecord | Unknown | None,
    behind: tuple[str, ...] | Unknown,
    queues: Mapping[str, QueueFigures] | Unknown,
    now: datetime,
) -> dict[str, datetime]:
    """Return since when each queue that nobody enqueues to has been empty at every look.

    Args:
        since: the answer of the last look.
        topology: the row; None = there is none, and everybody enqueues to `default`.
        behind: producers that may still go by an older row. While there is one, nothing counts as empty.
        queues: the figures of this look.
        now: the present time, UTC.
    """
    if isinstance(topology, Unknown) or isinstance(queues, Unknown) or isinstance(behind, Unknown) or behind:
        return {}
    shards = 1 if topology is None else topology.topology.shards
    unused = (name for name in queues if name.isdecimal() and int(name) >= shards)
    return {name: since.get(name, now) for name in unused if not (queues[name].queued or queues[name].active)}


def drained(since: Mapping[str, datetime], now: datetime) -> frozenset[str]:
    """Return the queues that have been empty for long enough."""
    return frozenset(name for name, start in since.items() if now - start >= EMPTY_FOR)
