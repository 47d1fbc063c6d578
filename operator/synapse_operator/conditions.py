"""The form of conditions in a status: how one is written, how those that are there are found and compared.

What conditions there are, and what they say, is in `status` for a SynapseScale and in `tenant_status` for a tenant.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from synapse_operator.api.common import ApiModel, JsonObject
from synapse_operator.api.reasons import ConditionType, Reason


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


def condition(
    type_: ConditionType,
    status: ConditionStatus,
    reason: Reason,
    message: str,
    *,
    generation: int,
    previous: JsonObject,
    now: datetime,
) -> JsonObject:
    """Return a condition as it is stored.

    Args:
        generation: metadata.generation of the spec that it is about.
        previous: the stored status ({} = none); it lends the transition time while the condition's status is the same.
        now: the present time, UTC.
    """
    old = by_type(previous).get(type_, {})
    kept = old.get("lastTransitionTime") if old.get("status") == status else None
    return {
        "type": str(type_),
        "status": str(status),
        "observedGeneration": generation,
        "lastTransitionTime": kept or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": str(reason),
        "message": message,
    }


def by_type(status: JsonObject) -> dict[str, JsonObject]:
    """Return the conditions of a status by their types."""
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


def with_old_message(old: JsonObject, new: JsonObject) -> JsonObject:
    """Return a condition with the stored one's message, if it says the same for the same reason."""
    same = all(old.get(key) == new[key] for key in ("status", "reason", "observedGeneration"))
    return {**new, "message": old["message"]} if same else new


def unless_same(
    status: JsonObject, previous: JsonObject, *, model: type[ApiModel], types: Collection[str]
) -> JsonObject | None:
    """Return `status`, or None when it differs from `previous` in nothing that is ours.

    Conditions of other types may have been put there by others; we neither keep nor fight them.

    Args:
        status: what would be written.
        previous: the stored status ({} = none).
        model: the status' fields.
        types: the types of our conditions, which `status` holds in alphabetical order.
    """
    fields = {field.alias for field in model.model_fields.values()}
    ours = {key: value for key, value in previous.items() if key in fields}
    if "conditions" in ours:
        known = [condition for condition in ours["conditions"] if condition["type"] in types]
        ours["conditions"] = sorted(known, key=lambda condition: str(condition["type"]))
    return None if status == ours else status
