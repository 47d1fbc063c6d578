"""The status of a tenant: whole, valid, written on change, with figures in their rhythm."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, SynapseTenantStatus, read_tenant
from synapse_operator.tenant_status import Update, next_status
from synapse_operator.tenants import Place, Verdict
from synapse_worker.store.tenants import Standing
from tests.builders import NOW, a_tenant, a_tenant_body

PLACE = Place("default", "shards")
LATER = NOW + timedelta(minutes=5)
TENANT = a_tenant("acme", tenantId="Acme & Co", metadata={"generation": 3})


def stored(queued: int = 0, active: int = 0, message: str = "It is there") -> Verdict:
    return Verdict(Reason.TENANT_STORED, message, PLACE, Standing(True, "uid-of-acme", queued, active))


AWAY = Verdict(Reason.POSTGRES_UNREACHABLE, "PostgreSQL does not answer", PLACE)


def told(
    verdict: Verdict,
    previous: JsonObject | None = None,
    *,
    tenant: SynapseTenant | InvalidTenant = TENANT,
    figures: bool = True,
) -> Update:
    return next_status(tenant, verdict, previous=previous or {}, now=LATER if previous else NOW, figures=figures)


def written(verdict: Verdict, previous: JsonObject | None = None, **arguments: Any) -> JsonObject:
    update = told(verdict, previous, **arguments)
    assert update.status is not None
    return update.status


READY = written(stored(4, 2))


def test_the_whole_status() -> None:
    assert READY == {
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "observedGeneration": 3,
                "lastTransitionTime": "2026-11-24T12:00:00Z",
                "reason": "TenantStored",
                "message": "It is there",
            }
        ],
        "tenantId": "Acme & Co",
        "queue": "default",
        "servedBy": "shards",
        "queuedRuns": 4,
        "activeRuns": 2,
    }
    assert SynapseTenantStatus.model_validate(READY).queued_runs == 4


def test_what_is_there_already_is_not_written() -> None:
    for figures in (True, False):
        assert told(stored(4, 2), READY, figures=figures) == Update(None, held_back=False)


def test_figures_wait_until_they_are_due() -> None:
    assert told(stored(5, 2), READY, figures=False) == Update(None, held_back=True)
    assert written(stored(5, 2), READY)["queuedRuns"] == 5
    assert told(stored(4, 2, message="In other words"), READY, figures=False) == Update(None, held_back=True)


def test_a_transition_does_not_wait_and_takes_no_new_figures_along() -> None:
    update = told(AWAY, READY, figures=False)
    assert update.status is not None
    assert "queuedRuns" not in update.status
    (condition,) = update.status["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "PostgresUnreachable")
    assert condition["lastTransitionTime"] == "2026-11-24T12:05:00Z"
    back = told(stored(7, 7), update.status, figures=False)
    assert back.status is not None
    assert back.status["queuedRuns"] == 7


def test_a_new_generation_does_not_wait_but_its_figures_do() -> None:
    newer = a_tenant("acme", tenantId="Acme & Co", metadata={"generation": 4})
    update = told(stored(9, 2), READY, tenant=newer, figures=False)
    assert update.held_back
    assert update.status is not None
    assert (update.status["observedGeneration"], update.status["queuedRuns"]) == (4, 4)
    assert update.status["conditions"][0]["lastTransitionTime"] == "2026-11-24T12:00:00Z"


def test_conditions_and_fields_of_others_are_not_fought() -> None:
    theirs = {"type": "Theirs", "status": "True", "reason": "A", "message": "", "lastTransitionTime": ""}
    previous = {**READY, "conditions": [*READY["conditions"], theirs], "other": 1}
    assert told(stored(4, 2), previous) == Update(None, held_back=False)


def test_a_tenant_that_cannot_be_read_has_no_id() -> None:
    invalid = read_tenant(a_tenant_body("acme", priority=-1))
    assert isinstance(invalid, InvalidTenant)
    status = written(Verdict(Reason.INVALID_SPEC, invalid.sentence), tenant=invalid)
    assert status.keys() == {"observedGeneration", "conditions"}
    SynapseTenantStatus.model_validate(status)
