"""Which shards have workers, how many, and which topology producers are to go by.

The spec says which shards there should be; the topology's row in PostgreSQL says which ones producers use already.
Between the two: new shards get their workers before the row names them, and what the row names no more keeps its
workers until nothing can come and nothing is left. Unknown is never idle: while a store cannot say, no shard goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.naming import Kind, Ref
from synapse_operator.observed import Observed, Rollout, TopologyRecord, Unknown
from synapse_worker.contract import DEFAULT_QUEUE, MAX_SHARDS
from synapse_worker.routing import ONE_QUEUE, Route, Topology


class ShardState(StrEnum):
    """What comes to a shard: new jobs, none any more, none yet."""

    ACTIVE = "Active"
    DRAINING = "Draining"
    IDLE = "Idle"


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard that has, or is to have, a Deployment.

    Attributes:
        index: 0 to 63.
        queues: names of the queues that its workers serve, in their order.
        replicas: workers that are wanted.
    """

    index: int
    queues: tuple[str, ...]
    replicas: int
    state: ShardState


@dataclass(frozen=True, slots=True)
class Flip:
    """One change of the topology's row, valid only while the row is still `was` (None = there is none)."""

    was: TopologyRecord | None
    topology: Topology
    enabled: bool


def queues_of(index: int) -> tuple[str, ...]:
    """Return the queues that a shard's workers serve.

    Shard 0 serves `default`, where upstream main instances enqueue, and its own at every number of shards, so that
    another number rolls nothing.
    """
    return (DEFAULT_QUEUE, "0") if index == 0 else (str(index),)


def wanted_topology(scale: SynapseScale) -> Topology:
    """Return the topology that the spec asks for."""
    routes = (Route(route.shard, route.tenants, route.min_priority) for route in scale.spec.queue.routes)
    return Topology(scale.spec.queue.shards, routes=tuple(routes))


def shards_of(scale: SynapseScale, observed: Observed) -> tuple[Shard, ...]:
    """Return the shards that are to have a Deployment, by index."""
    return tuple(_shard(scale, observed, index) for index in range(MAX_SHARDS) if _stays(scale, observed, index))


def flip_of(scale: SynapseScale, observed: Observed) -> Flip | None:
    """Return how the topology's row is to be changed now; None = not, or not yet.

    Growing waits until each new shard has a worker that is ready; all else holds at once.
    """
    if isinstance(observed.topology, Unknown):
        return None
    was = observed.topology
    topology, enabled = wanted_topology(scale), scale.spec.enabled
    same = was is not None and (was.topology, was.enabled, was.owner_uid) == (topology, enabled, scale.metadata.uid)
    if same or not all(_has_worker(scale, observed, index) for index in range(_routed(was), topology.shards)):
        return None
    return Flip(was, topology, enabled)


def _routed(row: TopologyRecord | None) -> int:
    """Return how many shards producers use."""
    return (ONE_QUEUE if row is None else row.topology).shards


def _stays(scale: SynapseScale, observed: Observed, index: int) -> bool:
    """Whether a shard is to have a Deployment."""
    if index < scale.spec.queue.shards:
        return True
    present = _rollout(scale, observed, index) is not None
    if isinstance(observed.topology, Unknown) or isinstance(observed.queues, Unknown):
        return present
    if index < _routed(observed.topology):
        return True  # producers may still use it
    return (present and str(index) not in observed.drained) or _holds_jobs(observed, index)


def _shard(scale: SynapseScale, observed: Observed, index: int) -> Shard:
    state = ShardState.ACTIVE
    if index >= scale.spec.queue.shards:
        state = ShardState.DRAINING
    elif not isinstance(observed.topology, Unknown) and index >= _routed(observed.topology):
        state = ShardState.IDLE
    return Shard(index, queues_of(index), _replicas(scale, observed, index, state), state)


def _replicas(scale: SynapseScale, observed: Observed, index: int, state: ShardState) -> int:
    """Return the workers of a shard.

    A draining shard keeps those that it has, and one is brought back for a job that is found there. With
    `enabled: false` the present workers stay while there is work, go when there is none, and one is brought back for a
    job that still arrives; `replicas` of the spec stays the upper bound.
    """
    most = scale.spec.workers_of(index).replicas
    rollout = _rollout(scale, observed, index)
    present = rollout.wanted if rollout else 0
    if scale.spec.enabled and state is not ShardState.DRAINING:
        return most
    idle = observed.idle
    if isinstance(idle, Unknown):
        return min(present, most)
    if idle and not scale.spec.enabled:
        return 0
    # What only PostgreSQL knows of is somebody's to look after: shard 0's, where there is nothing in any queue.
    lost = index == 0 and not observed.any_queued
    return min(max(present, 1 if lost or _holds_jobs(observed, index) else 0), most)


def _has_worker(scale: SynapseScale, observed: Observed, index: int) -> bool:
    rollout = _rollout(scale, observed, index)
    wanted = _replicas(scale, observed, index, ShardState.IDLE)
    return rollout is not None and rollout.current and rollout.ready >= min(1, wanted)


def _holds_jobs(observed: Observed, index: int) -> bool:
    return not isinstance(observed.queues, Unknown) and any(
        figures.queued or figures.active for name in queues_of(index) if (figures := observed.queues.get(name))
    )


def _rollout(scale: SynapseScale, observed: Observed, index: int) -> Rollout | None:
    """Return how far the shard's Deployment is; None = there is none, or it goes."""
    metadata = scale.metadata
    ref = Ref(Kind.DEPLOYMENT, metadata.namespace, naming.deployment_name(metadata.name, index))
    child = observed.child(ref)
    return None if child is None or child.terminating else Rollout.of(child)
