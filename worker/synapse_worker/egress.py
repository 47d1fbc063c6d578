"""HTTP requests to URLs that users give, on paths that `egress_policy` permits.

A name is resolved once, its addresses are judged, and the connection goes to an address that was judged, so a name
that resolves to something else a moment later changes nothing. Proxies of the environment are not used: what a proxy
connects to could not be judged. Redirects are not followed, cookies not kept, answers not read beyond their head.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import httpx2

from synapse_worker.egress_policy import Address, Allowed, literal
from synapse_worker.errors import EgressFailed, EgressRefused

_RESOLVERS = 16
_CONNECT_SECONDS = 5.0
_MOST_ADDRESSES = 4
"""A name may have many addresses; so many are tried."""


class Egress:
    """Sends requests. An asynchronous context manager."""

    def __init__(self, allowed: Allowed) -> None:
        """Make a sender; nothing is connected yet.

        Args:
            allowed: what may be reached although it is not public.
        """
        self._allowed = allowed
        # A connection that is kept would lead to an address that was judged for another request.
        self._transport = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        )
        # The loop's own threads are few and shared; a dead name server must not take them.
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="resolve")

    async def __aenter__(self) -> Egress:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()

    async def post(self, url: str, *, headers: Mapping[str, str], content: bytes, seconds: float) -> int:
        """Send a POST request and return the answer's status.

        Args:
            url: http:// or https://.
            seconds: how long all of it may take.

        Raises:
            EgressRefused: the URL cannot be used, or leads where it may not.
            EgressFailed: no answer. The receiver may have the request all the same.
        """
        target = _parse(url)
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._resolve(target)
                return await self._send(target, addresses, headers, content, seconds)
        except TimeoutError:
            raise EgressFailed(f"{target.host} does not answer within {seconds:g} s") from None

    async def _resolve(self, target: httpx2.URL) -> list[Address]:
        """Return the permitted addresses of the URL's host."""
        try:
            named = literal(target.host)
        except ValueError as error:
            raise EgressRefused(f"the host {target.host!r} is refused: {error}") from None
        found = [named] if named else await self._look_up(target)
        permitted = [address for address in found if self._allowed.permits(target.host, address)]
        if not permitted:
            raise EgressRefused(
                f"{target.host} is no public address; private, loopback and link-local ones are reached only"
                " where WEBHOOK_ALLOW names them"
            )
        return permitted[:_MOST_ADDRESSES]

    async def _look_up(self, target: httpx2.URL) -> list[Address]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._resolvers, _addresses, target.host)
        except (OSError, UnicodeError):
            raise EgressFailed(f"the host name {target.host} cannot be resolved") from None
        return list(dict.fromkeys(found))

    async def _send(
        self,
        target: httpx2.URL,
        addresses: Sequence[Address],
        headers: Mapping[str, str],
        content: bytes,
        seconds: float,
    ) -> int:
        """Send to the first address that takes a connection."""
        timeout = httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)).as_dict()
        for number, address in enumerate(addresses, start=1):
            request = httpx2.Request(
                "POST",
                target.copy_with(host=str(address)),
                headers={"Host": target.netloc.decode("ascii"), **headers},
                content=content,
                # The certificate is checked against the name, not the address.
                extensions={"timeout": timeout, "sni_hostname": target.host},
            )
            try:
                response = await self._transport.handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if number == len(addresses):
                    raise EgressFailed(f"{target.host} cannot be reached: {_said(error)}") from None
            except httpx2.HTTPError as error:
                raise EgressFailed(f"{target.host} gives no answer: {_said(error)}") from None
            else:
                await response.aclose()
                return response.status_code
        raise AssertionError("there is at least one address")


def _parse(url: str) -> httpx2.URL:
    """Read a URL; what is said of one that cannot be used does not repeat it, since it may hold a token."""
    try:
        target = httpx2.URL(url)
        target.netloc.decode("ascii")
    except (httpx2.InvalidURL, UnicodeError, TypeError):
        raise EgressRefused("the URL cannot be read; accepted: http://host/path or https://host/path") from None
    if target.scheme not in ("http", "https") or not target.host or "%" in target.host:
        raise EgressRefused("the URL is not of an accepted form: http://host/path or https://host/path")
    if target.port is not None and not 0 < target.port < 65_536:
        raise EgressRefused("the URL's port is not one; accepted: 1 to 65535")
    return target


def _addresses(host: str) -> list[Address]:
    """Ask the system's resolver; blocks."""
    found: list[Address] = []
    for *_, place in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
        address = literal(str(place[0]))
        if address is not None:
            found.append(address)
    return found


def _said(error: httpx2.HTTPError) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
