"""What Kubernetes and Prometheus ask."""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from synapse_worker.api.auth import METRICS_PATH
from synapse_worker.api.context import ContextDep
from synapse_worker.api.routes.operations import queues_with_jobs
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.health import METRICS_CONTENT_TYPE, without_token
from synapse_worker.store import workers

router = APIRouter(tags=["probes"])


@router.get("/livez", response_class=PlainTextResponse)
async def livez() -> str:
    """Return 200 while the process serves requests."""
    return "ok"


@router.get(
    "/readyz",
    response_class=PlainTextResponse,
    responses={503: {"description": "Why not", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def readyz(context: ContextDep) -> Response:
    """Return 200 while both stores answer and the process is not about to stop."""
    problem = "stopping" if context.stopping.is_set() else context.problem or context.gate.problem
    return PlainTextResponse(problem or "ok", status_code=503 if problem else 200)


@router.get(
    METRICS_PATH,
    response_class=PlainTextResponse,
    responses={
        401: {
            "description": "METRICS_TOKEN is set and was not sent",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    },
)
async def metrics(request: Request, context: ContextDep) -> Response:
    """Return this process's series and the installation's, in Prometheus' text form."""
    if (refused := without_token(request, context.settings.metrics_token)) is not None:
        return refused
    with suppress(StoreUnavailable, StoreRefused):  # what this process knows by itself is told all the same
        figures = await queues_with_jobs(context)
        context.metrics.installation(
            workers=await workers.count_online(context.database),
            active=sum(queue.active for queue in figures.values()),
            waiting={name: queue.queued for name, queue in figures.items()},
        )
    return Response(context.metrics.text(), media_type=METRICS_CONTENT_TYPE)
