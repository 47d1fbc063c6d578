"""Runs of orchestrations: enqueue, watch, cancel, answer, retry."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from synapse_worker.api import admission
from synapse_worker.api.auth import Caller
from synapse_worker.api.context import (
    CallerDep,
    Context,
    ContextDep,
    mode_of,
    pass_rate,
    refuse,
    tenant_for,
    tenants_visible_to,
)
from synapse_worker.api.models import (
    Changed,
    End,
    IdempotencyKey,
    PathId,
    ResumeRequest,
    RunAccepted,
    RunRequest,
    RunState,
    Start,
    StoredEvents,
)
from synapse_worker.api.problems import Problem, answers
from synapse_worker.api.sse import Snapshot
from synapse_worker.api.streaming import STREAM_ANSWERS, LastEventId, snapshot_event, stored_events, stream_answer
from synapse_worker.api.submission import same_request, submit
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, Seen, cancel_run, new_run_id
from synapse_worker.store import claims, definitions, runs
from synapse_worker.store.database import Database
from synapse_worker.store.runs import RunStatus, RunView
from synapse_worker.waiting_ends import say_ended

router = APIRouter(prefix="/orchestrations", tags=["runs"])

_OVER = (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED)


async def own_run(request: Request, context: ContextDep, caller: CallerDep, run_id: PathId) -> str:
    """Let a request for a run pass whose caller may see it; returns the run's id.

    Raises:
        Problem: 404, there is no such run, or the key's tenant is another one.
    """
    tenant_id = (await claims.tenants_of(context.database, [run_id])).get(run_id)
    await pass_rate(request, context, caller.tenant_id or tenant_id or context.settings.default_tenant_id)
    if tenant_id is None or caller.tenant_id not in (None, tenant_id):
        raise _no_run(run_id)
    return run_id


OwnRun = Annotated[str, Depends(own_run)]


@router.post(
    "/{orchestration_id}/run",
    status_code=202,
    responses=answers(400, 404, 409, 413)
    | {200: {"model": RunState, "description": "Scale mode is off: the run was run, and has ended or waits"}},
)
async def enqueue(
    request: Request,
    context: ContextDep,
    caller: CallerDep,
    orchestration_id: PathId,
    body: RunRequest,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> RunAccepted | RunState:
    """Enqueue a run. It is durable once this is answered with 202; with scale mode off the answer is the run itself."""
    tenant_id = tenant_for(request, context, caller, body.tenant_id)
    mode = await mode_of(context)
    refuse(request, admission.bad_tenant(tenant_id, isolation=mode.isolation))
    await pass_rate(request, context, tenant_id)
    now_ms = int(time.time() * 1000)
    secret = body.webhook_secret.get_secret_value() if body.webhook_secret else None
    told = {**body.model_dump(mode="json"), "webhook_secret": secret}
    run_id = await same_request(
        context, tenant_id, idempotency_key, ["run", orchestration_id, told], new_run_id(now_ms)
    )
    known = await runs.get(context.database, [run_id]) if idempotency_key is not None else []
    if known and not mode.inline:
        return _accepted(run_id, known[0].status)
    if not known:
        await _enqueue(request, context, caller, orchestration_id, tenant_id, body, run_id, now_ms, mode.seen)
    if mode.inline and await context.inline.run(context.settings, run_id, context.stopping):
        response.status_code = 200
        return _state(await _view(context.database, run_id))
    return _accepted(run_id, RunStatus.QUEUED)


async def _enqueue(
    request: Request,
    context: Context,
    caller: Caller,
    orchestration_id: str,
    tenant_id: str,
    body: RunRequest,
    run_id: str,
    now_ms: int,
    seen: Seen,
) -> None:
    visible = tenants_visible_to(context, caller)
    if not await context.knows(definitions.ORCHESTRATIONS, orchestration_id, tenants=visible):
        raise Problem(404, f"there is no orchestration {orchestration_id!r}; sync it first")
    run = NewRun(
        orchestration_id,
        body.message,
        tenant_id,
        body.session_id,
        body.initial_state,
        body.priority,
        traceparent=request.headers.get("traceparent", ""),
        webhook_url=body.webhook_url,
        webhook_secret=body.webhook_secret,
        api_key_id=caller.key_id,
    )
    await submit(
        request,
        context,
        tenant_id,
        run_id,
        lambda: context.producer.enqueue(run, run_id=run_id, now_ms=now_ms, seen=seen),
    )
    context.metrics.enqueued(tenant_id, orchestration_id)


@router.get("/runs/{run_id}/status", responses=answers(404))
async def status(context: ContextDep, run_id: OwnRun) -> RunState:
    """Return where a run stands."""
    return _state(await _view(context.database, run_id))


@router.get("/runs/{run_id}/stream", responses=answers(404) | STREAM_ANSWERS, response_class=Response)
async def stream(request: Request, context: ContextDep, run_id: OwnRun, last_event_id: LastEventId = None) -> Response:
    """Follow a run's events as server-sent events, until it has ended.

    `id:` is the place in the stream, to go on from with Last-Event-ID. Where the events have expired, one event of
    type `snapshot` tells the run's state.
    """

    async def snapshot() -> Snapshot:
        view = await _view(context.database, run_id)
        event = snapshot_event(_state(view).model_dump_json())
        return Snapshot(event, begun=view.started_at is not None, ended=view.status in _OVER)

    is_open = partial(context.runs.is_open, run_id)
    return await stream_answer(request, context, keys.run_events(run_id), last_event_id, is_open, snapshot)


@router.get("/runs/{run_id}/events", responses=answers(404))
async def events(context: ContextDep, run_id: OwnRun, start: Start = "-", end: End = "+") -> StoredEvents:
    """Return a run's events that are still stored, 10,000 at most."""
    return await stored_events(context, keys.run_events(run_id), start, end)


@router.post("/runs/{run_id}/cancel", responses=answers(404, 409))
async def cancel(context: ContextDep, run_id: OwnRun) -> Changed:
    """Cancel a run: at once when it waits, within a second when a worker has it."""
    was = await cancel_run(context.database, context.client, run_id)
    if not was:
        raise _no_run(run_id)
    if was not in (RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.RUNNING):
        raise Problem(409, f"the run is {was}; only queued, running and paused runs can be cancelled")
    now = was if was == RunStatus.RUNNING else RunStatus.CANCELLED
    if now == RunStatus.CANCELLED:  # its tenant need not wait until a worker has seen it
        tenant_id = (await claims.tenants_of(context.database, [run_id]))[run_id]
        with suppress(StoreUnavailable, StoreRefused):
            await context.quotas.leave_place(tenant_id, [run_id])
        context.metrics.runs_completed(tenant_id, now)
    if was == RunStatus.PAUSED:  # nobody owns it who could say so to those that follow its stream
        await say_ended(context.database, context.client, run_id, "cancelled", ttl_seconds=context.settings.event_ttl)
    return Changed(run_id=run_id, was=was, status=now)


@router.post("/runs/{run_id}/resume", status_code=202, responses=answers(404, 409, 413))
async def resume(context: ContextDep, run_id: OwnRun, body: ResumeRequest) -> Changed:
    """Give a paused run the answer that it waits for; it goes on on any worker."""
    was, job_id = await context.producer.answer_run(run_id, body.response, now_ms=int(time.time() * 1000))
    return _going_on(run_id, was, job_id, "only a paused run takes an answer; `retry` goes on with a failed one")


@router.post("/runs/{run_id}/retry", status_code=202, responses=answers(404, 409))
async def retry(context: ContextDep, run_id: OwnRun) -> Changed:
    """Go on with a failed or cancelled run at the step that did not finish."""
    was, job_id = await context.producer.resume_run(run_id, now_ms=int(time.time() * 1000))
    return _going_on(run_id, was, job_id, "only failed and cancelled runs can be retried")


def _going_on(run_id: str, was: str, job_id: str, rule: str) -> Changed:
    if not was:
        raise _no_run(run_id)
    if not job_id:
        raise Problem(409, f"the run is {was}; {rule}")
    return Changed(run_id=run_id, was=was, status=RunStatus.QUEUED, job_id=job_id)


def _accepted(run_id: str, status: str) -> RunAccepted:
    base = f"/api/v2/orchestrations/runs/{run_id}"
    return RunAccepted(run_id=run_id, status=status, stream_url=f"{base}/stream", status_url=f"{base}/status")


async def _view(database: Database, run_id: str) -> RunView:
    found = await runs.get(database, [run_id])
    if not found:
        raise _no_run(run_id)
    return found[0]


def _state(view: RunView) -> RunState:
    return RunState.model_validate(
        {
            **{name: getattr(view, name) for name in RunState.model_fields if hasattr(view, name)},
            "shared_state": view.state,
            "step_history": view.history,
        }
    )


def _no_run(run_id: str) -> Problem:
    return Problem(404, f"there is no run {run_id!r}")
