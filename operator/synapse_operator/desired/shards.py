"""Which shards have workers, how many, and which topology producers are to go by.

The spec says which shards there should be; the topology's row in PostgreSQL says which ones producers use already.
Between the two: new shards get their workers before the row names them, and what the row names no more keeps its
workers until nothing can come and nothing is left. Unknown is never idle: while a store cannot say, no shard goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from synapse_operator import naming
from synapse_operator.api.scale import SynapseScale
from synapse_operator.api.workers import CONCURRENCY, MAX_REPLICAS, WorkersSpec
from synapse_operator.autoscale import Recent, bounded, load_of, recommended, remembered
from synapse_operator.naming import Kind, Ref
from synapse_operator.observed import Child, Observed, QueueFigures, Rollout, TopologyRecord, Unknown
from synapse_worker.contract import DEFAULT_QUEUE, MAX_SHARDS, TENANT_POOL
from synapse_worker.routing import ONE_QUEUE, Route, Topology, is_tenants_own

_COMMON = (*(str(index) for index in range(MAX_SHARDS)), TENANT_POOL)
"""Every shard that there can be beside those of single tenants."""


class ShardState(StrEnum):
    """What comes to a shard: new jobs, none any more, none yet."""

    ACTIVE = "Active"
    DRAINING = "Draining"
    IDLE = "Idle"


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard that has, or is to have, a Deployment; the tenant pool is one too, and so is a tenant with workers.

    Attributes:
        name: index, "0" to "63", `tenants` for the pool of tenants' own queues, or what stands for a single tenant.
        serves: what its workers are told to serve, in their order (WORKER_QUEUE_SHARD).
        replicas: workers that are wanted.
        workers: what they are like.
        tenant: name of the SynapseTenant whose workers these are; "" = they serve many.
        handed_over: somebody else sets the replicas of its Deployment, so ours are left out of the apply.
    """

    name: str
    serves: tuple[str, ...]
    replicas: int
    state: ShardState
    workers: WorkersSpec
    tenant: str = ""
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class Flip:
    """One change of the topology's row, valid only while the row is still `was` (None = there is none)."""

    was: TopologyRecord | None
    topology: Topology
    enabled: bool


def wanted_topology(scale: SynapseScale) -> Topology:
    """Return the topology that the spec asks for."""
    routes = (Route(route.shard, route.tenants, route.min_priority) for route in scale.spec.queue.routes)
    return Topology(scale.spec.queue.shards, isolation=scale.spec.tenancy.isolation, routes=tuple(routes))


def shards_of(scale: SynapseScale, observed: Observed) -> tuple[Shard, ...]:
    """Return the shards that are to have a Deployment, by index, then the tenant pool, then those of single tenants."""
    return tuple(_shard(scale, observed, name) for name in _names(observed) if _stays(scale, observed, name))


def expected_shards(scale: SynapseScale, dedicated: Iterable[str]) -> list[str]:
    """Return the names of the shards that the spec asks for, with those of the given single tenants."""
    topology = wanted_topology(scale)
    return [name for name in (*_COMMON, *sorted(dedicated)) if is_used(topology, name)]


def serving(scale: SynapseScale, observed: Observed) -> frozenset[str]:
    """Return the ids of the tenants whose own workers are there to take over from the tenant pool."""
    found = observed.dedicated.items()
    return frozenset(tenant.tenant_id for name, tenant in found if _has_worker(scale, observed, name))


def flip_of(scale: SynapseScale, observed: Observed) -> Flip | None:
    """Return how the topology's row is to be changed now; None = not, or not yet.

    Growing waits until each new shard has a worker that is ready; all else holds at once.
    """
    if isinstance(observed.topology, Unknown):
        return None
    was = observed.topology
    # Two scales on the same stores would change the row in turns; the one that both are marked for has it.
    uid = scale.metadata.uid
    ours = observed.redis_owner == uid or (
        isinstance(observed.redis_owner, Unknown) and (was is None or was.owner_uid == uid)
    )
    if not ours or not (was is None or was.is_free_for(uid)):
        return None
    topology, enabled = wanted_topology(scale), scale.spec.enabled
    if was is not None and (was.topology, was.enabled, was.owner_uid) == (topology, enabled, uid):
        return None
    new = [name for name in _COMMON if is_used(topology, name) and not is_used(_used(was), name)]
    return Flip(was, topology, enabled) if all(_has_worker(scale, observed, name) for name in new) else None


def recommendations(
    scale: SynapseScale, observed: Observed, before: Mapping[str, Recent], now: datetime
) -> dict[str, Recent]:
    """Return what was asked for lately, for each shard whose workers the operator counts by their jobs.

    While a store cannot say, or autoscaling is paused, the workers that there are count as asked for.

    Args:
        scale: the scale.
        observed: what is there now; its `recommended` is not read.
        before: the answer of the last look.
        now: the present time, UTC.
    """
    found = {}
    for name in _names(observed):
        autoscaling = workers_of(scale, observed, name).autoscaling
        if autoscaling.mode != "BuiltIn" or not is_used(wanted_topology(scale), name):
            continue
        rollout = _rollout(scale, observed, name)
        present = rollout.wanted if rollout else 0
        window = timedelta(seconds=autoscaling.scale_down_stabilization_seconds)
        asked = _asked_for(scale, observed, name)
        if asked is None:
            asked = present if rollout else bounded(autoscaling, 0)
            if name == "0" and observed.outdated:
                asked = bounded(autoscaling, max(asked, 1))
        found[name] = remembered(before.get(name, ()), asked, present=present, window=window, now=now)
    return found


def queues_of(name: str, observed: Observed) -> Mapping[str, QueueFigures]:
    """Return the figures of the queues that a shard serves, as far as they are known."""
    return {} if isinstance(observed.queues, Unknown) else _served(observed, observed.queues, name)


def workers_of(scale: SynapseScale, observed: Observed, name: str) -> WorkersSpec:
    """Return what the workers of a shard are like."""
    if (tenant := observed.dedicated.get(name)) is not None:
        return scale.spec.workers.overridden(tenant.workers)
    if name == TENANT_POOL:
        return scale.spec.workers.overridden(scale.spec.tenancy.pool)
    return scale.spec.workers_of(int(name))


def deployment_of(scale: SynapseScale, observed: Observed, name: str) -> Child | None:
    """Return the Deployment of a shard as it is; None = there is none."""
    metadata = scale.metadata
    return observed.child(Ref(Kind.DEPLOYMENT, metadata.namespace, naming.deployment_name(metadata.name, name)))


def is_used(topology: Topology, name: str) -> bool:
    """Whether producers that go by `topology` enqueue to a shard."""
    return int(name) < topology.shards if name.isdecimal() else topology.isolation


def _used(row: TopologyRecord | None) -> Topology:
    """Return what producers go by."""
    return ONE_QUEUE if row is None else row.topology


def _names(observed: Observed) -> tuple[str, ...]:
    """Return every shard that there can be."""
    return (*_COMMON, *sorted(observed.dedicated))


def _served(observed: Observed, queues: Mapping[str, QueueFigures], name: str) -> Mapping[str, QueueFigures]:
    if name == TENANT_POOL:
        apart = {tenant.tenant_id for tenant in observed.dedicated.values()}
        return {queue: each for queue, each in queues.items() if is_tenants_own(queue) and queue not in apart}
    return {queue: queues[queue] for queue in _serves(observed, name) if queue in queues}


def _serves(observed: Observed, name: str) -> tuple[str, ...]:
    if (tenant := observed.dedicated.get(name)) is not None:
        return (tenant.tenant_id,)
    # Shard 0 serves `default`, where upstream main instances enqueue, and its own at every number of shards, so that
    # another number rolls nothing.
    return (DEFAULT_QUEUE, name) if name == "0" else (name,)


def _stays(scale: SynapseScale, observed: Observed, name: str) -> bool:
    """Whether a shard is to have a Deployment."""
    if is_used(wanted_topology(scale), name):
        return True
    present = _rollout(scale, observed, name) is not None
    if isinstance(observed.topology, Unknown) or isinstance(observed.queues, Unknown):
        return present
    if is_used(_used(observed.topology), name):
        return True  # producers may still use it
    return (present and name not in observed.drained) or _holds_jobs(observed, name)


def _shard(scale: SynapseScale, observed: Observed, name: str) -> Shard:
    state = ShardState.ACTIVE
    if not is_used(wanted_topology(scale), name):
        state = ShardState.DRAINING
    elif not isinstance(observed.topology, Unknown) and not is_used(_used(observed.topology), name):
        state = ShardState.IDLE
    replicas = _replicas(scale, observed, name, state)
    child = deployment_of(scale, observed, name)
    # Leaving them out while they are ours alone would reset them to 1, and busy pods would go.
    workers, tenant = workers_of(scale, observed, name), observed.dedicated.get(name)
    handed_over = _is_external(scale, workers, state) and child is not None and child.others_set_replicas
    resource = "" if tenant is None else tenant.resource
    return Shard(name, _serves(observed, name), replicas, state, workers, resource, handed_over)


def _is_external(scale: SynapseScale, workers: WorkersSpec, state: ShardState) -> bool:
    """Whether the workers of a shard are somebody else's to count; those of one that goes are ours."""
    mode = workers.autoscaling.mode
    return mode == "External" and scale.spec.enabled and state is not ShardState.DRAINING


def _replicas(scale: SynapseScale, observed: Observed, name: str, state: ShardState) -> int:
    """Return the workers of a shard.

    A draining shard keeps those that it has, and one is brought back for a job that is found there. With
    `enabled: false` the present workers stay while there is work, go when there is none, and one is brought back for a
    job that still arrives; what the spec says of their number stays the upper bound.
    """
    workers = workers_of(scale, observed, name)
    rollout = _rollout(scale, observed, name)
    present = rollout.wanted if rollout else 0
    if _is_external(scale, workers, state):
        return rollout.wanted if rollout else workers.replicas
    if scale.spec.enabled and state is not ShardState.DRAINING:
        if workers.autoscaling.mode == "BuiltIn":
            return _autoscaled(workers, observed, name, rollout)
        return workers.replicas
    most = _most(workers)
    idle = observed.idle
    if isinstance(idle, Unknown):
        return min(max(present, 1 if name == "0" and observed.outdated else 0), most)
    if idle and not scale.spec.enabled:
        return 0
    return min(max(present, 1 if _is_lost(observed, name) or _holds_jobs(observed, name) else 0), most)


def _most(workers: WorkersSpec) -> int:
    """Return how many workers the spec lets a shard have at most."""
    if workers.autoscaling.mode == "Off":
        return workers.replicas
    return bounded(workers.autoscaling, MAX_REPLICAS) if workers.autoscaling.mode == "BuiltIn" else MAX_REPLICAS


def _autoscaled(workers: WorkersSpec, observed: Observed, name: str, rollout: Rollout | None) -> int:
    """Return the workers of a shard that are counted by its jobs."""
    autoscaling = workers.autoscaling
    if autoscaling.paused and rollout is not None:
        return rollout.wanted
    return bounded(autoscaling, observed.recommended.get(name, rollout.wanted if rollout else 0))


def _asked_for(scale: SynapseScale, observed: Observed, name: str) -> int | None:
    """Return the workers that the jobs of a shard ask for now; None = it is not known, or not to be asked."""
    workers = workers_of(scale, observed, name)
    if workers.autoscaling.paused or isinstance(observed.queues, Unknown) or isinstance(observed.overview, Unknown):
        return None
    target = workers.autoscaling.target_jobs_per_worker or workers.concurrency
    if target is None:
        stored = None if isinstance(observed.stored, Unknown) else observed.stored.get(CONCURRENCY.stored or "")
        target = max(1, stored if isinstance(stored, int) else int(CONCURRENCY.default or 1))
    needed = _is_lost(observed, name) or (name == "0" and not observed.migrated)
    load = load_of(_served(observed, observed.queues, name).values())
    return recommended(workers.autoscaling, load, target=target, least=1 if needed else 0)


def _is_lost(observed: Observed, name: str) -> bool:
    """Whether a shard has to look after work of which only PostgreSQL knows.

    Shard 0 has, where there is nothing in any queue; else whoever works there does.
    """
    known = not isinstance(observed.overview, Unknown) and observed.overview.has_work
    return name == "0" and known and not observed.any_queued


def _has_worker(scale: SynapseScale, observed: Observed, name: str) -> bool:
    rollout = _rollout(scale, observed, name)
    wanted = _replicas(scale, observed, name, ShardState.IDLE)
    return rollout is not None and rollout.current and rollout.ready >= min(1, wanted)


def _holds_jobs(observed: Observed, name: str) -> bool:
    return not isinstance(observed.queues, Unknown) and any(
        figures.queued or figures.active for figures in _served(observed, observed.queues, name).values()
    )


def _rollout(scale: SynapseScale, observed: Observed, name: str) -> Rollout | None:
    """Return how far the shard's Deployment is; None = there is none, or it goes."""
    child = deployment_of(scale, observed, name)
    return None if child is None or child.terminating else Rollout.of(child)
