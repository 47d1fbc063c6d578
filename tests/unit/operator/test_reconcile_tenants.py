"""One look at all tenants of a scale: what it asks, when it tells, and when it comes back.

Rows in a real database and statuses in a real API server are in tests/services and tests/controlplane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from synapse_operator.api.common import JsonObject
from synapse_operator.backends import Backends, TenantsView
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import ScaleKey, TenantsKey
from synapse_operator.errors import ApiNotFound
from synapse_operator.observed import Unreachable
from synapse_operator.plan import LOOK_AGAIN
from synapse_operator.reconcile_tenants import TenantReconciler
from synapse_operator.telemetry import Metrics
from synapse_operator.tenant_status import FIGURES_EVERY
from synapse_operator.tenants import TenantStore
from synapse_operator.workqueue import Again
from synapse_worker.store.tenants import ManagedRow, RowChanges, Standing
from tests.builders import a_scale_body, a_tenant_body

KEY = TenantsKey(ScaleKey("team-a", "demo"))


class World:
    """An API server with one scale and its tenants, and stores that say what `store` is."""

    def __init__(self, *tenants: JsonObject, scale: JsonObject | None) -> None:
        self.tenants = list(tenants)
        self.scale = scale
        self.store: TenantStore | None = {}
        self.wanted: list[ManagedRow] = []
        self.living: Sequence[str] = ()
        self.told: list[str] = []
        self.reconciler = TenantReconciler(cast("Client", self), cast("Backends", self), Metrics())

    async def request(self, method: str, path: str, *, body: JsonObject | None = None, **_: object) -> JsonObject:
        if method == "GET" and path.endswith("/synapsetenants"):
            return {"items": self.tenants}
        if method == "GET":
            if self.scale is None:
                raise ApiNotFound(404, "NotFound", "no such scale")
            return self.scale
        assert body is not None
        self.told.append(body["metadata"]["name"])
        next(each for each in self.tenants if each["metadata"]["uid"] == body["metadata"]["uid"]).update(
            status=body["status"]
        )
        return body

    async def keep_tenants(
        self, scale: object, uid: str, rows: Sequence[ManagedRow], living: Sequence[str]
    ) -> TenantsView | None:
        self.wanted, self.living = list(rows), living
        if self.store is None:
            return None
        return TenantsView(True, self.store, RowChanges(frozenset(), frozenset(), frozenset()))

    def look(self) -> Again | None:
        """Look once."""
        self.told.clear()
        return asyncio.run(self.reconciler(KEY))


def world(*names: str, scale: bool = True, **tenant: Any) -> World:
    return World(*(a_tenant_body(name, **tenant) for name in names), scale=a_scale_body() if scale else None)


def standing(*names: str, queued: int = 0) -> dict[str, Standing]:
    return {name: Standing(True, f"uid-of-{name}", queued, 0) for name in names}


def test_all_tenants_are_answered_by_one_look_and_told_once() -> None:
    there = world("a", "b", "c")
    there.store = standing("a", "b", "c")
    assert there.look() == Again()
    assert [row.tenant_id for row in there.wanted] == ["a", "b", "c"]
    assert sorted(there.told) == ["a", "b", "c"]
    assert there.look() == Again()
    assert there.told == []


def test_new_counts_wait_for_their_time_and_the_look_comes_back_then() -> None:
    there = world("a")
    there.store = standing("a")
    there.look()
    there.store = standing("a", queued=5)
    again = there.look()
    assert there.told == []
    assert again is not None
    assert again.after == pytest.approx(FIGURES_EVERY.total_seconds(), abs=5)


def test_a_scale_that_was_not_looked_at_yet_is_no_transition() -> None:
    there = world("a")
    there.store = None
    again = there.look()
    assert again is not None
    assert again.after is not None
    assert again.after < LOOK_AGAIN.total_seconds()
    assert there.told == []


def test_a_database_that_is_away_is_asked_again_soon() -> None:
    there = world("a")
    there.store = Unreachable("PostgreSQL does not answer")
    assert there.look() == Again(after=LOOK_AGAIN.total_seconds())
    assert there.told == ["a"]


def test_tenants_of_other_scales_live_but_want_nothing_here() -> None:
    there = world("a")
    there.tenants.append(a_tenant_body("b", scale="other"))
    there.store = standing("a")
    there.look()
    assert [row.tenant_id for row in there.wanted] == ["a"]
    assert there.living == ["uid-of-a", "uid-of-b"]
    assert there.told == ["a"]


def test_a_scale_without_tenants_is_looked_at_all_the_same() -> None:
    there = world()
    assert there.look() == Again()
    assert there.wanted == []


def test_without_a_scale_only_tenants_keep_the_key() -> None:
    assert world(scale=False).look() is None
    there = world("a", scale=False)
    assert there.look() == Again()
    assert there.told == ["a"]
    assert there.wanted == []


def test_a_scale_that_is_being_deleted_keeps_the_rows_as_they_are() -> None:
    there = World(a_tenant_body("a"), scale=a_scale_body(deletionTimestamp="2026-11-24T12:00:00Z"))
    assert there.look() == Again()
    assert there.tenants[0]["status"]["conditions"][0]["reason"] == "ScaleNotFound"
    assert there.wanted == []
