"""Stores that can be broken in the ways of the scenarios, and a TCP forwarder that can be cut without closing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.support.servers import NotInstalled, RedisServer


class DurableRedis(RedisServer):
    """A Redis that keeps its data over a restart (append-only file); with `replica_of`, a replica of that port."""

    def __init__(self, *, replica_of: int | None = None) -> None:
        super().__init__()
        self._replica_of = replica_of

    def command(self) -> list[str]:
        plain = super().command()
        plain[plain.index("--appendonly") + 1] = "yes"
        plain += ["--repl-diskless-sync-delay", "0"]  # a replica need not wait for others
        if self._replica_of is not None:
            plain += ["--replicaof", "127.0.0.1", str(self._replica_of)]
        return plain


class Forwarder:
    """Passes TCP connections from a port of its own to another one, in the loop that started it.

    `cut` holds back what either side sends, as a partition does: no connection is closed, new ones are accepted and
    hear nothing. After `mend` it all arrives. `send_to` closes every connection and names another target.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> Forwarder:
        """Listen on a free port of the loopback address."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def cut(self) -> None:
        """Forward nothing from now on."""
        self._whole.clear()

    def mend(self) -> None:
        """Forward again, first what was held back."""
        self._whole.set()

    def send_to(self, target: int) -> None:
        """Close all connections; new ones go to another port."""
        self._target = target
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        self.send_to(self._target)
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: that of the callback, when cancelled, is reported as an error.
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._whole.wait()
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        ways = [
            asyncio.create_task(self._pass(reader, there_writer)),
            asyncio.create_task(self._pass(there_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            there_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            return


def faketime_library() -> str:
    """Return the path of libfaketime.

    Raises:
        NotInstalled: it is not there; the message names the command that installs it.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        raise NotInstalled("libfaketime is not installed; run: apt-get install -y --no-install-recommends faketime")
    return str(found[0])
