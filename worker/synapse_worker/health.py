"""The worker's HTTP port: probes, status and metrics, served from the loop that runs the jobs.

It runs in that same loop on purpose: a blocked loop fails its probes. What the numbers are comes from the
`Status` that `lifecycle` gives; nothing here is a constant.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.telemetry import TelemetryConfig
from pydantic import SecretStr

from synapse_worker.errors import ConfigurationError

_UNTRACED: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""Probes and scrapes are nobody's request."""

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Status:
    """What a worker says of itself, as observed now."""

    status: str
    worker_id: str
    hostname: str
    address: str
    shard: str
    queues: list[str]
    active_jobs: int
    max_jobs: int
    uptime_seconds: float
    redis_connected: bool
    postgres_connected: bool
    draining: bool
    version: str


@dataclass(frozen=True, slots=True)
class Probes:
    """The answers of the probes: "" = well, else the reason of a 503."""

    status: Callable[[], Status]
    started: Callable[[], str]
    ready: Callable[[], str]
    live: Callable[[], str]
    metrics: Callable[[], bytes]


def application(probes: Probes, *, k8s_mode: bool, metrics_token: SecretStr) -> FastAPI:
    """Return the health application.

    Args:
        k8s_mode: False: every probe answers 200 while the process runs, as upstream's does.
        metrics_token: bearer token of /metrics; empty = open.
    """
    app = FastAPI(title="Synapse worker", openapi_url=None, docs_url=None, redoc_url=None, telemetry=_UNTRACED)

    def answer(reason: str) -> Response:
        failed = k8s_mode and reason != ""
        return PlainTextResponse(reason or "ok", status_code=503 if failed else 200)

    @app.get("/health")
    async def health() -> Response:
        status = probes.status()
        bad = k8s_mode and (status.draining or not status.redis_connected or not status.postgres_connected)
        return JSONResponse(asdict(status), status_code=503 if bad else 200)

    @app.get("/livez")
    async def livez() -> Response:
        return answer(probes.live())

    @app.get("/readyz")
    async def readyz() -> Response:
        return answer(probes.ready())

    @app.get("/startupz")
    async def startupz() -> Response:
        return answer(probes.started())

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        return without_token(request, metrics_token) or Response(probes.metrics(), media_type=METRICS_CONTENT_TYPE)

    return app


def without_token(request: Request, token: SecretStr) -> Response | None:
    """Return the answer to who asks for metrics without their bearer token; None = it was sent, or there is none."""
    wanted = token.get_secret_value()
    given = request.headers.get("authorization", "")
    if not wanted or hmac.compare_digest(given.encode(), f"Bearer {wanted}".encode()):
        return None
    return PlainTextResponse(
        "send the bearer token of METRICS_TOKEN", status_code=401, headers={"WWW-Authenticate": "Bearer"}
    )


class HealthServer(uvicorn.Server):
    """uvicorn inside our loop; signals stay ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signal handlers alone: `lifecycle` has the only ones."""
        yield


def listen(port: int, variable: str = "WORKER_HEALTH_PORT") -> socket.socket:
    """Open the port on all addresses, IPv6 where there is any; `variable` is what names it.

    Raises:
        ConfigurationError: the port is taken or not allowed.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigurationError(f"{variable} {port} cannot be opened: {error.strerror}; choose a free port.") from None


def server(app: FastAPI, *, graceful_seconds: int = 2) -> HealthServer:
    """Return the server of `app`, to be awaited with `serve(sockets=[listen(port)])`.

    Args:
        graceful_seconds: how long requests may take to end after `should_exit` was set.
    """
    return HealthServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=graceful_seconds,
        )
    )
