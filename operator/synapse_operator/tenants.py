"""Which rows the SynapseTenants of one scale want in its database, and how each of them stands.

Pure, and over all tenants of a scale at once, since they contend for ids. `backends` brings the rows there and asks
how the tenants stand; what a user reads of it is `tenant_status`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.api.scale import InvalidScale, SynapseScale
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant
from synapse_operator.desired.shards import wanted_topology
from synapse_operator.naming import SCALE_KIND, TENANT_KIND
from synapse_operator.observed import NotTried, Unreachable, Unusable
from synapse_worker.contract import DEFAULT_QUEUE, TENANT_POOL
from synapse_worker.routing import why_no_queue
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

    @property
    def rows(self) -> list[ManagedRow]:
        """The rows that are wanted."""
        return [
            ManagedRow(
                tenant_id=tenant_id,
                managed_by=tenant.metadata.uid,
                name=tenant.spec.name,
                max_concurrent_runs=tenant.spec.max_concurrent_runs,
                max_queued_runs=tenant.spec.max_queued_runs,
                priority=tenant.spec.priority,
            )
            for tenant_id, tenant in self.holders.items()
        ]


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
    """Return the SynapseTenants of one scale, of those of its namespace; what is being deleted is nobody's any more."""
    return [body for body in bodies if scale_name(body) == scale and "deletionTimestamp" not in body["metadata"]]


def living(bodies: Iterable[JsonObject]) -> list[str]:
    """Return the UIDs that a row may be managed by: those of all tenants of a namespace, readable or not."""
    return [body["metadata"]["uid"] for body in bodies if "deletionTimestamp" not in body["metadata"]]


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


def place_of(scale: SynapseScale, tenant_id: str) -> Place:
    """Return where the jobs of a tenant go by the spec; those of a higher priority may go elsewhere."""
    topology = wanted_topology(scale)
    for route in topology.routes:
        if route.takes(tenant_id, 0):
            return Place(str(route.shard), SHARED_WORKERS)
    if topology.isolation and not why_no_queue(tenant_id):
        return Place(tenant_id, TENANT_POOL)
    return Place(DEFAULT_QUEUE if topology.shards == 1 else f"0..{topology.shards - 1}", SHARED_WORKERS)


def judge(
    tenant: SynapseTenant | InvalidTenant, home: Home, claims: Claims, store: TenantStore, *, exclusive: bool
) -> Verdict:
    """Return how one tenant stands: the first thing that is wrong, causes before their consequences.

    Args:
        tenant: one that is not being deleted.
        home: its scale; one that is being deleted counts as none.
        claims: of all tenants of the scale.
        store: what PostgreSQL says; not looked at without a scale.
        exclusive: whether rows of tenants that are gone may be taken.
    """
    if isinstance(tenant, InvalidTenant):
        return Verdict(Reason.INVALID_SPEC, tenant.sentence)
    if home is None or home.metadata.deletion_timestamp is not None:
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
    if standing.managed_by != tenant.metadata.uid:
        return Verdict(Reason.NOT_MANAGED, _not_managed(tenant, standing, exclusive=exclusive), place, standing)
    return Verdict(
        Reason.TENANT_STORED, f"Its row is in the database of {SCALE_KIND} {home.metadata.name}", place, standing
    )


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
