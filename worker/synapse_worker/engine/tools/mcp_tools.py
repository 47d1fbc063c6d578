"""The tools of MCP servers, over streamable HTTP or SSE; a server's connection lasts as long as its step.

The client's package is large: it is imported with the first server, in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import ModuleType
from typing import TYPE_CHECKING, cast

import httpx2
from pydantic import SecretStr

from synapse_worker.engine.errors import DefinitionError, ToolsUnavailable
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.tools.toolbox import Calls, Tool, ToolFailed, object_schema

if TYPE_CHECKING:
    from mcp.client.client import Client
    from mcp_types import RequestParamsMeta

CONNECT_SECONDS = 15.0
CALL_SECONDS = 120.0

IDEMPOTENCY_META = "synapse-scale/idempotency-key"
"""Where a server finds the call's idempotency key, in the request's `_meta`."""

_MOST_PAGES = 20


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
            client = await _connected(url, headers, document, stack)
            found: list[Tool] = []
            cursor: str | None = None
            for _ in range(_MOST_PAGES):
                page = await client.list_tools(cursor=cursor)
                found += [
                    Tool(
                        f"{name}__{tool.name}",
                        tool.description or "",
                        object_schema(tool.input_schema),
                        _caller(client, tool.name),
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


async def _connected(
    url: str, headers: dict[str, str], document: Mapping[str, object], stack: AsyncExitStack
) -> Client:
    client_module = await asyncio.to_thread(_imported, "mcp.client.client")
    transport: object
    if document.get("transport") == "sse" or url.partition("?")[0].rstrip("/").endswith("/sse"):
        sse = await asyncio.to_thread(_imported, "mcp.client.sse")
        transport = sse.sse_client(url, headers=headers, sse_read_timeout=CALL_SECONDS)
    else:
        http = await asyncio.to_thread(_imported, "mcp.client.streamable_http")
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=CALL_SECONDS)
        client = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout))
        transport = http.streamable_http_client(url, http_client=client)
    connected = await stack.enter_async_context(client_module.Client(transport, read_timeout_seconds=CALL_SECONDS))
    return cast("Client", connected)


def _imported(name: str) -> ModuleType:
    return importlib.import_module(name)


def _caller(client: Client, tool: str) -> Calls:
    async def call(arguments: JsonObject, key: str) -> str:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                result = await client.call_tool(
                    tool, dict(arguments), meta=cast("RequestParamsMeta", {IDEMPOTENCY_META: key})
                )
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
    if isinstance(error, httpx2.TransportError):
        return "it cannot be reached"
    return " ".join(str(error).split())[:300] or type(error).__name__
