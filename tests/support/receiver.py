"""A receiver of webhooks: a real HTTP server in the test's loop that keeps what it gets and answers as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from tests.support.servers import free_port


@dataclass(frozen=True, slots=True)
class Received:
    """A request; the names of its headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, object]:
        """The body, decoded."""
        decoded: dict[str, object] = json.loads(self.body)
        return decoded


def is_signed(received: Received, secret: str) -> bool:
    """Verify a request as docs/operations.md tells receivers to."""
    text = received.headers["x-synapse-timestamp"].encode() + b"." + received.body
    wanted = "sha256=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()
    fresh = abs(time.time() - int(received.headers["x-synapse-timestamp"])) < 300
    return fresh and hmac.compare_digest(wanted, received.headers["x-synapse-signature"])


Answer = Callable[[Received], Awaitable[str]]
"""Returns the head of the answer behind the protocol, such as `200 OK`, with further header lines if wanted."""


async def welcome(_: Received) -> str:
    """Answer that all is well."""
    return "200 OK"


class Receiver:
    """Serves on one loopback address while its block runs."""

    def __init__(self, answer: Answer = welcome, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self.received: list[Received] = []
        self._answer, self._host, self._tls = answer, host, tls
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where webhooks are to go."""
        return f"http://{self._host}:{self.port}/hook"

    async def __aenter__(self) -> Receiver:
        self._server = await asyncio.start_server(self._serve, self._host, self.port, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=2)
        for task in self._serving:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            lines = (line.partition(": ") for line in head[1:] if line)
            headers = {name.lower(): value for name, _, value in lines}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            received = Received(head[0].split()[1], headers, body)
            self.received.append(received)
            writer.write(f"HTTP/1.1 {await self._answer(received)}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # who asked went away
        finally:
            writer.close()
