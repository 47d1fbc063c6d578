"""One look at all tenants of a scale: what it asks, when it tells, and when it comes back.

Rows in a real database and statuses in a real API server are in tests/services and tests/controlplane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from synapse_operator.api.common import JsonObject
from synapse_operator.backends import Backends, TenantsView
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey
from synapse_operator.dedicated import Dedicated
from synapse_operator.errors import ApiNotFound, ApiRefused
from synapse_operator.naming import DRAIN_FINALIZER
from synapse_operator.observed import Unknown, Unreachable
from synapse_operator.plan import LOOK_AGAIN
from synapse_operator.reconcile_tenants import TenantReconciler
from synapse_operator.telemetry import Metrics
from synapse_operator.tenant_drains import Remains
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
        self.refused: set[str] = set()
        self.left: Mapping[str, Remains] | Unknown = {}
        self.woken: list[Key] = []
        self.dedicated = Dedicated(lambda key, _: self.woken.append(key))
        self.reconciler = TenantReconciler(cast("Client", self), cast("Backends", self), self.dedicated, Metrics())

    async def request(self, method: str, path: str, *, body: JsonObject | None = None, **_: object) -> JsonObject:
        if method == "GET" and path.endswith("/synapsetenants"):
            return {"items": self.tenants}
        if method == "GET" and "/namespaces/" in path and path.startswith("/api/v1/"):
            return {"metadata": {"name": "team-a"}}
        if method == "GET":
            if self.scale is None:
                raise ApiNotFound(404, "NotFound", "no such scale")
            return self.scale
        assert body is not None
        if "finalizers" in body["metadata"]:
            self._finalize(path.rpartition("/")[2], body["metadata"])
            return body
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

    async def remains(self, scale: object, uid: str, ids: Sequence[str]) -> Mapping[str, Remains] | Unknown:
        return self.left

    def _finalize(self, name: str, metadata: JsonObject) -> None:
        tenant = next(each for each in self.tenants if each["metadata"]["name"] == name)
        if name in self.refused:
            raise ApiRefused(422, "Invalid", "spec.tenantId: Too long")
        if metadata["resourceVersion"] != tenant["metadata"]["resourceVersion"]:
            raise ApiRefused(409, "Conflict", "the object has been modified")
        tenant["metadata"]["finalizers"] = metadata["finalizers"] or []
        if "deletionTimestamp" in tenant["metadata"] and not metadata["finalizers"]:
            self.tenants.remove(tenant)

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


# ---- deletion under isolation

ISOLATED = a_scale_body(spec={"tenancy": {"isolation": True}})


def isolated(*names: str, held: bool = False, **tenant: Any) -> World:
    """Tenants with queues of their own; `held` = being deleted for a minute, and held by us."""
    began = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"resourceVersion": "7"}
    if held:
        metadata |= {"deletionTimestamp": began, "finalizers": [DRAIN_FINALIZER]}
    there = World(*(a_tenant_body(name, metadata=metadata, **tenant) for name in names), scale=ISOLATED)
    there.store = standing(*names)
    return there


def test_a_tenant_with_a_queue_of_its_own_gets_the_finalizer_once() -> None:
    there = isolated("a")
    assert there.look() == Again()
    assert there.tenants[0]["metadata"]["finalizers"] == [DRAIN_FINALIZER]
    there.tenants[0]["metadata"]["resourceVersion"] = "8"
    assert there.look() == Again()


def test_a_finalizer_that_somebody_else_wrote_between_is_looked_at_again() -> None:
    there = isolated("a")
    request = there.request

    async def late(method: str, path: str, **arguments: Any) -> JsonObject:
        if method == "PATCH":
            there.tenants[0]["metadata"]["resourceVersion"] = "9"
        return await request(method, path, **arguments)

    there.request = late  # type: ignore[method-assign]
    again = there.look()
    assert again is not None
    assert again.after == 1.0


def test_a_finalizer_that_is_refused_concerns_its_tenant_alone() -> None:
    there = isolated("a", "b")
    there.refused = {"a"}
    with pytest.raises(ApiRefused, match="Too long"):
        there.look()
    assert there.tenants[1]["metadata"]["finalizers"] == [DRAIN_FINALIZER]
    assert sorted(there.told) == ["a", "b"]


def test_isolation_off_takes_the_finalizer_away() -> None:
    there = isolated("a")
    there.look()
    there.scale = a_scale_body()
    there.look()
    assert there.tenants[0]["metadata"]["finalizers"] == []


def test_the_row_of_a_held_tenant_stays_and_refuses_new_runs_until_its_queue_is_empty() -> None:
    there = isolated("a", "b", held=True)
    there.tenants[1]["metadata"].pop("deletionTimestamp")
    there.left = {"a": Remains(Standing(True, "uid-of-a", 0, 0, deleting=True), jobs=1)}
    again = there.look()
    assert again is not None
    assert again.after is not None
    assert again.after <= 5
    assert [(row.tenant_id, row.deleting) for row in there.wanted] == [("a", True), ("b", False)]
    assert there.living == ["uid-of-a", "uid-of-b"]
    assert there.tenants[0]["status"]["conditions"][0]["reason"] == "Draining"
    there.left = {"a": Remains(Standing(True, "uid-of-a", 0, 0, deleting=True), jobs=0)}
    assert there.look() == Again()
    assert [row.tenant_id for row in there.wanted] == ["b"]
    assert there.living == ["uid-of-b"]
    assert [each["metadata"]["name"] for each in there.tenants] == ["b"]


def test_while_a_store_is_away_a_tenant_is_held_until_its_deadline_and_no_longer() -> None:
    there = isolated("a", held=True, drainTimeoutSeconds=61)
    there.left = Unknown("Redis does not answer")
    again = there.look()
    assert again is not None
    assert again.after is not None
    assert 0 <= again.after <= 1  # the deadline
    there = isolated("a", held=True, drainTimeoutSeconds=59)
    there.left = Unknown("Redis does not answer")
    there.look()
    assert there.tenants == []


def test_without_its_scale_nothing_holds_a_tenant() -> None:
    there = isolated("a", held=True)
    there.scale = None
    there.look()
    assert there.tenants == []


# ---- workers of a tenant's own


def test_the_scale_is_woken_for_tenants_with_workers_and_the_row_says_so_once_they_are_there() -> None:
    there = isolated("a", "b", workers={"replicas": 2})
    there.look()
    assert there.woken == [KEY.scale]
    wanted = there.dedicated.wanted(KEY.scale)
    assert wanted is not None
    assert sorted(each.tenant_id for each in wanted.values()) == ["a", "b"]
    assert [row.dedicated for row in there.wanted] == [None, None]
    there.dedicated.serve(KEY.scale, frozenset({"a"}))
    assert there.woken == [KEY.scale, KEY]
    there.look()
    assert [row.dedicated for row in there.wanted] == [True, None]
    assert there.woken == [KEY.scale, KEY]
