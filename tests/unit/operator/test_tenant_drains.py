"""When a tenant that is being deleted is held, and when it may go."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from synapse_operator.api.tenant import read_tenant
from synapse_operator.naming import DRAIN_FINALIZER, SKIP_DRAIN_ANNOTATION
from synapse_operator.observed import Unknown
from synapse_operator.tenant_drains import Remains, deadline, is_held, is_over, with_finalizer
from synapse_operator.tenants import Claims, Home, claims
from synapse_worker.store.tenants import Standing
from tests.builders import NOW, a_scale, a_tenant, a_tenant_body, an_invalid_scale

ISOLATED = a_scale(spec={"tenancy": {"isolation": True}})
GOING = a_scale(spec={"tenancy": {"isolation": True}}, deletionTimestamp="2026-11-24T12:00:00Z")
ROUTED = a_scale(
    spec={"tenancy": {"isolation": True}, "queue": {"shards": 2, "routes": [{"shard": 1, "tenants": ["acme"]}]}}
)
HELD = {"deletionTimestamp": "2026-11-24T11:30:00Z", "finalizers": [DRAIN_FINALIZER]}
ACME = a_tenant("acme", metadata=HELD)


def left(jobs: int = 0, **standing: Any) -> dict[str, Remains]:
    row = {"has_row": True, "managed_by": "uid-of-acme", "queued": 0, "active": 0, "deleting": True, **standing}
    return {"acme": Remains(Standing(**row), jobs)}


def over(
    home: Home = ISOLATED, remains: Mapping[str, Remains] | Unknown | None = None, *, tenant: Any = ACME, **more: Any
) -> bool:
    there = left(jobs=1) if remains is None else remains
    return is_over(tenant, home, there, **{"namespace_goes": False, "now": NOW, **more})


def test_it_is_held_while_there_is_work_and_goes_when_there_is_none() -> None:
    assert not over()
    assert not over(remains=left(queued=1))  # a run whose entry comes in a moment
    assert not over(remains=left(active=1))
    assert over(remains=left())


def test_new_runs_must_be_refused_before_an_empty_queue_says_anything() -> None:
    assert not over(remains=left(deleting=False))


@pytest.mark.parametrize("managed_by", [None, "uid-of-another"])
def test_a_row_of_somebody_else_is_not_waited_for(managed_by: str | None) -> None:
    assert over(remains=left(jobs=1, managed_by=managed_by))


def test_unknown_is_never_empty() -> None:
    assert not over(remains=Unknown("Redis does not answer"))
    assert not over(remains={})
    assert not over(an_invalid_scale())


@pytest.mark.parametrize("home", [None, GOING, a_scale(), ROUTED])
def test_nothing_is_waited_for_without_a_scale_or_a_queue_of_its_own(home: Home) -> None:
    assert over(home, Unknown("Redis does not answer"))


def test_the_namespace_and_the_annotation_end_it() -> None:
    assert over(namespace_goes=True)
    assert over(tenant=a_tenant("acme", metadata={**HELD, "annotations": {SKIP_DRAIN_ANNOTATION: "true"}}))
    assert not over(tenant=a_tenant("acme", metadata={**HELD, "annotations": {SKIP_DRAIN_ANNOTATION: "false"}}))


@pytest.mark.parametrize("home", [ISOLATED, an_invalid_scale()])
def test_the_deadline_ends_it_whatever_the_stores_say(home: Home) -> None:
    tenant = a_tenant("acme", metadata=HELD, drainTimeoutSeconds=1800)
    assert deadline(tenant) == NOW
    unknown = Unknown("Redis does not answer")
    assert over(home, unknown, tenant=tenant)
    assert not over(home, unknown, tenant=tenant, now=NOW - timedelta(seconds=1))


def test_what_cannot_be_read_is_not_held() -> None:
    assert over(tenant=read_tenant(a_tenant_body("acme", metadata=HELD, maxQueuedRuns=-1)))


def test_only_our_own_finalizer_holds() -> None:
    assert is_held(ACME.metadata)
    assert not is_held(a_tenant("acme", metadata={**HELD, "finalizers": ["else"]}).metadata)
    assert not is_held(a_tenant("acme", metadata={"finalizers": [DRAIN_FINALIZER]}).metadata)


# ---- who gets the finalizer


def wanted(tenant: Any, home: Home = ISOLATED, made: Claims | None = None, *, over: bool = False) -> Any:
    return with_finalizer(tenant, home, made or claims([tenant]), over=over)


def test_a_queue_of_its_own_brings_it_beside_those_of_others() -> None:
    assert wanted(a_tenant("acme")) == (DRAIN_FINALIZER,)
    assert wanted(a_tenant("acme", metadata={"finalizers": ["else"]})) == ("else", DRAIN_FINALIZER)
    assert wanted(a_tenant("acme", metadata={"finalizers": [DRAIN_FINALIZER]})) is None


@pytest.mark.parametrize("home", [a_scale(), ROUTED, None, GOING])
def test_without_one_there_is_none_and_what_is_there_goes(home: Home) -> None:
    assert wanted(a_tenant("acme"), home) is None
    assert wanted(a_tenant("acme", metadata={"finalizers": ["else", DRAIN_FINALIZER]}), home) == ("else",)


@pytest.mark.parametrize("tenant_id", ["default", "3", "a{b}"])
def test_ids_that_name_no_queue_bring_none(tenant_id: str) -> None:
    assert wanted(a_tenant("acme", tenantId=tenant_id)) is None


def test_the_younger_of_two_has_none() -> None:
    older, younger = a_tenant("older", tenantId="acme"), a_tenant("younger", tenantId="acme")
    made = claims([older, younger])
    assert wanted(older, made=made) == (DRAIN_FINALIZER,)
    assert wanted(younger, made=made) is None


def test_a_scale_that_cannot_be_read_changes_none() -> None:
    assert wanted(a_tenant("acme"), an_invalid_scale()) is None
    assert wanted(ACME, an_invalid_scale()) is None
    assert wanted(ACME, an_invalid_scale(), over=True) == ()


def test_one_that_is_over_loses_it_and_one_that_goes_gets_none() -> None:
    assert wanted(ACME, over=True) == ()
    assert wanted(ACME) is None
    going = a_tenant("acme", metadata={"deletionTimestamp": "2026-11-24T11:30:00Z", "finalizers": ["else"]})
    assert wanted(going) is None
