"""How many workers the jobs of one shard ask for: more at once, fewer only after they have been enough for a while.

Numbers alone: which jobs count and what a worker is expected to hold. What a shard is, and when something else than
its jobs decides, is `desired.shards`. What was asked for before is kept by the caller, in memory only: an operator that
starts anew begins with the workers that there are, which costs one stabilization window and can lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_operator.api.workers import MAX_REPLICAS, AutoscalingSpec
from synapse_operator.observed import QueueFigures


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Workers that were asked for at a time (UTC)."""

    at: datetime
    replicas: int


Recent = tuple[Recommendation, ...]
"""What was asked for lately: the latest one last, and before it only those that asked for more, so the first asks for
most."""


def load_of(queues: Iterable[QueueFigures]) -> int:
    """Return how many jobs of a shard's queues need a worker now.

    A lease that has run out counts, since only a worker takes its job up again. Parked jobs wait for their tenants
    and not for room: they count as one together, for only a worker puts them back once they may run.
    """
    seen = tuple(queues)
    parked = sum(each.parked for each in seen)
    return sum(each.queued + each.active for each in seen) - parked + min(parked, 1)


def recommended(autoscaling: AutoscalingSpec, load: int, *, target: int, least: int = 0) -> int:
    """Return the workers that `load` jobs ask for.

    Args:
        autoscaling: the bounds.
        load: jobs, waiting and running.
        target: jobs for each worker, at least 1.
        least: workers that something else than jobs asks for.
    """
    return bounded(autoscaling, max(-(-load // target), least))


def bounded(autoscaling: AutoscalingSpec, replicas: int) -> int:
    """Return what of `replicas` is within the bounds of the spec."""
    most = MAX_REPLICAS if autoscaling.max_replicas is None else autoscaling.max_replicas
    return min(max(replicas, autoscaling.min_replicas), most)


def remembered(recent: Recent, replicas: int, *, present: int, window: timedelta, now: datetime) -> Recent:
    """Return what was asked for within the window, `replicas` of now included.

    Args:
        recent: the answer of the last look; () = there was none, and what there is counts as asked for now.
        replicas: what is asked for now.
        present: workers that there are.
        window: for how long fewer must have been enough.
        now: the present time, UTC.
    """
    before = recent or (Recommendation(now, present),)
    if not window:
        before = ()
    kept = (each for each in before if each.replicas > replicas and now - each.at <= window)
    return (*kept, Recommendation(now, replicas))
