"""What the two reconciles tell each other of tenants with workers of their own.

The look at all tenants of a scale knows who wants such workers; the scale's own reconcile makes their Deployments and
sees when they are ready, from when on the tenant pool is told to leave the queue alone. Each wakes the other when it
has news. In memory only: what it says is found again by one look of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey
from synapse_operator.observed import DedicatedTenant


class Dedicated:
    """The tenants with workers of their own, of all scales."""

    def __init__(self, wake: Callable[[Key, float], None]) -> None:
        """`wake` has a key looked at in so many seconds."""
        self._wake = wake
        self._wanted: dict[ScaleKey, Mapping[str, DedicatedTenant]] = {}
        self._serving: dict[ScaleKey, frozenset[str]] = {}

    def wanted(self, scale: ScaleKey) -> Mapping[str, DedicatedTenant] | None:
        """Return the tenants of a scale that are to have workers, by their shards; None = nobody has looked yet."""
        return self._wanted.get(scale)

    def want(self, scale: ScaleKey, tenants: Mapping[str, DedicatedTenant]) -> None:
        """Note who is to have workers."""
        before = self._wanted.get(scale, {})
        self._wanted[scale] = tenants
        if before != tenants:
            self._wake(scale, 0.0)

    def serving(self, scale: ScaleKey) -> frozenset[str]:
        """Return the ids of tenants whose own workers are known to be there."""
        return self._serving.get(scale, frozenset())

    def serve(self, scale: ScaleKey, tenant_ids: frozenset[str]) -> None:
        """Note whose own workers are there."""
        news = tenant_ids - self.serving(scale)
        self._serving[scale] = tenant_ids
        if news:
            self._wake(TenantsKey(scale), 0.0)

    def forget(self, scale: ScaleKey) -> None:
        """Forget a scale that is gone."""
        self._wanted.pop(scale, None)
        self._serving.pop(scale, None)
