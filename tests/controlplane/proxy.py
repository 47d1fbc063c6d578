"""A way to the API server that fails as networks do: all of it goes silent, or what is open ends or goes silent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial


class _Connection:
    """One connection through the proxy."""

    def __init__(self, client: socket.socket, upstream: socket.socket) -> None:
        self.ends = (client, upstream)
        self.silent = threading.Event()


class Proxy:
    """Listens on `url` for what is meant for the API server."""

    def __init__(self, server: str) -> None:
        host, port = server.removeprefix("https://").rsplit(":", 1)
        self._target = (host, int(port))
        self._open: list[_Connection] = []
        self.swallow = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._run(self._accept)

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def cut(self, *, silent: bool) -> None:
        """End all connections that are open now, or let nothing through them any more; new ones work."""
        gone, self._open = self._open, []
        for connection in gone:
            if silent:
                connection.silent.set()
                continue
            for end in connection.ends:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it had ended already

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            connection = _Connection(client, socket.create_connection(self._target))
            self._open.append(connection)
            self._run(partial(self._pump, connection, *connection.ends))
            self._run(partial(self._pump, connection, *reversed(connection.ends)))

    def _pump(self, connection: _Connection, source: socket.socket, sink: socket.socket) -> None:
        with source:
            while True:
                try:
                    data = source.recv(65536)
                    if not data:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    if not self.swallow.is_set() and not connection.silent.is_set():
                        sink.sendall(data)
                except OSError:
                    return

    @staticmethod
    def _run(target: Callable[[], None]) -> None:
        threading.Thread(target=target, daemon=True).start()
