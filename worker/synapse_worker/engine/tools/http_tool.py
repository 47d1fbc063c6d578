"""Custom tools over HTTP: a url with places for arguments, fixed headers, and the rest as JSON body or query.

Arguments come from a model, so they may fill places and nothing else: a value cannot leave its part of the url, and a
host that an argument names is no private one. Neither is one that a redirect names, whoever redirects: only the host
that the tool's author wrote may be private, as long as the redirects stay there. Where that has to be judged, the
connection goes to the very address that was, and past the environment's proxies.

Whatever a model or an endpoint sends, a call ends with a text or with `ToolFailed`: the arguments are kept, so another
error would come again with each try of the run.
"""

from __future__ import annotations

import asyncio
import codecs
import ipaddress
import json
import re
import string
from collections.abc import Mapping
from urllib.parse import quote

import httpx2

from synapse_worker.egress_policy import Address, Allowed
from synapse_worker.engine.checks import WITH_BODY, request_fault
from synapse_worker.engine.json_values import JsonObject, JsonValue
from synapse_worker.engine.tools.toolbox import Calls, Tool, ToolFailed, object_schema

SECONDS = 30.0
"""For one call, redirects included."""

MAX_BYTES = 1024 * 1024
"""Of an answer's body; what is longer is not read on."""

_MOST_REDIRECTS = 5
_PLACE = re.compile(r"\{(\w+(?:\.\w+)*)\}")
_SHOWN = 2000
_MOST_ADDRESSES = 4
_PUBLIC = Allowed()
_SLOW_OR_NO_TEXT = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape", "utf-7"})
"""What a charset may name beside those that texts are written in; an endpoint chooses it."""


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
        if (fault := request_fault(document)) is not None:
            raise ToolFailed(f"The tool {name!r} {fault}.")
        try:
            request = _request(method, template, arguments, {**headers, "Idempotency-Key": _visible(key)})
        except (httpx2.InvalidURL, ValueError) as error:
            raise ToolFailed(f"No request can be made of these arguments: {type(error).__name__}.") from None
        try:
            async with asyncio.timeout(SECONDS):
                return await _send(request, trusted=_host_is_fixed(template))
        except TimeoutError:
            raise ToolFailed(f"The tool has not answered within {SECONDS:g} s.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ToolFailed(f"The tool cannot be reached: {type(error).__name__}.") from None

    return call


def _request(method: str, template: str, arguments: JsonObject, headers: Mapping[str, str]) -> httpx2.Request:
    """Return the request of a call; raises ValueError or InvalidURL where none can be made."""
    url, rest = filled(template, arguments)
    return httpx2.Request(
        method,
        url,
        params=None if method in WITH_BODY or not rest else {key: _word(value) for key, value in rest.items()},
        json=rest if method in WITH_BODY else None,
        headers={name.encode("ascii"): value.encode() for name, value in headers.items()},
    )


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


async def _send(request: httpx2.Request, *, trusted: bool) -> str:
    """Send, following redirects; `trusted`: the first host was written by the tool's author."""
    author_host = request.url.host if trusted else None
    async with (
        httpx2.AsyncClient(timeout=SECONDS) as client,
        httpx2.AsyncClient(timeout=SECONDS, transport=_Public()) as judged,
    ):
        for number in range(_MOST_REDIRECTS):
            if request.url.host != author_host:
                author_host = None  # from here on somebody else says where to go
            sender = judged if author_host is None else client
            try:
                response = await sender.send(request, stream=True)
            except _Private:
                host = request.url.host
                raise ToolFailed(
                    f"The tool redirects to the private address {host!r}, which is not followed."
                    if number
                    else f"The address {host!r} is private; a tool reaches it only when its url names it."
                ) from None
            try:
                target = response.next_request
                if target is None:
                    return await _content(response)
            finally:
                await response.aclose()
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
    try:
        charset = codecs.lookup(response.encoding or "utf-8").name
        text = body.decode("utf-8" if charset in _SLOW_OR_NO_TEXT else charset, "replace")
    except (LookupError, ValueError):  # such as base64, which is no text's
        text = body.decode("utf-8", "replace")
    if response.status_code >= 400:
        raise ToolFailed(f"The tool answers with HTTP {response.status_code}: {text[:_SHOWN]}")
    return text


class _Private(Exception):
    """A host is, or may be, inside."""


class _Public(httpx2.AsyncBaseTransport):
    """Connects to public addresses only: those that were judged, whatever the name resolves to a moment later."""

    def __init__(self) -> None:
        self._transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send to the first address of the request's host that takes a connection.

        Raises:
            _Private: any of them is not public.
        """
        host = request.url.host
        addresses = await _addresses(host)
        if not addresses:
            raise httpx2.ConnectError("the host name cannot be resolved", request=request)
        if not all(_PUBLIC.permits(host, address) for address in addresses):
            raise _Private
        for number, address in enumerate(addresses, start=1):
            try:
                return await self._transport.handle_async_request(_to(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                if number in (len(addresses), _MOST_ADDRESSES):
                    raise
        raise AssertionError("there is at least one address")

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def _to(request: httpx2.Request, address: Address) -> httpx2.Request:
    """Return the request as it is sent to an address; its Host header and its certificate are the name's."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


async def _addresses(host: str) -> list[Address]:
    """Return the addresses of a host; none when nothing is there to be reached."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in found))


def _host_is_fixed(template: str) -> bool:
    authority = re.split(r"[/?#]", template.partition("://")[2], maxsplit=1)[0]
    return _PLACE.search(authority) is None


def _word(value: JsonValue) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _visible(key: str) -> str:
    """Return a key as a header can hold it: what is not visible ASCII, such as in a step's id, percent-encoded."""
    return quote(key, safe=string.punctuation, errors="surrogatepass")
