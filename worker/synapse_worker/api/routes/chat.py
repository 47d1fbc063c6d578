"""Chats with agents: enqueue a turn, watch and cancel it. A turn is a job; all turns of a session share one stream."""

from __future__ import annotations

import secrets
import time
from functools import partial
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from synapse_worker.api import admission
from synapse_worker.api.context import CallerDep, ContextDep, mode_of, pass_rate, refuse, tenant_for, tenants_visible_to
from synapse_worker.api.models import (
    ChatAccepted,
    ChatCancelled,
    ChatRequest,
    ChatState,
    End,
    IdempotencyKey,
    PathId,
    Start,
    StoredEvents,
)
from synapse_worker.api.problems import Problem, answers
from synapse_worker.api.sse import Snapshot
from synapse_worker.api.streaming import STREAM_ANSWERS, LastEventId, snapshot_event, stored_events, stream_answer
from synapse_worker.api.submission import same_request, submit
from synapse_worker.errors import SessionTaken
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewTurn, cancel_turn, new_turn_id
from synapse_worker.store import chats, definitions
from synapse_worker.store.chats import SessionView
from synapse_worker.store.database import Database

router = APIRouter(prefix="/chat", tags=["chat"])

_BUSY = ("queued", "running")


async def own_session(request: Request, context: ContextDep, caller: CallerDep, session_id: PathId) -> str:
    """Let a request for a session pass whose caller may see it; returns the session's id.

    Raises:
        Problem: 404, there is no such session, or the key's tenant is another one.
    """
    tenant_id = await chats.tenant_of(context.database, session_id)
    await pass_rate(request, context, caller.tenant_id or tenant_id or context.settings.default_tenant_id)
    if tenant_id is None or caller.tenant_id not in (None, tenant_id):
        raise _no_session(session_id)
    return session_id


OwnSession = Annotated[str, Depends(own_session)]


@router.post(
    "",
    status_code=202,
    responses=answers(400, 404, 409, 413)
    | {200: {"model": ChatState, "description": "Scale mode is off: the turn was run"}},
)
async def enqueue(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    body: ChatRequest,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> ChatAccepted | ChatState:
    """Enqueue a turn of a chat. It is durable once this is answered with 202; turns of a session keep their order.

    With scale mode off the answer is the session after the turn.
    """
    tenant_id = tenant_for(request, context, caller, body.tenant_id)
    mode = await mode_of(context)
    refuse(request, admission.bad_tenant(tenant_id, isolation=mode.isolation))
    await pass_rate(request, context, tenant_id)
    now_ms = int(time.time() * 1000)
    session_id = body.session_id or f"session_{secrets.token_hex(12)}"
    secret = body.webhook_secret.get_secret_value() if body.webhook_secret else None
    told = {**body.model_dump(mode="json"), "webhook_secret": secret}
    job_id = await same_request(context, tenant_id, idempotency_key, ["chat", told], new_turn_id(session_id, now_ms))
    if idempotency_key is not None and (known := await chats.session_of(context.database, job_id)) is not None:
        return _accepted(known, job_id)
    visible = tenants_visible_to(context, caller)
    if not await context.knows(definitions.AGENTS, body.agent_id, tenants=visible):
        raise Problem(404, f"there is no agent {body.agent_id!r}; sync it first")
    owner = await chats.tenant_of(context.database, session_id)
    if owner not in (None, tenant_id):
        raise Problem(409, f"the session_id {session_id!r} is taken; choose another one")
    turn = NewTurn(
        session_id,
        body.agent_id,
        body.message,
        tenant_id,
        body.images,
        webhook_url=body.webhook_url,
        webhook_secret=body.webhook_secret,
        traceparent=request.headers.get("traceparent", ""),
    )
    try:
        await submit(
            request,
            context,
            tenant_id,
            job_id,
            lambda: context.producer.enqueue_turn(turn, job_id=job_id, now_ms=now_ms, seen=mode.seen),
        )
    except SessionTaken as error:  # by another tenant's request, meanwhile
        raise Problem(409, str(error)) from None
    if mode.inline and await context.inline.run(context.settings, job_id, context.stopping):
        response.status_code = 200
        return ChatState.model_validate(await _view(context.database, session_id), from_attributes=True)
    return _accepted(session_id, job_id)


@router.get("/{session_id}/status", responses=answers(404))
async def status(context: ContextDep, session_id: OwnSession) -> ChatState:
    """Return where a session stands, and its messages."""
    return ChatState.model_validate(await _view(context.database, session_id), from_attributes=True)


@router.get("/{session_id}/stream", responses=answers(404) | STREAM_ANSWERS, response_class=Response)
async def stream(
    request: Request, context: ContextDep, session_id: OwnSession, last_event_id: LastEventId = None
) -> Response:
    """Follow a session's events as server-sent events, until its turn is done."""

    async def snapshot() -> Snapshot:
        view = await _view(context.database, session_id)
        state = ChatState.model_validate(view, from_attributes=True)
        busy = view.status in _BUSY
        return Snapshot(snapshot_event(state.model_dump_json()), begun=view.status != "queued", ended=not busy)

    is_open = partial(context.sessions.is_open, session_id)
    return await stream_answer(request, context, keys.chat_events(session_id), last_event_id, is_open, snapshot)


@router.get("/{session_id}/events", responses=answers(404))
async def events(context: ContextDep, session_id: OwnSession, start: Start = "-", end: End = "+") -> StoredEvents:
    """Return a session's events that are still stored."""
    return await stored_events(context, keys.chat_events(session_id), start, end)


@router.post("/{session_id}/cancel", responses=answers(404, 409))
async def cancel(context: ContextDep, session_id: OwnSession) -> ChatCancelled:
    """Cancel the turn that a worker has or that waits."""
    view = await _view(context.database, session_id)
    if view.status not in _BUSY:
        raise Problem(409, f"the session has no turn to cancel; it is {view.status or 'new'}")
    await cancel_turn(context.client, session_id)
    return ChatCancelled(session_id=session_id, status="cancelling")


def _accepted(session_id: str, job_id: str) -> ChatAccepted:
    base = f"/api/v2/chat/{quote(session_id)}"
    return ChatAccepted(
        session_id=session_id,
        job_id=job_id,
        status="queued",
        stream_url=f"{base}/stream",
        status_url=f"{base}/status",
    )


async def _view(database: Database, session_id: str) -> SessionView:
    found = await chats.get(database, session_id)
    if found is None:
        raise _no_session(session_id)
    return found


def _no_session(session_id: str) -> Problem:
    return Problem(404, f"there is no chat session {session_id!r}")
