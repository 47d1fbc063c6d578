"""What the status of a SynapseTenant says.

The verdict is made in `tenants`; here it gets its form, and a status is held back when only figures or a message differ
and new ones are not due. The result is the whole status, as with a SynapseScale.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import ConditionType
from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, SynapseTenantStatus
from synapse_operator.conditions import ConditionStatus, by_type, condition, unless_same, with_old_message
from synapse_operator.tenants import Verdict

FIGURES_EVERY = timedelta(seconds=60)
"""Shortest time between two statuses of a tenant that differ in figures or messages only."""

_FIGURES = ("queuedRuns", "activeRuns")


@dataclass(frozen=True, slots=True)
class Update:
    """What is to be done about one status.

    Attributes:
        status: to be written; None = nothing.
        held_back: whether there are figures or a message to be written once they are due.
    """

    status: JsonObject | None
    held_back: bool


def next_status(
    tenant: SynapseTenant | InvalidTenant, verdict: Verdict, *, previous: JsonObject, now: datetime, figures: bool
) -> Update:
    """Return the status to be written, if any.

    Args:
        tenant: the tenant.
        verdict: how it stands.
        previous: the stored status ({} = none).
        now: the present time, UTC; used for transition times only.
        figures: whether figures and messages are due. Figures that become known or unknown are written at once.
    """
    ready = condition(
        ConditionType.READY,
        ConditionStatus.TRUE if verdict.ready else ConditionStatus.FALSE,
        verdict.reason,
        verdict.message,
        generation=tenant.metadata.generation,
        previous=previous,
        now=now,
    )
    status: JsonObject = {"observedGeneration": tenant.metadata.generation, "conditions": [ready]}
    if isinstance(tenant, SynapseTenant):
        status["tenantId"] = tenant.tenant_id
    if verdict.place is not None:
        status |= {"queue": verdict.place.queue, "servedBy": verdict.place.served_by}
    if verdict.standing is not None:
        status |= {"queuedRuns": verdict.standing.queued, "activeRuns": verdict.standing.active}
    whole = _unless_same(status, previous)
    if figures or whole is None:
        return Update(whole, held_back=False)
    at_once = _unless_same(_with_figures_of(previous, status), previous)
    return Update(at_once, held_back=at_once != whole)


def _with_figures_of(previous: JsonObject, status: JsonObject) -> JsonObject:
    old = by_type(previous).get(ConditionType.READY, {})
    merged = {**status, "conditions": [with_old_message(old, each) for each in status["conditions"]]}
    if all(name in previous and name in status for name in _FIGURES):
        merged |= {name: previous[name] for name in _FIGURES}
    return merged


def _unless_same(status: JsonObject, previous: JsonObject) -> JsonObject | None:
    return unless_same(status, previous, model=SynapseTenantStatus, types={ConditionType.READY})
