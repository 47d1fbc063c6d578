"""What custom tools of type http call in tests: a server in a thread of this process."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from synapse_worker.engine.tools.http_tool import MAX_BYTES


class Endpoint:
    """A loopback server that notes its requests and answers as its paths say.

    `requests` are (method, path with its query, headers by names in lower case, body), oldest first.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((self.command, self.path, headers, body))
                path, _, target = self.path.partition("?to=")
                if path == "/redirect":
                    self.send_response(302)
                    self.send_header("location", target)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                content = {"/big": b"x" * (MAX_BYTES + 1)}.get(path, b'{"ok": true}')
                self.send_response(418 if path == "/teapot" else 200)
                if path == "/charset":
                    self.send_header("content-type", f"text/plain; charset={target}")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                try:
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - names of the base class

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
