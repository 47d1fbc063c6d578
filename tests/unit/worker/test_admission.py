"""What is refused, with which status and sentence; the numbers are given."""

from __future__ import annotations

import pytest

from synapse_worker.api import admission
from synapse_worker.api.admission import Limits, Reason, Refusal
from synapse_worker.queueing.quotas import Rate


@pytest.mark.parametrize(
    ("asked", "bound_to", "tenant"),
    [(None, None, "default"), ("a", None, "a"), (None, "b", "b"), ("b", "b", "b")],
)
def test_the_tenant_is_the_requests_the_keys_or_the_default(
    asked: str | None, bound_to: str | None, tenant: str
) -> None:
    assert admission.tenant_of(asked, bound_to=bound_to, default="default") == tenant


def test_a_bound_key_speaks_for_no_other_tenant() -> None:
    refusal = admission.tenant_of("a", bound_to="b", default="b")
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.status) == (Reason.OTHER_TENANT, 403)
    assert "'a'" in refusal.sentence
    assert "'b'" not in refusal.sentence


@pytest.mark.parametrize("tenant", ["0", "63", "a{b", "b}", "x:health-check"])
def test_under_isolation_a_tenant_must_be_able_to_have_a_queue(tenant: str) -> None:
    assert admission.bad_tenant(tenant, isolation=False) is None
    refusal = admission.bad_tenant(tenant, isolation=True)
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (400, Reason.BAD_TENANT)
    assert refusal.sentence.startswith(f"tenant_id {tenant!r} cannot have a queue of its own: it ")


@pytest.mark.parametrize("tenant", ["default", "64", "acme"])
def test_any_other_tenant_can(tenant: str) -> None:
    assert admission.bad_tenant(tenant, isolation=True) is None


def test_a_request_within_the_rate_passes() -> None:
    assert admission.over_rate(Rate(allowed=True, limit=5, remaining=4, wait_ms=0)) is None


@pytest.mark.parametrize(("wait_ms", "seconds"), [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")])
def test_a_request_beyond_the_rate_is_told_when_to_come_back(wait_ms: int, seconds: str) -> None:
    refusal = admission.over_rate(Rate(allowed=False, limit=5, remaining=0, wait_ms=wait_ms))
    assert refusal is not None
    assert refusal.status == 429
    assert refusal.headers == {"X-RateLimit-Limit": "5", "X-RateLimit-Remaining": "0", "Retry-After": seconds}


def test_limits_on_jobs() -> None:
    assert admission.being_deleted(Limits(rate=1, queued=1, deleting=False)) is None
    deleting = admission.being_deleted(Limits(rate=1, queued=1, deleting=True))
    assert deleting is not None
    assert (deleting.status, deleting.headers) == (429, {"Retry-After": "60"})
    full, all_full = admission.tenant_full(7), admission.all_full(9)
    assert (full.status, full.reason, "7 queued" in full.sentence) == (429, Reason.TENANT_QUEUE, True)
    assert (all_full.status, all_full.reason, "9 jobs" in all_full.sentence) == (503, Reason.DEPTH, True)
    assert full.headers == all_full.headers == {"Retry-After": "1"}
