"""Writes to the API server: children by server-side apply, the status through its subresource.

A refusal is a value here (`Failure`, with the server's own sentence), since it is what a user has to read;
only what is nobody's fault raises. What to write is decided in `plan` and `status`.
"""

from __future__ import annotations

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.api.reasons import Reason
from synapse_operator.cluster.client import APPLY_PATCH, JSON_PATCH, Client, path
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from synapse_operator.naming import Ref
from synapse_operator.plan import Apply, ApplyReport, Delete, Failure, Plan

_APPLY_OPTIONS = {"fieldManager": naming.FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}

_UNKNOWN_KIND = "the server could not find the requested resource"
_NO_QUOTA = "exceeded quota"


async def carry_out(client: Client, plan: Plan) -> ApplyReport:
    """Do what the plan says, in its order, up to the first failure.

    Args:
        client: the API server.
        plan: what to delete and apply; its own failures are part of the report.
    """
    applied: list[Ref] = []
    for step in (*plan.delete, *plan.apply):
        ref = step.ref if isinstance(step, Delete) else step.manifest.ref
        try:
            if isinstance(step, Delete):
                await _delete(client, step)
            else:
                await _apply(client, step)
                applied.append(ref)
        except (ApiRefused, ApiUnavailable) as error:
            return ApplyReport(tuple(applied), (*plan.failures, Failure(ref, _reason(error), str(error))))
    return ApplyReport(tuple(applied), plan.failures)


async def replace_status(client: Client, scale: ObjectMeta, status: JsonObject) -> None:
    """Write the whole status, unless the scale is gone or another one of its name has come.

    Raises:
        ApiUnavailable, ApiRefused: it could not be written.
    """
    # A merge patch would keep what a new status leaves out.
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": scale.uid},
        {"op": "add", "path": "/status", "value": status},
    ]
    target = path(naming.API_VERSION, scale.namespace, naming.SCALE_PLURAL, scale.name, "status")
    try:
        await client.request(
            "PATCH", target, query={"fieldManager": naming.FIELD_MANAGER}, body=patch, content_type=JSON_PATCH
        )
    except ApiNotFound:
        return
    except ApiRefused as error:
        if error.status != 422 or "test" not in error.message:
            raise


async def _apply(client: Client, step: Apply) -> None:
    ref = step.manifest.ref
    await client.request(
        "PATCH",
        path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name),
        query=_APPLY_OPTIONS,
        body=step.manifest.body,
        content_type=APPLY_PATCH,
    )


async def _delete(client: Client, step: Delete) -> None:
    options: JsonObject = {"propagationPolicy": "Background", "preconditions": {"uid": step.uid}}
    target = path(step.ref.kind.api_version, step.ref.namespace, step.ref.kind.plural, step.ref.name)
    try:
        await client.request("DELETE", target, body=options)
    except ApiNotFound:
        return
    except ApiRefused as error:
        if error.status != 409:  # another UID: the one that we meant is gone
            raise


def _reason(error: ApiRefused | ApiUnavailable) -> Reason:
    if isinstance(error, ApiUnavailable) or error.status == 409:
        return Reason.CLUSTER_UNAVAILABLE  # also a conflict passes by itself
    if isinstance(error, ApiNotFound) and _UNKNOWN_KIND in error.message:
        return Reason.KIND_ABSENT
    if error.status == 403 and _NO_QUOTA in error.message:
        return Reason.QUOTA_EXCEEDED
    return Reason.REFUSED
