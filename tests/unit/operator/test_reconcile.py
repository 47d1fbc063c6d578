"""One look at a scale, over all its steps: whom it wakes, what it asks for first, and whose turn it waits for.

What it writes into a real cluster and real stores is in tests/controlplane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.backends import Backends, View
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey
from synapse_operator.dedicated import Dedicated
from synapse_operator.errors import ApiNotFound, ApiRefused
from synapse_operator.naming import Kind
from synapse_operator.observed import Overview, PostgresAnswers, QueueFigures, RedisAnswers, TopologyRecord, Unknown
from synapse_operator.reconcile import Reconciler
from synapse_operator.rest import Rests
from synapse_operator.syncer import Syncer
from synapse_operator.telemetry import Metrics
from synapse_operator.waves import SCALES_AT_ONCE
from synapse_worker.routing import Topology
from tests.builders import (
    HASH_KEY,
    IMAGE,
    POSTGRES_URL,
    REDIS_URL,
    SCALE_UID,
    a_deployment_status,
    a_live_object,
    a_scale,
    a_scale_body,
    a_secret,
    a_tenant_body,
    an_observed,
    what_is_desired,
)

ISOLATED = {"tenancy": {"isolation": True}}
NO_TABLES = Unknown("the tables of this release are not there yet")


class World:
    """An API server and stores that hold what a test puts there; `woken` is whom looks have woken."""

    def __init__(self, *scales: str, spec: JsonObject | None = None, tenants: Sequence[JsonObject] = ()) -> None:
        self.spec = {"observability": {"metricsAuth": "None"}, **(spec or {})}
        self.scales = scales
        self.tenants = list(tenants)
        self.children: list[JsonObject] = []
        self.asked: list[str] = []
        self.patched: list[str] = []
        self.refused: set[str] = set()
        self.kept: list[int] = []
        self.woken: list[Key] = []
        self.migrated = True
        self.isolation = bool(spec)
        self.dedicated = Dedicated(self._wake)
        self.rests = Rests(timedelta(seconds=60))
        self.still = True
        self.reads_left: int | None = None
        """How often a scale can still be read until it is gone; None = it stays."""
        self.status: JsonObject = {}
        self.reconciler = Reconciler(
            cast("Client", self),
            cast("Backends", self),
            cast("Syncer", type("NoSync", (), {"look": lambda *_: None, "forget": lambda *_: None})()),
            self.dedicated,
            self.rests,
            Metrics(),
            worker_image=IMAGE,
            hash_key=HASH_KEY,
            instance="test",
            empty_for=timedelta(seconds=30),
            figures_every=timedelta(0),
            wake=self._wake,
        )

    def _wake(self, key: Key, _: float) -> None:
        self.woken.append(key)

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: JsonObject | None = None, **_: Any
    ) -> JsonObject:
        name = path.rpartition("/")[2]
        if method != "GET":
            if name in self.refused:
                raise ApiRefused(422, "Invalid", "no such volume")
            self.patched.append(f"{path.split('/')[-2]}/{name}")
            if name == "status" and body is not None:
                self.status = body["status"]
            return {}
        self.asked.append(path)
        if f"/{naming.SCALE_PLURAL}/" in path:
            if self.reads_left == 0:
                raise ApiNotFound(404, "NotFound", "no object of this name")
            self.reads_left = None if self.reads_left is None else self.reads_left - 1
            return {**a_scale_body(name=name, spec=self.spec), "status": self.status}
        if "/secrets/" in path:
            return a_secret(redis=REDIS_URL, postgres=POSTGRES_URL)
        if path.endswith(naming.TENANT_PLURAL):
            return {"items": self.tenants}
        if query is None:
            raise ApiNotFound(404, "NotFound", "no object of this name")
        wanted = query["labelSelector"].partition("=")[2]
        kinds = {kind.plural: kind.kind for kind in Kind}
        found = [
            each
            for each in self.children
            if each["kind"] == kinds.get(name) and each["metadata"]["labels"][naming.SCALE_LABEL] == wanted
        ]
        return {"items": found}

    async def look(self, *_: object, run_days: int | None) -> View:
        record = TopologyRecord(1, Topology(1, isolation=self.isolation), enabled=True, owner_uid=SCALE_UID)
        return View(
            redis=RedisAnswers("7.2.4", "noeviction"),
            queues={"default": QueueFigures(0, 0, None)},
            redis_owner=SCALE_UID,
            postgres=PostgresAnswers(5 if self.migrated else None),
            overview=Overview(0, 0, 0, 0),
            stored={} if self.migrated else NO_TABLES,
            topology=record if self.migrated else NO_TABLES,
            behind=() if self.migrated else NO_TABLES,
        )

    def forget(self, _key: ScaleKey) -> None:
        """Nothing is kept."""

    async def is_still(self, *_: object, run_days: int | None) -> bool:
        return self.still

    async def flip(self, *_: object) -> str:
        return ""

    async def jobs_held(self, *_: object) -> dict[str, int]:
        return {}

    async def keep_keys(self, _key: ScaleKey, _uid: str, keys: Sequence[object]) -> frozenset[str]:
        self.kept.append(len(keys))
        return frozenset()

    def present(self, scale: str, *, image: str, rolling: bool = False) -> None:
        """Have the children of a scale there, with another image than the one of now."""
        home = a_scale(name=scale, spec={**self.spec, "image": image})
        topology = TopologyRecord(1, Topology(1), enabled=True, owner_uid=SCALE_UID)
        for manifest in what_is_desired(home, an_observed(topology=topology)).manifests:
            status = (
                a_deployment_status(2 if rolling else 1, updated=1) if manifest.ref.kind is Kind.DEPLOYMENT else None
            )
            self.children.append(a_live_object(manifest, status=status))

    def reconcile(self, scale: str = "demo") -> None:
        """Look once."""
        asyncio.run(self.reconciler(ScaleKey("team-a", scale)))


def test_its_tenants_are_woken_when_the_tables_are_there_and_once() -> None:
    world = World("demo")
    world.migrated = False
    world.reconcile()
    assert world.woken == []
    world.migrated = True
    world.reconcile()
    world.reconcile()
    assert world.woken == [TenantsKey(ScaleKey("team-a", "demo"))]


def test_nothing_is_made_for_a_scale_that_goes_while_it_is_looked_at() -> None:
    world = World("demo")
    world.reads_left = 1
    world.reconcile()
    assert world.patched == []


def test_tenants_with_workers_are_asked_for_until_somebody_has_looked_at_them() -> None:
    own = naming.deployment_name("demo", naming.tenant_shard("acme"))
    world = World("demo", spec=ISOLATED, tenants=[a_tenant_body("acme", workers={})])
    world.reconcile()
    assert f"deployments/{own}" in world.patched
    world.dedicated.want(ScaleKey("team-a", "demo"), {})
    world.asked.clear()
    world.patched.clear()
    world.reconcile()
    assert not [path for path in world.asked if path.endswith(naming.TENANT_PLURAL)]
    assert f"deployments/{own}" not in world.patched


def test_a_third_scale_waits_until_one_is_through() -> None:
    names = ("one", "two", "three")
    assert len(names) == SCALES_AT_ONCE + 1
    world = World(*names)
    for name in names:
        world.present(name, image="before", rolling=name != "three")
    for name in names:
        world.reconcile(name)
    third = f"deployments/{naming.deployment_name('three', '0')}"
    assert third not in world.patched
    world.children = [each for each in world.children if each["metadata"]["labels"][naming.SCALE_LABEL] != "one"]
    world.present("one", image=IMAGE)
    world.reconcile("one")
    world.reconcile("three")
    assert third in world.patched


def test_one_whose_pods_are_refused_keeps_no_other_waiting() -> None:
    names = ("one", "two", "three")
    world = World(*names)
    for name in names:
        world.present(name, image="before")
    deployments = {name: naming.deployment_name(name, "0") for name in names}
    world.refused = {deployments["one"], deployments["two"]}
    for name in names:
        world.reconcile(name)
    assert f"deployments/{deployments['three']}" in world.patched


def test_keys_are_looked_after_while_the_api_is_served() -> None:
    world = World("demo", spec={"api": {"enabled": True}})
    world.reconcile()
    assert world.kept == [0], "keys of a Secret that is named no more, or of a scale before this one, are revoked"
    off = World("demo")
    off.reconcile()
    assert off.kept == []


def resting() -> World:
    """A scale that looks have left at rest."""
    world = World("demo")
    world.present("demo", image=IMAGE)
    world.reconcile()
    world.reconcile()
    world.asked.clear()
    return world


def test_a_scale_at_rest_costs_the_api_server_nothing() -> None:
    world = resting()
    world.reconcile()
    assert world.asked == []


def test_stores_that_say_something_else_end_the_rest() -> None:
    world = resting()
    world.still = False
    world.reconcile()
    assert world.asked


def test_what_happens_to_a_scale_ends_its_rest() -> None:
    world = resting()
    world.rests.disturb(ScaleKey("team-a", "demo"))
    world.reconcile()
    assert world.asked
