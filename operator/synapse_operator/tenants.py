"""Which rows the SynapseTenants of one scale want in its database, and how each of them stands.

Pure, and over all tenants of a scale at once, since they contend for ids. `backends` brings the rows there and asks
how the tenants stand; what a user reads of it is `tenant_status`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.api.scale import InvalidScale, SynapseScale
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant
from synapse_operator.desired.shards import wanted_topology
from synapse_operator.naming import DRAIN_FINALIZER, SCALE_KIND, SKIP_DRAIN_ANNOTATION, TENANT_KIND
from synapse_operator.observed import DedicatedTenant, NotTried, Unreachable, Unusable
from synapse_worker.contract import DEFAULT_QUEUE, TENANT_POOL
from synapse_worker.routing import is_tenants_own, why_no_queue
from synapse_worker.store.tenants import ManagedRow, Standing

SHARED_WORKERS = "shards"
"""Who serves a tenant that has no queue of its own: the workers of the scale's shards."""

Home = SynapseScale | InvalidScale | None
"""The scale that tenants name; None = there is none."""


@dataclass(frozen=True, slots=True)
class NotMigrated:
    """PostgreSQL answers and lacks the tables of this release."""


TenantStore = Mapping[str, Standing] | NotMigrated | Unreachable | Unusable | NotTried
"""What PostgreSQL says of the tenants, by their ids, once the rows are as wanted; or why it says nothing."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Who has which tenant id.

    Attributes:
        holders: tenant id -> the tenant whose it is.
        older: UID of a tenant that has to stand back -> the one whose its id is.
    """

    holders: Mapping[str, SynapseTenant]
    older: Mapping[str, SynapseTenant]


@dataclass(frozen=True, slots=True)
class Place:
    """Where the jobs of a tenant wait, and whose workers take them."""

    queue: str
    served_by: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one tenant stands.

    Attributes:
        reason, message: of its condition Ready.
        place: where its jobs wait; None = its scale is not known.
        standing: its row and its runs; None = not known, or counted with another tenant.
    """

    reason: Reason
    message: str
    place: Place | None = None
    standing: Standing | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing is to be done."""
        return self.reason is Reason.TENANT_STORED


def scale_name(body: JsonObject) -> str:
    """Return the scale that a stored SynapseTenant names; "" = none, in an object that breaks the schema."""
    reference = (body.get("spec") or {}).get("scaleRef") or {}
    return str(reference.get("name") or "")


def of_scale(bodies: Iterable[JsonObject], scale: str) -> list[JsonObject]:
    """Return the SynapseTenants of one scale, of those of its namespace, without those that nothing of ours holds."""
    return [body for body in bodies if scale_name(body) == scale and _is_here(body)]


def living(bodies: Iterable[JsonObject], *, over: Collection[str] = ()) -> list[str]:
    """Return the UIDs that a row may be managed by: those of all tenants of a namespace, readable or not.

    Args:
        bodies: all SynapseTenants of the namespace.
        over: UIDs of those that are held no longer.
    """
    return [body["metadata"]["uid"] for body in bodies if _is_here(body) and body["metadata"]["uid"] not in over]


def _is_here(body: JsonObject) -> bool:
    """Whether a tenant counts: it is not being deleted, or we hold it until its queue is empty."""
    metadata = body["metadata"]
    return "deletionTimestamp" not in metadata or DRAIN_FINALIZER in (metadata.get("finalizers") or ())


def claims(tenants: Iterable[SynapseTenant | InvalidTenant]) -> Claims:
    """Return who has which id: the oldest who wants it; of two of the same second, the one with the smaller UID."""
    holders: dict[str, SynapseTenant] = {}
    older: dict[str, SynapseTenant] = {}
    readable = [tenant for tenant in tenants if isinstance(tenant, SynapseTenant)]
    for tenant in sorted(readable, key=lambda each: (each.metadata.creation_timestamp, each.metadata.uid)):
        holder = holders.setdefault(tenant.tenant_id, tenant)
        if holder is not tenant:
            older[tenant.metadata.uid] = holder
    return Claims(holders, older)


def is_gone(home: Home) -> bool:
    """Whether there is no scale, or it is being deleted."""
    return home is None or home.metadata.deletion_timestamp is not None


def own_queue(scale: SynapseScale, tenant_id: str) -> bool:
    """Whether a tenant has a queue of its own, by the spec."""
    return place_of(scale, tenant_id).served_by == TENANT_POOL


def place_of(scale: SynapseScale, tenant_id: str) -> Place:
    """Return where the jobs of a tenant go by the spec; those of a higher priority may go elsewhere."""
    topology = wanted_topology(scale)
    for route in topology.routes:
        if route.takes(tenant_id, 0):
            return Place(str(route.shard), SHARED_WORKERS)
    if topology.isolation and is_tenants_own(tenant_id) and not why_no_queue(tenant_id):
        return Place(tenant_id, TENANT_POOL)
    one = topology.shards == 1 or (topology.isolation and tenant_id == DEFAULT_QUEUE)
    return Place(DEFAULT_QUEUE if one else f"0..{topology.shards - 1}", SHARED_WORKERS)


def dedicated(scale: SynapseScale, claims: Claims) -> dict[str, DedicatedTenant]:
    """Return the tenants that are to have workers of their own, by their shards."""
    found = {}
    for tenant_id, tenant in claims.holders.items():
        if tenant.spec.workers is not None and _why_no_workers(scale, tenant_id) is None:
            shard = naming.tenant_shard(tenant_id)
            found[shard] = DedicatedTenant(shard, tenant_id, tenant.metadata.name, tenant.spec.workers)
    return found


def rows(scale: SynapseScale, claims: Claims, serving: Collection[str]) -> list[ManagedRow]:
    """Return the rows that are wanted.

    Args:
        scale: the scale.
        claims: of its tenants.
        serving: ids of tenants whose own workers are known to be there. Until they are, the pool keeps the queue; once
            they were, it stays theirs.
    """
    apart = {tenant.tenant_id for tenant in dedicated(scale, claims).values()}
    return [
        ManagedRow(
            tenant_id=tenant_id,
            managed_by=tenant.metadata.uid,
            name=tenant.spec.name,
            max_concurrent_runs=tenant.spec.max_concurrent_runs,
            max_queued_runs=tenant.spec.max_queued_runs,
            priority=tenant.spec.priority,
            dedicated=(True if tenant_id in serving else None) if tenant_id in apart else False,
            deleting=tenant.terminating,
            rate_limit_rps=tenant.spec.rate_limit_rps,
        )
        for tenant_id, tenant in claims.holders.items()
    ]


def _why_no_workers(scale: SynapseScale, tenant_id: str) -> tuple[Reason, str] | None:
    """Return why a tenant cannot have workers of its own; None = it can."""
    if not scale.spec.tenancy.isolation:
        return Reason.ISOLATION_OFF, "tenancy.isolation is false there: turn it on, or take spec.workers away"
    if not own_queue(scale, tenant_id):
        where = place_of(scale, tenant_id).queue
        return Reason.WORKERS_UNUSED, f"its jobs go to the queue {where}, which shards serve; take spec.workers away"
    if "," in tenant_id or tenant_id != tenant_id.strip() or tenant_id == TENANT_POOL:
        sentence = (
            f"WORKER_QUEUE_SHARD cannot name {tenant_id!r}, since it is {TENANT_POOL}, holds a comma, or begins or "
            "ends with a space; the tenant pool serves its queue"
        )
        return Reason.WORKERS_UNUSED, sentence
    return None


def judge(
    tenant: SynapseTenant | InvalidTenant, home: Home, claims: Claims, store: TenantStore, *, exclusive: bool
) -> Verdict:
    """Return how one tenant stands: the first thing that is wrong, causes before their consequences.

    Args:
        tenant: one that is not being deleted, or that we hold.
        home: its scale; one that is being deleted counts as none.
        claims: of all tenants of the scale.
        store: what PostgreSQL says; not looked at without a scale.
        exclusive: whether rows of tenants that are gone may be taken.
    """
    if isinstance(tenant, InvalidTenant):
        return Verdict(Reason.INVALID_SPEC, tenant.sentence)
    if home is None or is_gone(home):
        what = "does not exist in this namespace" if home is None else "is being deleted"
        message = f"{SCALE_KIND} {tenant.spec.scale_ref.name} {what}; create it, or delete this {TENANT_KIND}"
        return Verdict(Reason.SCALE_NOT_FOUND, message)
    if isinstance(home, InvalidScale):
        return Verdict(Reason.INVALID_SPEC, f"{SCALE_KIND} {home.metadata.name} cannot be read: {home.sentence}")
    place = place_of(home, tenant.tenant_id)
    if (older := claims.older.get(tenant.metadata.uid)) is not None:
        message = (
            f"{TENANT_KIND} {older.metadata.name} has the tenant id {tenant.tenant_id!r} and is older; "
            "delete one of the two"
        )
        return Verdict(Reason.DUPLICATE_TENANT_ID, message, place)
    if tenant.terminating:
        left = store.get(tenant.tenant_id) if isinstance(store, Mapping) else None
        message = (
            "It is being deleted and goes when its queue is empty, or spec.drainTimeoutSeconds "
            f"({tenant.spec.drain_timeout_seconds}) are over; new runs are refused. "
            f"The annotation {SKIP_DRAIN_ANNOTATION} ends the wait"
        )
        return Verdict(Reason.DRAINING, message, place, left)
    if isinstance(store, Unreachable):
        return Verdict(Reason.POSTGRES_UNREACHABLE, f"{store.sentence}; limits stay as they were", place)
    if isinstance(store, Unusable):
        return Verdict(Reason.POSTGRES_UNUSABLE, store.sentence, place)
    if isinstance(store, NotTried):
        message = f"PostgreSQL was not asked: {store.sentence}; see {SCALE_KIND} {home.metadata.name}"
        return Verdict(Reason.NOT_TRIED, message, place)
    if isinstance(store, NotMigrated):
        message = "PostgreSQL lacks the tables of this release; the first worker that starts makes them"
        return Verdict(Reason.NOT_MIGRATED, message, place)
    if home.spec.tenancy.isolation and (why := why_no_queue(tenant.tenant_id)):
        message = (
            f"{SCALE_KIND} {home.metadata.name} gives each tenant a queue of its own, and {tenant.tenant_id!r} cannot "
            f"name one: {why}"
        )
        return Verdict(Reason.INVALID_SPEC, message, place)
    standing = store[tenant.tenant_id]
    if standing.dedicated and place.served_by == TENANT_POOL:
        own = naming.deployment_name(home.metadata.name, naming.tenant_shard(tenant.tenant_id))
        place = Place(place.queue, own)
    if standing.managed_by != tenant.metadata.uid:
        return Verdict(Reason.NOT_MANAGED, _not_managed(tenant, standing, exclusive=exclusive), place, standing)
    if tenant.spec.workers is not None and (why_not := _why_no_workers(home, tenant.tenant_id)) is not None:
        reason, sentence = why_not
        message = f"spec.workers has no effect with {SCALE_KIND} {home.metadata.name}: {sentence}"
        return Verdict(reason, message, place, standing)
    message = f"Its row is in the database of {SCALE_KIND} {home.metadata.name}"
    if tenant.spec.workers is not None and not standing.dedicated:
        message += "; its own workers are not ready yet, and the tenant pool serves its queue"
    return Verdict(Reason.TENANT_STORED, message, place, standing)


def _not_managed(tenant: SynapseTenant, standing: Standing, *, exclusive: bool) -> str:
    row = f"the row of tenant {tenant.tenant_id!r} in the table tenants"
    if not standing.has_row:
        return f"{row} was deleted a moment ago; it is made again"
    if standing.managed_by is None:
        return f"{row} was made by somebody else, as on a main instance's settings page; delete it there"
    if exclusive:
        return f"{row} belongs to another {TENANT_KIND} (UID {standing.managed_by}); delete one of the two"
    return (
        f"{row} belongs to another {TENANT_KIND} (UID {standing.managed_by}), which may be gone: "
        "that is not known while BackendExclusive of the scale is not True"
    )
