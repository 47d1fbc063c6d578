"""The application of one API process: routes, the form of problems, the document that describes them."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from synapse_worker import __version__, tracing
from synapse_worker.api import problems
from synapse_worker.api.auth import MAX_BODY_BYTES, PREFIX, Doorkeeper
from synapse_worker.api.context import Context, pass_unread
from synapse_worker.api.docs_page import page
from synapse_worker.api.problems import Detail
from synapse_worker.api.routes import chat, definitions, operations, probes, runs

_EVERYWHERE: dict[int | str, dict[str, object]] = {
    401: {"model": Detail, "description": "No valid API key"},
    403: {"model": Detail, "description": "The key is bound to another tenant"},
    429: {"model": Detail, "description": "A limit of the tenant is reached; Retry-After says when to come back"},
}


def application(context: Context) -> FastAPI:
    """Return the application."""
    app = FastAPI(
        title="Synapse V2 API",
        version=__version__,
        summary="Runs of orchestrations and chats with agents, on the workers of Synapse Scale.",
        docs_url=None,  # FastAPI's own page loads its scripts from elsewhere
        redoc_url=None,
        telemetry=_telemetry(),
    )
    app.state.context = context
    problems.install(app, pass_unread)
    # Keys are looked at before a body is read, in `Doorkeeper`; this says so in the document.
    key = Depends(HTTPBearer(auto_error=False, description="An API key, from `synapse-worker keys create`"))
    for router in (runs.router, chat.router, operations.router, definitions.router):
        app.include_router(router, prefix=PREFIX.rstrip("/"), dependencies=[key], responses=_EVERYWHERE)
    app.include_router(probes.router)

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> str:
        return page(app.openapi())

    # For bodies that do not say how long they are; `Doorkeeper` looks at the others.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)
    app.add_middleware(Doorkeeper, context=context)
    return app


def _telemetry() -> TelemetryConfig:
    """Have each request of the API traced, where tracing is on; a run's trace goes on from there.

    Not probes and scrapes, and not streams, which last as long as their clients like.
    """
    provider = tracing.provider()
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: (
            not scope["path"].startswith(PREFIX) or scope["path"].endswith(("/stream", "/metrics"))
        ),
    }
