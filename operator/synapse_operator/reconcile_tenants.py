"""The order of one look at all SynapseTenants of a scale: read them, bring their rows there, tell each how it stands.

One look answers for all of them, so that a thousand tenants cost a few statements. What each step knows is in its own
module; the scale itself is `reconcile`'s, and so are the connections that are used here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from synapse_operator import tenants
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.api.scale import SynapseScale, read_scale
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, read_tenant
from synapse_operator.backends import Backends, TenantsView
from synapse_operator.cluster import observe
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.finalizers import Finalizers
from synapse_operator.cluster.observe import TenantsKey
from synapse_operator.cluster.report import TenantReporter
from synapse_operator.dedicated import Dedicated
from synapse_operator.naming import TENANT_KIND
from synapse_operator.observed import NotTried, Unknown
from synapse_operator.plan import LOOK_AGAIN, LOOK_AGAIN_AT_LOAD, LOOK_AGAIN_SOON
from synapse_operator.telemetry import Metrics
from synapse_operator.tenant_drains import Remains, deadline, is_held, is_over, with_finalizer
from synapse_operator.tenant_status import FIGURES_EVERY, next_status
from synapse_operator.workqueue import Again
from synapse_worker.store.tenants import RowChanges

_log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 1.0
"""How soon to come back while the scale itself has not been looked at."""

_NO_SCALE = TenantsView(
    exclusive=False,
    store=NotTried("there is no SynapseScale to ask for"),
    changes=RowChanges(frozenset(), frozenset(), frozenset()),
)


class TenantReconciler:
    """Brings all SynapseTenants of a scale to what their specs say, one call each scale."""

    def __init__(self, client: Client, backends: Backends, dedicated: Dedicated, metrics: Metrics) -> None:
        self._client = client
        self._backends = backends
        self._dedicated = dedicated
        self._metrics = metrics
        self._finalizers = Finalizers(client)
        self._reporter = TenantReporter(client)
        self._figures_at: dict[TenantsKey, datetime] = {}

    async def __call__(self, key: TenantsKey) -> Again | None:
        """Look once and say when to look again; None = there is neither the scale nor a tenant of it.

        Raises:
            ApiUnavailable, ApiRefused: the API server could not be asked or told; try again.
        """
        with self._metrics.reconcile(TENANT_KIND):
            listed, stored = await asyncio.gather(
                observe.list_tenants(self._client, key.scale.namespace), observe.read_stored(self._client, key.scale)
            )
            home = read_scale(stored) if stored is not None else None
            mine = [(read_tenant(body), body) for body in tenants.of_scale(listed, key.scale.name)]
            if home is None and not mine:
                self._figures_at.pop(key, None)
                return None
            over = await self._over(key, home, [tenant for tenant, _ in mine])
            here = [(tenant, body) for tenant, body in mine if tenant.metadata.uid not in over]
            claims = tenants.claims(tenant for tenant, _ in here)
            view: TenantsView | None = _NO_SCALE
            if isinstance(home, SynapseScale) and not home.terminating:
                view = await self._backends.keep_tenants(
                    key.scale,
                    home.metadata.uid,
                    tenants.rows(home, claims, self._dedicated.serving(key.scale)),
                    tenants.living(listed, over=over),
                )
                self._dedicated.want(key.scale, tenants.dedicated(home, claims))
            written, refused = await self._finalizers.write(
                (tenant.metadata, finalizers)
                for tenant, _ in mine
                if (finalizers := with_finalizer(tenant, home, claims, over=tenant.metadata.uid in over)) is not None
            )
            again = Again(after=_FIRST_LOOK_SECONDS)
            if view is not None:
                _log_changes(key, view.changes)
                told = await self._tell(key, here, home, claims, view)
                again = _sooner(told, None if written else _FIRST_LOOK_SECONDS, _wait(here, view.changes))
            if refused is not None:
                raise refused  # only now: what the API server refuses of one tenant concerns that one alone
            return again

    async def _over(
        self, key: TenantsKey, home: tenants.Home, mine: Sequence[SynapseTenant | InvalidTenant]
    ) -> frozenset[str]:
        """Return the UIDs of those that are being deleted and held no longer."""
        held = [tenant for tenant in mine if is_held(tenant.metadata)]
        if not held:
            return frozenset()
        remains: Mapping[str, Remains] | Unknown = {}
        if isinstance(home, SynapseScale) and not home.terminating:
            ids = [tenant.tenant_id for tenant in held if isinstance(tenant, SynapseTenant)]
            remains = await self._backends.remains(key.scale, home.metadata.uid, ids)
        namespace_goes = await observe.is_terminating(self._client, key.scale.namespace)
        now = datetime.now(UTC)
        return frozenset(
            tenant.metadata.uid
            for tenant in held
            if is_over(tenant, home, remains, namespace_goes=namespace_goes, now=now)
        )

    async def _tell(
        self,
        key: TenantsKey,
        mine: list[tuple[SynapseTenant | InvalidTenant, JsonObject]],
        home: tenants.Home,
        claims: tenants.Claims,
        view: TenantsView,
    ) -> Again:
        now = datetime.now(UTC)
        due_at = self._figures_at.get(key, now - FIGURES_EVERY) + FIGURES_EVERY
        due = due_at <= now
        statuses: list[tuple[ObjectMeta, JsonObject]] = []
        held_back = False
        for tenant, body in mine:
            verdict = tenants.judge(tenant, home, claims, view.store, exclusive=view.exclusive)
            update = next_status(tenant, verdict, previous=body.get("status") or {}, now=now, figures=due)
            held_back = held_back or update.held_back
            if update.status is not None:
                statuses.append((tenant.metadata, update.status))
        await self._reporter.report(statuses)
        if due:
            self._figures_at[key] = now
        if held_back:
            return Again(after=(due_at - now).total_seconds())
        answered = isinstance(view.store, Mapping) or view is _NO_SCALE
        return Again() if answered else Again(after=LOOK_AGAIN.total_seconds())


def _wait(here: Sequence[tuple[SynapseTenant | InvalidTenant, JsonObject]], changes: RowChanges) -> float | None:
    """Return in how many seconds to look at those that are held; None = there are none."""
    held = [tenant for tenant, _ in here if isinstance(tenant, SynapseTenant) and is_held(tenant.metadata)]
    if not held:
        return None
    now = datetime.now(UTC)
    # Once new runs are refused, an idle tenant may go.
    fresh = any(tenant.tenant_id in changes.updated for tenant in held)
    pause = LOOK_AGAIN_SOON if fresh else LOOK_AGAIN_AT_LOAD
    return max(0.0, min(pause, *(deadline(tenant) - now for tenant in held)).total_seconds())


def _sooner(again: Again, *waits: float | None) -> Again:
    found = [wait for wait in (again.after, *waits) if wait is not None]
    return Again(after=min(found, default=None))


def _log_changes(key: TenantsKey, changes: RowChanges) -> None:
    for what, ids in (("made", changes.created), ("changed", changes.updated), ("removed", changes.deleted)):
        if ids:
            _log.info("%s: %d rows %s, such as that of %r", key, len(ids), what, min(ids))
