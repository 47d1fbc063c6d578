"""The order of one look at all SynapseTenants of a scale: read them, bring their rows there, tell each how it stands.

One look answers for all of them, so that a thousand tenants cost a few statements. What each step knows is in its own
module; the scale itself is `reconcile`'s, and so are the connections that are used here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from synapse_operator import tenants
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.api.scale import SynapseScale, read_scale
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, read_tenant
from synapse_operator.backends import Backends, TenantsView
from synapse_operator.cluster import observe
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import TenantsKey
from synapse_operator.cluster.report import TenantReporter
from synapse_operator.naming import TENANT_KIND
from synapse_operator.observed import NotTried
from synapse_operator.plan import LOOK_AGAIN
from synapse_operator.telemetry import Metrics
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

    def __init__(self, client: Client, backends: Backends, metrics: Metrics) -> None:
        self._client = client
        self._backends = backends
        self._metrics = metrics
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
            claims = tenants.claims(tenant for tenant, _ in mine)
            view: TenantsView | None = _NO_SCALE
            if isinstance(home, SynapseScale) and not home.terminating:
                view = await self._backends.keep_tenants(
                    key.scale, home.metadata.uid, claims.rows, tenants.living(listed)
                )
            if view is None:
                return Again(after=_FIRST_LOOK_SECONDS)
            _log_changes(key, view.changes)
            return await self._tell(key, mine, home, claims, view)

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


def _log_changes(key: TenantsKey, changes: RowChanges) -> None:
    for what, ids in (("made", changes.created), ("changed", changes.updated), ("removed", changes.deleted)):
        if ids:
            _log.info("%s: %d rows %s, such as that of %r", key, len(ids), what, min(ids))
