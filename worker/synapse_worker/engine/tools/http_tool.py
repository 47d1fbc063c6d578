"""Custom tools over HTTP: a url with places for arguments, fixed headers, and the rest as JSON body or query.

Arguments come from a model, so they may fill places and nothing else: a value cannot leave its part of the url, and a
redirect, or a host that an argument names, leads to no private address unless the tool's author wrote that host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

import httpx2

from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.tools.toolbox import Calls, Tool, ToolFailed, object_schema

SECONDS = 30.0
"""For one call, redirects included."""

MAX_BYTES = 1024 * 1024
"""Of an answer's body; what is longer is not read on."""

_MOST_REDIRECTS = 5
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_METHODS = _WITH_BODY | {"GET", "DELETE", "HEAD"}
_PLACE = re.compile(r"\{(\w+(?:\.\w+)*)\}")
_SHOWN = 2000


def http_tool(name: str, document: Mapping[str, object], headers: Mapping[str, str]) -> Tool:
    """Return a custom tool of type http; `headers` are its own, which may be secrets.

    A document that cannot be called (no url, an unknown method) gives a tool that says so when it is called.
    """
    schema = next((document[key] for key in ("inputSchema", "schema", "parameters") if document.get(key)), {})
    return Tool(name, str(document.get("description") or ""), object_schema(schema), _caller(name, document, headers))


def _caller(name: str, document: Mapping[str, object], headers: Mapping[str, str]) -> Calls:
    template = str(document.get("url") or "")
    method = str(document.get("method") or "GET").upper()

    async def call(arguments: JsonObject, key: str) -> str:
        if not template.startswith(("http://", "https://")):
            raise ToolFailed(f"The tool {name!r} has no http:// or https:// url.")
        if method not in _METHODS:
            raise ToolFailed(f"The tool {name!r} has the method {method!r}; accepted: {', '.join(sorted(_METHODS))}.")
        url, rest = filled(template, arguments)
        request = httpx2.Request(
            method,
            url,
            params=None if method in _WITH_BODY or not rest else {key: _word(value) for key, value in rest.items()},
            json=rest if method in _WITH_BODY else None,
            headers={**headers, "Idempotency-Key": key},
        )
        try:
            async with asyncio.timeout(SECONDS), httpx2.AsyncClient(timeout=SECONDS) as client:
                return await _send(client, request, trusted=_host_is_fixed(template))
        except TimeoutError:
            raise ToolFailed(f"The tool has not answered within {SECONDS:g} s.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ToolFailed(f"The tool cannot be reached: {type(error).__name__}.") from None

    return call


def filled(template: str, arguments: JsonObject) -> tuple[str, JsonObject]:
    """Return the url with `{arg}` and `{arg.path}` filled in, and the arguments that it did not use.

    Raises:
        ToolFailed: an argument that the url needs is not there.
    """
    used: set[str] = set()

    def value(match: re.Match[str]) -> str:
        found: JsonValue = arguments
        for part in match[1].split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            raise ToolFailed(f"The arguments lack {match[1]}.")
        used.add(match[1].split(".")[0])
        return quote(_word(found), safe="")

    url = _PLACE.sub(value, template)
    return url, {key: each for key, each in arguments.items() if key not in used}


async def _send(client: httpx2.AsyncClient, request: httpx2.Request, *, trusted: bool) -> str:
    """Send, following redirects; `trusted`: the first host was written by the tool's author."""
    own = trusted and await _is_private(request.url.host)
    if not trusted and await _is_private(request.url.host):
        raise ToolFailed(f"The address {request.url.host!r} is private; a tool reaches it only when its url names it.")
    for _ in range(_MOST_REDIRECTS):
        response = await client.send(request, stream=True)
        try:
            target = response.next_request
            if target is None:
                return await _content(response)
        finally:
            await response.aclose()
        if not own and await _is_private(target.url.host):
            raise ToolFailed(f"The tool redirects to the private address {target.url.host!r}, which is not followed.")
        if (target.url.scheme, target.url.host, target.url.port) != (
            request.url.scheme,
            request.url.host,
            request.url.port,
        ):
            # The author's headers, which may be secrets, are for the author's host.
            target = httpx2.Request(target.method, target.url, content=await target.aread())
        request = target
    raise ToolFailed(f"The tool redirects more than {_MOST_REDIRECTS} times.")


async def _content(response: httpx2.Response) -> str:
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            raise ToolFailed(f"The tool answers with more than {MAX_BYTES >> 20} MiB.")
    text = body.decode(response.encoding or "utf-8", "replace")
    if response.status_code >= 400:
        raise ToolFailed(f"The tool answers with HTTP {response.status_code}: {text[:_SHOWN]}")
    return text


async def _is_private(host: str) -> bool:
    """Whether a host is, or may be, inside: any of its addresses is not a public one."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return False  # nothing is there to be reached
    return any(not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


def _host_is_fixed(template: str) -> bool:
    authority = re.split(r"[/?#]", template.partition("://")[2], maxsplit=1)[0]
    return _PLACE.search(authority) is None


def _word(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
