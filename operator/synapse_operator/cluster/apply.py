"""Writes children to the API server, by server-side apply.

A refusal is a value here (`Failure`, with the server's own sentence), since it is what a user has to read;
only what passes by itself asks for another try. What to write is decided in `plan`; `report` writes the status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import islice

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import Reason
from synapse_operator.cluster.client import APPLY_PATCH, MERGE_PATCH, Client, path
from synapse_operator.desired.manifest import Manifest
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from synapse_operator.naming import Kind, Ref
from synapse_operator.observed import Child, Rollout
from synapse_operator.plan import Apply, ApplyReport, Delete, Failure, Plan, Resize

APPLY_OPTIONS = {"fieldManager": naming.FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}

CONTRADICTABLE = (Kind.DEPLOYMENT, Kind.POD_DISRUPTION_BUDGET, Kind.SERVICE)
"""Kinds in which an addition of somebody else can make our apply invalid: a second port of the same name, a
`value` beside our `valueFrom`, a `minAvailable` beside our `maxUnavailable`."""

DELETABLE = (
    Kind.CONFIG_MAP,
    Kind.DEPLOYMENT,
    Kind.POD_DISRUPTION_BUDGET,
    Kind.SERVICE,
    Kind.NETWORK_POLICY,
    Kind.POD_MONITOR,
)
"""Kinds that a plan may delete; all else goes with its scale."""

_UNKNOWN_KIND = ("the server could not find the requested resource", "404 page not found")
"""What is said of a kind that a known API group does not have, and of a whole group that the cluster does not have."""

_NO_QUOTA = "exceeded quota"


SHARDS_AT_ONCE = 8
"""Half of what the client sends at once, so that one large scale leaves room for others."""


async def carry_out(client: Client, plan: Plan) -> ApplyReport:
    """Do what the plan says, in its order, up to the first failure.

    What the first shard needs is applied object by object, since what is refused of it would be refused of all. The
    other shards follow several at a time, each in its own order; after a failure none is begun. A Deployment of a
    single tenant that is refused concerns that tenant alone: the rest goes on.

    Args:
        client: the API server.
        plan: what to delete, resize and apply; its own failures are part of the report.
    """
    applied: list[Ref] = []
    failures = list(plan.failures)
    for deletion in plan.delete:
        if failure := await _attempt(deletion.ref, _delete(client, deletion)):
            return ApplyReport((), (*failures, failure))
    for resize in plan.resize:
        if failure := await _attempt(resize.child.ref, _resize(client, resize)):
            return ApplyReport(tuple(applied), (*failures, failure))
        applied.append(resize.child.ref)
    chains = iter(_chains(plan.apply))
    for chain in islice(chains, 2):
        if not await _apply_chain(client, chain, applied, failures):
            return ApplyReport(tuple(applied), tuple(failures))
    stopped = False

    async def work() -> None:
        nonlocal stopped
        while not stopped and (chain := next(chains, None)) is not None:
            if not await _apply_chain(client, chain, applied, failures):
                stopped = True

    async with asyncio.TaskGroup() as group:
        for _ in range(SHARDS_AT_ONCE):
            group.create_task(work())
    return ApplyReport(tuple(applied), tuple(failures))


def _chains(steps: Sequence[Apply]) -> list[list[Apply]]:
    """Split steps where another shard begins, at its ConfigMap; the first chain is what comes before any."""
    chains: list[list[Apply]] = [[]]
    for step in steps:
        if step.manifest.ref.kind is Kind.CONFIG_MAP:
            chains.append([])
        chains[-1].append(step)
    return chains


async def _apply_chain(client: Client, steps: Sequence[Apply], applied: list[Ref], failures: list[Failure]) -> bool:
    """Apply one after the other and note what became of each; returns whether others may follow."""
    for step in steps:
        ref = step.manifest.ref
        failure = await _attempt(ref, _apply(client, step))
        if failure is None:
            applied.append(ref)
            continue
        failures.append(failure)
        labels = step.manifest.body["metadata"].get("labels") or {}
        if failure.reason is not Reason.REFUSED or naming.TENANT_LABEL not in labels:
            return False
    return True


def raise_if_unavailable(report: ApplyReport) -> None:
    """Have the caller back off when the plan stopped at something that passes by itself.

    Raises:
        ApiUnavailable: with the sentence of that failure.
    """
    for failure in report.failures:
        if failure.reason is Reason.CLUSTER_UNAVAILABLE:
            raise ApiUnavailable(f"{failure.ref}: {failure.sentence}")


async def _attempt(ref: Ref, request: Awaitable[None]) -> Failure | None:
    try:
        await request
    except (ApiRefused, ApiUnavailable) as error:
        return Failure(ref, _reason(error), str(error))
    return None


async def _resize(client: Client, step: Resize) -> None:
    ref = step.child.ref
    await client.request(
        "PATCH",
        path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name),
        query={"fieldManager": naming.FIELD_MANAGER},
        body={"metadata": {"resourceVersion": step.child.version}, "spec": {"replicas": step.replicas}},
        content_type=MERGE_PATCH,
    )


async def _apply(client: Client, step: Apply) -> None:
    try:
        await _send(client, step)
    except ApiRefused as error:
        if error.status != 422 or step.replaces is None or step.manifest.ref.kind not in CONTRADICTABLE:
            raise
        await _replace(client, step.manifest, step.replaces)
        # Once more, so that managedFields name us as the one who applied.
        await _send(client, step)


async def _replace(client: Client, manifest: Manifest, live: Child) -> None:
    """Take away what others added; only this version, since a later one may be right again."""
    ref = manifest.ref
    body = {**manifest.body, "metadata": {**manifest.body["metadata"], "resourceVersion": live.version}}
    if ref.kind is Kind.DEPLOYMENT and "replicas" not in body["spec"]:
        # Handed over: without a number it would become 1.
        body["spec"] = {**body["spec"], "replicas": Rollout.of(live).wanted}
    await client.request(
        "PUT",
        path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name),
        query={"fieldManager": naming.FIELD_MANAGER, "fieldValidation": "Strict"},
        body=body,
    )


async def _send(client: Client, step: Apply) -> None:
    ref, body = step.manifest.ref, step.manifest.body
    if step.replaces is not None:
        # Without its UID, one that is gone since would be made anew, for a scale that may be gone with it.
        body = {**body, "metadata": {**body["metadata"], "uid": step.replaces.uid}}
    await client.request(
        "PATCH",
        path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name),
        query=APPLY_OPTIONS,
        body=body,
        content_type=APPLY_PATCH,
    )


async def _delete(client: Client, step: Delete) -> None:
    ref = step.ref
    options: JsonObject = {"propagationPolicy": "Background", "preconditions": {"uid": step.uid}}
    try:
        await client.request(
            "DELETE", path(ref.kind.api_version, ref.namespace, ref.kind.plural, ref.name), body=options
        )
    except ApiNotFound:
        return
    except ApiRefused as error:
        if error.status != 409:  # another UID: the one that was meant is gone
            raise


def _reason(error: ApiRefused | ApiUnavailable) -> Reason:
    if isinstance(error, ApiUnavailable) or error.status == 409:
        return Reason.CLUSTER_UNAVAILABLE  # also a conflict passes by itself
    if isinstance(error, ApiNotFound) and any(words in error.message for words in _UNKNOWN_KIND):
        return Reason.KIND_ABSENT
    if error.status == 403 and _NO_QUOTA in error.message:
        return Reason.QUOTA_EXCEEDED
    return Reason.REFUSED
