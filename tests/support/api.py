"""The V2 API for tests: real processes, asked over HTTP as a client does."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2

from tests.support.runs import Event
from tests.support.servers import free_port, wait_until
from tests.support.workers import WorkerProcess

StartApi = Callable[..., "ApiProcess"]
"""The fixture `start_api`: starts an API process with the variables given by name."""


class ApiProcess(WorkerProcess):
    """`synapse-worker api` as a process of its own; without keys unless a test wants them."""

    COMMAND = (sys.executable, "-m", "synapse_worker", "api")

    def __init__(self, redis_url: str, postgres_url: str, **extra: str) -> None:
        port = free_port()
        super().__init__(redis_url, postgres_url, **{"API_PORT": str(port), "API_AUTH": "off", **extra})
        self.port = port

    def wait_ready(self) -> ApiProcess:
        """Wait until /readyz says so."""

        def ready() -> bool:
            assert not self.has_ended, self.log
            return self.get("/readyz")[0] == 200

        wait_until("the API is ready", ready)
        return self

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "") -> httpx2.AsyncClient:
        """Return a client of /api/v2, with a key or without."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=100)
        return httpx2.AsyncClient(base_url=f"{self.url}/api/v2", headers=headers, timeout=30, limits=limits)


@asynccontextmanager
async def following(
    client: httpx2.AsyncClient, path: str, *, last_id: str = ""
) -> AsyncIterator[AsyncIterator[Message]]:
    """Follow a stream as `curl -N` does; the iterator ends with the stream."""
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield _messages(answer)


class Message:
    """One message of a stream: `fields` by name, of which `data` is an event. A comment has none."""

    def __init__(self, block: str) -> None:
        self.fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))

    @property
    def event(self) -> Event:
        """The event; {} when it has none."""
        event: Event = json.loads(self.fields.get("data", "{}"))
        return event


async def _messages(answer: httpx2.Response) -> AsyncIterator[Message]:
    text = ""
    async for chunk in answer.aiter_text():
        text += chunk
        *blocks, text = text.split("\n\n")
        for block in blocks:
            yield Message(block)
