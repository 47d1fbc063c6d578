"""Load over HTTP from a process of its own: the same POST again and again over a fixed number of connections.

Each connection sends its next request when it has the answer to the one before. Run as a module it reads what to send
from standard input and writes what came of it, both as JSON; it does little itself, so that the server is what is
measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import uvloop

_SECONDS = 120
"""How long a whole measurement may take."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: `warm_up` requests that do not count, then `requests`, over so many `connections`."""

    port: int
    path: str
    headers: Mapping[str, str]
    body: str
    requests: int
    warm_up: int
    connections: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it: seconds for all, milliseconds for each, and how often each status came."""

    seconds: float
    milliseconds: list[float]
    statuses: Mapping[str, int]


async def send(load: Load) -> Answered:
    """Have a process of its own send the load."""

    def run() -> str:
        command = [sys.executable, "-m", __name__]
        told = json.dumps(asdict(load))
        return subprocess.run(
            command, input=told, check=True, text=True, stdout=subprocess.PIPE, timeout=_SECONDS
        ).stdout

    return Answered(**json.loads(await asyncio.to_thread(run)))


async def _send_all(load: Load) -> Answered:
    body = load.body.encode()
    headers = {
        "Host": "127.0.0.1",
        **load.headers,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    lines = [f"POST {load.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    request = "\r\n".join(lines).encode() + body
    streams = [await asyncio.open_connection("127.0.0.1", load.port) for _ in range(load.connections)]
    took: list[float] = []
    statuses: dict[str, int] = {}

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[None], count: bool) -> None:
        while left:
            left.pop()
            began = time.perf_counter()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            if count:
                took.append((time.perf_counter() - began) * 1000)
                status = head.split(b" ", 2)[1].decode()
                statuses[status] = statuses.get(status, 0) + 1

    async def everybody(requests: int, *, count: bool) -> float:
        left: list[None] = [None] * requests
        began = time.perf_counter()
        await asyncio.gather(*(ask(reader, writer, left, count) for reader, writer in streams))
        return time.perf_counter() - began

    await everybody(load.warm_up, count=False)
    seconds = await everybody(load.requests, count=True)
    for _, writer in streams:
        writer.close()
    return Answered(seconds, took, statuses)


def _main() -> None:
    load = Load(**json.load(sys.stdin))
    json.dump(asdict(uvloop.run(_send_all(load))), sys.stdout)


if __name__ == "__main__":
    _main()
