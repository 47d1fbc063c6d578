"""The HTTP endpoints of the operator: /livez and /readyz on one port, /metrics on another.

They are served by the process itself and not by kopf, because a standby has probes too and does not
start kopf. Being served by the event loop, an answer also proves that the loop turns. What makes a
process sick is judged elsewhere and asked here through two functions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

Check = Callable[[], str | None]
"""Returns what is wrong, in one sentence, or None."""


@asynccontextmanager
async def serve(
    registry: CollectorRegistry, *, live: Check, ready: Check, health_port: int, metrics_port: int
) -> AsyncIterator[None]:
    """Serve the endpoints on all addresses while the context is open.

    /livez and /readyz answer 200 `ok`, or 503 with the sentence of their check.

    Raises:
        OSError: a port is taken.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    def answer(check: Check) -> web.Response:
        problem = check()
        return web.Response(text=problem or "ok", status=503 if problem else 200)

    async def livez(_: web.Request) -> web.Response:
        return answer(live)

    async def readyz(_: web.Request) -> web.Response:
        return answer(ready)

    health = [web.get("/livez", livez), web.get("/readyz", readyz)]
    async with _listening(health, health_port), _listening([web.get("/metrics", metrics)], metrics_port):
        yield


@asynccontextmanager
async def _listening(routes: list[web.RouteDef], port: int) -> AsyncIterator[None]:
    application = web.Application()
    application.add_routes(routes)
    # Nobody waits for the answer of a process that is stopping.
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
