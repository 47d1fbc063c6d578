"""Orchestrations and agents as PostgreSQL has them, and Sync Now."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from fastapi import APIRouter, Request

from synapse_worker.api.auth import Caller
from synapse_worker.api.context import Context, ContextDep, PassedDep, UnboundDep, tenants_visible_to
from synapse_worker.api.models import MOST_LISTED, Definition, Limit, PathId, SyncDone, WholeDefinition
from synapse_worker.api.problems import Problem, answers
from synapse_worker.errors import ConfigurationError
from synapse_worker.store import definitions

router = APIRouter(tags=["definitions"])


@router.get("/orchestrations", responses=answers())
async def orchestrations(context: ContextDep, caller: PassedDep, limit: Limit = MOST_LISTED) -> list[Definition]:
    """List orchestrations by id: all, or with a key of a tenant those of that tenant and of the default tenant."""
    return await _listed(context, caller, definitions.ORCHESTRATIONS, limit)


@router.get("/orchestrations/{orchestration_id}", responses=answers(404))
async def orchestration(context: ContextDep, caller: PassedDep, orchestration_id: PathId) -> WholeDefinition:
    """Return an orchestration."""
    return await _found(context, caller, definitions.ORCHESTRATIONS, orchestration_id, "orchestration")


@router.get("/agents", responses=answers())
async def agents(context: ContextDep, caller: PassedDep, limit: Limit = MOST_LISTED) -> list[Definition]:
    """List agents, as orchestrations."""
    return await _listed(context, caller, definitions.AGENTS, limit)


@router.get("/agents/{agent_id}", responses=answers(404))
async def agent(context: ContextDep, caller: PassedDep, agent_id: PathId) -> WholeDefinition:
    """Return an agent."""
    return await _found(context, caller, definitions.AGENTS, agent_id, "agent")


@router.post(
    "/sync",
    responses=answers(409, 413),
    openapi_extra={
        "requestBody": {
            "description": "An export bundle, a definition or a list of them; without a body the folder that"
            " SYNAPSE_DEFINITIONS_DIR names is read.",
            "content": {"application/json": {"schema": {"type": ["object", "array"]}}},
        }
    },
)
async def sync(request: Request, context: ContextDep, caller: UnboundDep) -> SyncDone:
    """Store definitions and settings in PostgreSQL; what is refused is told beside what was stored."""
    # What judges users' code is imported by whoever syncs, and by nobody else.
    from synapse_worker.sync.documents import Problem as Refused
    from synapse_worker.sync.documents import Source
    from synapse_worker.sync.folder import decoded, read_folder
    from synapse_worker.sync.store import sync as sync_sources

    body = await request.body()
    unread: list[Refused] = []
    if body:
        sources = [Source("", "body.json", decoded(body), takes_secrets=True, shown=True)]
    elif context.settings.definitions_dir:
        try:
            sources, unread = read_folder(Path(context.settings.definitions_dir))
        except ConfigurationError as error:
            raise Problem(409, str(error)) from None
    else:
        raise Problem(409, "send definitions in the body, or have SYNAPSE_DEFINITIONS_DIR name a folder of them")
    report = await sync_sources(
        context.database, sources, tenant_id=context.settings.default_tenant_id, unread=unread, everything=True
    )
    return SyncDone(
        total_synced=report.total_synced,
        changed=report.changed,
        counts=dict(report.counts),
        errors=[str(problem) for problem in report.problems],
        synced_at=datetime.now(UTC),
    )


async def _listed(context: Context, caller: Caller, table: str, limit: int) -> list[Definition]:
    rows = await definitions.list_table(
        context.database, table, tenants=tenants_visible_to(context, caller), limit=limit
    )
    return [Definition.model_validate(row, from_attributes=True) for row in rows]


async def _found(context: Context, caller: Caller, table: str, key: str, kind: str) -> WholeDefinition:
    found = await definitions.find(context.database, table, key, tenants=tenants_visible_to(context, caller))
    if found is None:
        raise Problem(404, f"there is no {kind} {key!r}")
    listed, definition = found
    return WholeDefinition.model_validate(
        {**Definition.model_validate(listed, from_attributes=True).model_dump(), "definition": definition}
    )
