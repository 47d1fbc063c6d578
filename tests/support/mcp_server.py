"""An MCP server with two tools, over streamable HTTP and SSE, in a thread of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.servers import free_port, wait_until


@dataclass
class Tools:
    """What the running server is and saw: bearer tokens of its requests, and the calls of its tools."""

    url: str
    tokens: set[str] = field(default_factory=set)
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


@contextmanager
def mcp_server(*, sse: bool = False, host: str = "127.0.0.1") -> Iterator[Tools]:
    """Serve `weather(city)` and `fail(reason)` at an address of this machine until the block ends."""
    port = free_port()
    seen = Tools(f"http://{host}:{port}/{'sse' if sse else 'mcp'}")
    mcp = MCPServer("demo")

    @mcp.tool()
    def weather(city: str) -> str:
        """Weather of a city."""
        seen.calls.append(("weather", {"city": city}))
        return f"3 degrees in {city}"

    @mcp.tool()
    def fail(reason: str) -> str:
        """Fail for a reason."""
        seen.calls.append(("fail", {"reason": reason}))
        raise ToolError(reason)

    inner: ASGIApp = mcp.sse_app(host=host) if sse else mcp.streamable_http_app(host=host)

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        for name, value in scope.get("headers", []):
            if name == b"authorization":
                seen.tokens.add(value.decode())
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(noting, host=host, port=port, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_until("the MCP server has started", lambda: server.started)
    try:
        yield seen
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
