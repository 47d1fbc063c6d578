"""Who has a tenant id, which rows that makes, and how each tenant is judged."""

from __future__ import annotations

from typing import Any

import pytest

from synapse_operator.api.reasons import Reason
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, read_tenant
from synapse_operator.naming import SCALE_KIND, TENANT_KIND
from synapse_operator.observed import NotTried, Unreachable, Unusable
from synapse_operator.tenants import (
    Home,
    NotMigrated,
    Place,
    TenantStore,
    Verdict,
    claims,
    judge,
    living,
    of_scale,
    place_of,
    rows,
)
from synapse_worker.store.tenants import ManagedRow, Standing
from tests.builders import a_scale, a_tenant, a_tenant_body, an_invalid_scale

SCALE = a_scale()
ACME = a_tenant("acme")
DEFAULT = Place("default", "shards")
STORED: TenantStore = {"acme": Standing(True, "uid-of-acme", queued=3, active=2)}


def verdict(
    tenant: SynapseTenant | InvalidTenant = ACME,
    home: Home = SCALE,
    store: TenantStore = STORED,
    *others: SynapseTenant,
    exclusive: bool = True,
) -> Verdict:
    return judge(tenant, home, claims([tenant, *others]), store, exclusive=exclusive)


def at(second: int, **more: Any) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": f"2026-11-24T11:00:{second:02}Z", **more}}


# ---- who has an id


def test_each_tenant_wants_its_row() -> None:
    tenant = a_tenant("a", tenantId="A B", name="Bee", maxConcurrentRuns=1, maxQueuedRuns=2, priority=3, rateLimitRps=5)
    assert rows(SCALE, claims([tenant, ACME]), serving=()) == [
        ManagedRow("A B", "uid-of-a", "Bee", 1, 2, 3, dedicated=False, rate_limit_rps=5),
        ManagedRow("acme", "uid-of-acme", None, 100, 1000, 0, dedicated=False),
    ]


def test_the_older_of_two_has_the_id_whatever_their_order() -> None:
    older = a_tenant("zeta", tenantId="acme", **at(1))
    younger = a_tenant("alpha", tenantId="acme", **at(2))
    for order in ([older, younger], [younger, older]):
        made = claims(order)
        assert made.holders == {"acme": older}
        assert made.older == {"uid-of-alpha": older}


def test_of_two_of_the_same_second_always_the_same_one_has_it() -> None:
    pair = [a_tenant(name, tenantId="acme", **at(1)) for name in ("a", "b")]
    assert claims(pair).holders == claims(reversed(pair)).holders


def test_a_name_and_an_id_can_meet() -> None:
    by_id = a_tenant("other", tenantId="acme", **at(2))
    assert claims([by_id, a_tenant("acme", **at(1))]).older.keys() == {"uid-of-other"}


def test_what_cannot_be_read_claims_nothing() -> None:
    assert claims([read_tenant(a_tenant_body("acme", maxQueuedRuns=-1))]).holders == {}


def test_tenants_belong_to_the_scale_that_they_name() -> None:
    bodies = [a_tenant_body("a"), a_tenant_body("b", scale="other"), a_tenant_body("c")]
    assert [body["metadata"]["name"] for body in of_scale(bodies, "demo")] == ["a", "c"]
    assert of_scale([{**a_tenant_body("broken"), "spec": {}}], "demo") == []


def test_what_is_being_deleted_is_gone_and_what_cannot_be_read_lives() -> None:
    going = a_tenant_body("going", metadata={"deletionTimestamp": "2026-11-24T12:00:00Z"})
    broken = a_tenant_body("broken", maxQueuedRuns=-1)
    elsewhere = a_tenant_body("elsewhere", scale="other")
    assert of_scale([going], "demo") == []
    assert living([going, broken, elsewhere]) == ["uid-of-broken", "uid-of-elsewhere"]


# ---- how one stands


def test_a_stored_tenant_is_ready_with_its_figures() -> None:
    found = verdict()
    assert found.ready
    assert (found.reason, found.place) == (Reason.TENANT_STORED, DEFAULT)
    assert found.standing == Standing(True, "uid-of-acme", 3, 2)


@pytest.mark.parametrize(
    ("home", "words"),
    [
        (None, f"{SCALE_KIND} demo does not exist in this namespace; create it, or delete this {TENANT_KIND}"),
        (a_scale(deletionTimestamp="2026-11-24T12:00:00Z"), f"{SCALE_KIND} demo is being deleted"),
    ],
)
def test_a_tenant_without_a_scale(home: Home, words: str) -> None:
    found = verdict(home=home, store=NotTried("no URL"))
    assert (found.reason, found.place, found.standing, found.ready) == (Reason.SCALE_NOT_FOUND, None, None, False)
    assert found.message.startswith(words)


def test_specs_that_cannot_be_read() -> None:
    broken = read_tenant(a_tenant_body("acme", maxQueuedRuns=-1))
    assert verdict(broken).reason is Reason.INVALID_SPEC
    assert verdict(broken).message == "spec.maxQueuedRuns: input should be greater than or equal to 0"
    found = verdict(home=an_invalid_scale())
    assert found.reason is Reason.INVALID_SPEC
    assert found.message.startswith(f"{SCALE_KIND} demo cannot be read: spec.workers.replicas: ")


def test_the_younger_of_two_is_told_whose_the_id_is() -> None:
    younger = a_tenant("younger", tenantId="acme", **at(59))
    found = verdict(younger, SCALE, STORED, a_tenant("acme", **at(1)))
    assert (found.reason, found.place, found.standing) == (Reason.DUPLICATE_TENANT_ID, DEFAULT, None)
    assert found.message.startswith(f"{TENANT_KIND} acme has the tenant id 'acme' and is older")


@pytest.mark.parametrize(
    ("store", "reason", "words"),
    [
        (Unreachable("PostgreSQL does not answer"), Reason.POSTGRES_UNREACHABLE, "limits stay as they were"),
        (Unusable("PostgreSQL does not allow it"), Reason.POSTGRES_UNUSABLE, "PostgreSQL does not allow it"),
        (NotTried("there is no URL"), Reason.NOT_TRIED, "there is no URL; see SynapseScale demo"),
        (NotMigrated(), Reason.NOT_MIGRATED, "the first worker that starts makes them"),
    ],
)
def test_a_database_that_does_not_say(store: TenantStore, reason: Reason, words: str) -> None:
    found = verdict(store=store)
    assert (found.reason, found.place, found.standing, found.ready) == (reason, DEFAULT, None, False)
    assert words in found.message


@pytest.mark.parametrize(
    ("standing", "exclusive", "words"),
    [
        (Standing(True, None, 1, 0), True, "made by somebody else, as on a main instance's settings page"),
        (Standing(True, "uid-2", 1, 0), True, "belongs to another SynapseTenant (UID uid-2); delete one of the two"),
        (Standing(True, "uid-2", 1, 0), False, "not known while BackendExclusive of the scale is not True"),
        (Standing(False, None, 1, 0), True, "was deleted a moment ago"),
    ],
)
def test_a_row_that_is_not_its_own(standing: Standing, exclusive: bool, words: str) -> None:
    found = verdict(store={"acme": standing}, exclusive=exclusive)
    assert (found.reason, found.standing, found.ready) == (Reason.NOT_MANAGED, standing, False)
    assert words in found.message


ROUTED = {"shards": 4, "routes": [{"shard": 1, "tenants": ["acme"]}, {"shard": 2, "minPriority": 5}]}


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"queue": {"shards": 4}}, Place("0..3", "shards")),
        ({"queue": ROUTED}, Place("1", "shards")),
        ({"tenancy": {"isolation": True}}, Place("acme", "tenants")),
        ({"queue": ROUTED, "tenancy": {"isolation": True}}, Place("1", "shards")),
    ],
)
def test_where_the_jobs_of_a_tenant_wait(spec: dict[str, Any], place: Place) -> None:
    assert place_of(a_scale(spec=spec), "acme") == place


def test_under_isolation_an_id_has_to_be_the_name_of_a_queue() -> None:
    home = a_scale(spec={"tenancy": {"isolation": True}})
    found = verdict(a_tenant("three", tenantId="3"), home)
    assert (found.reason, found.place) == (Reason.INVALID_SPEC, DEFAULT)
    assert "'3' cannot name one: it is the name of a shard (0 to 63)" in found.message
