"""The tools of MCP servers, over streamable HTTP or SSE; a server's connection lasts as long as its step.

A connection that breaks cancels the task that opened it, so that is a task of its own and never the step's. The
client's package is large: it is imported with the first server, in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

import httpx2
from pydantic import SecretStr

from synapse_worker.engine.bounded_answers import AnswerTooLong, bounded
from synapse_worker.engine.errors import DefinitionError, ToolsUnavailable
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.tools.toolbox import Calls, Tool, ToolFailed, object_schema

if TYPE_CHECKING:
    from mcp.client.client import Client
    from mcp_types import RequestParamsMeta

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 15.0
CALL_SECONDS = 120.0

MAX_BYTES = 32 * 1024 * 1024
"""Of one answer, or of all those that come over one stream; what is longer breaks the connection."""

IDEMPOTENCY_META = "synapse-scale/idempotency-key"
"""Where a server finds the call's idempotency key, in the request's `_meta`."""

_MOST_PAGES = 20
_LEAVE_SECONDS = 1.0
"""How long a call that is given up may take to end."""


def is_stdio(document: Mapping[str, object]) -> bool:
    """Whether a server is a command on the machine of whoever uses it."""
    return str(document.get("server_type") or "") == "stdio" or (
        not document.get("url") and bool(document.get("command"))
    )


async def mcp_tools(
    name: str, document: Mapping[str, object], token: SecretStr | None, stack: AsyncExitStack
) -> list[Tool]:
    """Connect to a server and return its tools, which work until `stack` is closed.

    Raises:
        DefinitionError: it is a stdio server, or has no URL.
        ToolsUnavailable: it does not answer now.
    """
    title = f"MCP server {name!r}"
    if is_stdio(document):
        raise DefinitionError(
            f"{title} is of type stdio, a command; workers run no commands: give it as server_type remote with a url"
        )
    url = str(document.get("url") or "")
    if not url.startswith(("http://", "https://")):
        raise DefinitionError(f"{title} has no http:// or https:// url")
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token is not None else {}
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = _Connection()
            stack.push_async_callback(connection.close)
            await connection.open(url, headers, document)
            found: list[Tool] = []
            cursor: str | None = None
            for _ in range(_MOST_PAGES):
                page = await connection.wait_for(connection.client.list_tools(cursor=cursor))
                found += [
                    Tool(
                        f"{name}__{tool.name}",
                        tool.description or "",
                        object_schema(tool.input_schema),
                        _caller(connection, tool.name),
                    )
                    for tool in page.tools
                ]
                cursor = page.next_cursor
                if cursor is None:
                    break
            return found
    except TimeoutError:
        raise ToolsUnavailable(f"{title} has not answered within {CONNECT_SECONDS:g} s") from None
    except Exception as error:  # transports raise whatever they meet, in groups
        raise ToolsUnavailable(f"{title} cannot be used: {_reason(error)}") from None


class _Lost(Exception):
    """The connection is gone."""

    def __init__(self) -> None:
        super().__init__("the connection to it was lost")


class _Connection:
    """A server's connection in a task of its own; `client` is there once it is open."""

    client: Client

    def __init__(self) -> None:
        self._holder: asyncio.Task[None] | None = None
        self._is_open = asyncio.Event()
        self._closing = asyncio.Event()

    async def open(self, url: str, headers: dict[str, str], document: Mapping[str, object]) -> None:
        """Connect; raises whatever the transport meets."""
        self._holder = asyncio.create_task(self._hold(url, headers, document))
        await self.wait_for(self._is_open.wait())

    async def _hold(self, url: str, headers: dict[str, str], document: Mapping[str, object]) -> None:
        async with AsyncExitStack() as stack:
            self.client = await _connected(url, headers, document, stack)
            self._is_open.set()
            await self._closing.wait()

    async def wait_for(self, call: Coroutine[object, object, T]) -> T:
        """Return what a call of the client gives, as long as the connection lasts."""
        holder = self._holder
        assert holder is not None  # noqa: S101 - nothing is called before it is opened
        task = asyncio.create_task(call)
        try:
            await asyncio.wait({task, holder}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled():
                return task.result()
            if holder.done() and not holder.cancelled() and (error := holder.exception()) is not None:
                raise error
            raise _Lost
        finally:
            task.cancel()
            task.add_done_callback(_forget)
            await asyncio.wait({task}, timeout=_LEAVE_SECONDS)

    async def close(self) -> None:
        """End it; what goes wrong with that concerns nobody."""
        holder = self._holder
        if holder is None:
            return
        self._closing.set()
        if not self._is_open.is_set():
            holder.cancel()
        try:
            await asyncio.wait({holder})
        finally:
            holder.cancel()
        if not holder.cancelled() and (error := holder.exception()) is not None:
            log.info("a connection to an MCP server did not end well: %s", type(error).__name__)


async def _connected(
    url: str, headers: dict[str, str], document: Mapping[str, object], stack: AsyncExitStack
) -> Client:
    client_module = await asyncio.to_thread(_imported, "mcp.client.client")
    transport: object
    if document.get("transport") == "sse" or url.partition("?")[0].rstrip("/").endswith("/sse"):
        sse = await asyncio.to_thread(_imported, "mcp.client.sse")
        transport = sse.sse_client(
            url, headers=headers, sse_read_timeout=CALL_SECONDS, httpx_client_factory=_http_client
        )
    else:
        http = await asyncio.to_thread(_imported, "mcp.client.streamable_http")
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=CALL_SECONDS)
        client = await stack.enter_async_context(_http_client(headers=headers, timeout=timeout))
        transport = http.streamable_http_client(url, http_client=client)
    connected = await stack.enter_async_context(client_module.Client(transport, read_timeout_seconds=CALL_SECONDS))
    return cast("Client", connected)


def _http_client(
    headers: dict[str, str] | None = None, timeout: httpx2.Timeout | None = None, auth: httpx2.Auth | None = None
) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, event_hooks=bounded(MAX_BYTES))


def _forget(task: asyncio.Task[T]) -> None:
    """Look at how a call ended that nobody waits for any more, so that nothing complains of it."""
    if not task.cancelled():
        task.exception()


def _imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def _caller(connection: _Connection, tool: str) -> Calls:
    async def call(arguments: JsonObject, key: str) -> str:
        meta = cast("RequestParamsMeta", {IDEMPOTENCY_META: key})
        try:
            async with asyncio.timeout(CALL_SECONDS):
                result = await connection.wait_for(connection.client.call_tool(tool, dict(arguments), meta=meta))
        except TimeoutError:
            raise ToolFailed(f"The tool has not answered within {CALL_SECONDS:g} s.") from None
        except Exception as error:
            raise ToolFailed(f"The call failed: {_reason(error)}") from None
        texts = [text for block in result.content if isinstance(text := getattr(block, "text", None), str)]
        content = "\n".join(texts)
        if not content and result.structured_content is not None:
            content = json.dumps(result.structured_content, ensure_ascii=False)
        if result.is_error:
            raise ToolFailed(content or "The tool reports an error and no reason.")
        return content

    return call


def _reason(error: BaseException) -> str:
    """The innermost reason in one line; no header or token is ever in it."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, httpx2.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, AnswerTooLong):
        return str(error)
    if isinstance(error, httpx2.TransportError):
        return "it cannot be reached"
    return " ".join(str(error).split())[:300] or type(error).__name__
