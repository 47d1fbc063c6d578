"""When a SynapseTenant that is being deleted may go: its queue is worked off first, within limits.

Pure. Only a tenant with a queue of its own is held, by a finalizer of ours, and never without an end: a wait that
nobody could end would keep a namespace from going. What becomes of its row meanwhile is `tenants`'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_operator.api.common import ObjectMeta
from synapse_operator.api.scale import InvalidScale
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant
from synapse_operator.naming import DRAIN_FINALIZER
from synapse_operator.observed import Unknown
from synapse_operator.tenants import Claims, Home, is_gone, own_queue
from synapse_worker.store.tenants import Standing


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a tenant's work.

    Attributes:
        standing: its row and its runs.
        jobs: jobs in its own queue, waiting and running.
    """

    standing: Standing
    jobs: int

    def over(self, uid: str) -> bool:
        """Whether there is nothing to wait for: new runs are refused, and none is left; or the row is not its own."""
        mine = self.standing.managed_by == uid
        left = self.standing.queued or self.standing.active or self.jobs
        return not mine or (self.standing.deleting and not left)


def deadline(tenant: SynapseTenant) -> datetime:
    """Return when a tenant that is being deleted is waited for no longer, UTC."""
    began = datetime.fromisoformat(tenant.metadata.deletion_timestamp or "")
    return began + timedelta(seconds=tenant.spec.drain_timeout_seconds)


def is_over(
    tenant: SynapseTenant | InvalidTenant,
    home: Home,
    remains: Mapping[str, Remains] | Unknown,
    *,
    namespace_goes: bool,
    now: datetime,
) -> bool:
    """Return whether a tenant that is being deleted is held no longer.

    Args:
        tenant: one that our finalizer holds.
        home: its scale.
        remains: what is left, by tenant id; unknown is never empty, so the wait goes on to its end.
        namespace_goes: whether the namespace is being deleted.
        now: the present time, UTC.
    """
    if isinstance(tenant, InvalidTenant) or tenant.metadata.skips_drain or namespace_goes or is_gone(home):
        return True
    if now >= deadline(tenant):
        return True
    if home is None or isinstance(home, InvalidScale):
        return False
    if not own_queue(home, tenant.tenant_id):
        return True
    left = None if isinstance(remains, Unknown) else remains.get(tenant.tenant_id)
    return left is not None and left.over(tenant.metadata.uid)


def with_finalizer(
    tenant: SynapseTenant | InvalidTenant, home: Home, claims: Claims, *, over: bool
) -> tuple[str, ...] | None:
    """Return the finalizers that a tenant is to have; None = those that it has.

    Args:
        tenant: the tenant.
        home: its scale.
        claims: of all tenants of the scale.
        over: whether it is being deleted and held no longer.
    """
    has = tenant.metadata.finalizers
    if isinstance(home, InvalidScale) and not over:
        return None  # whether tenants have queues of their own cannot be read
    wants = (
        not over
        and isinstance(tenant, SynapseTenant)
        and home is not None
        and not isinstance(home, InvalidScale)
        and not is_gone(home)
        and own_queue(home, tenant.tenant_id)
        and claims.holders.get(tenant.tenant_id) is tenant
    )
    if wants == (DRAIN_FINALIZER in has):
        return None
    if wants:
        # The API server takes none that comes after the deletion.
        return None if tenant.metadata.deletion_timestamp else (*has, DRAIN_FINALIZER)
    return tuple(each for each in has if each != DRAIN_FINALIZER)


def is_held(metadata: ObjectMeta) -> bool:
    """Whether a tenant is being deleted and our finalizer holds it."""
    return metadata.deletion_timestamp is not None and DRAIN_FINALIZER in metadata.finalizers
