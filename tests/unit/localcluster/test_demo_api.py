"""What the demo does when the API refuses or breaks off; what it does otherwise is tested on the real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from localcluster.demo.api import MOST_RETURNS, V2Api
from localcluster.errors import ClusterError

CUTS = ("cut", "torn")
STREAM = ["worker_picked_up", "step_start", "done"]


class Handler(BaseHTTPRequestHandler):
    """Serves two streams that break off after each event, `dead`, which says nothing, and refuses all else.

    `cut` ends as an answer does; `torn` ends within a chunk.
    """

    asked: list[str | None]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer."""
        last = self.headers.get("Last-Event-ID")
        self.asked.append(last)
        name = self.path.strip("/")
        self.protocol_version = "HTTP/1.1" if name == "torn" else "HTTP/1.0"
        self.close_connection = True
        self.send_response(200 if name in (*CUTS, "dead") else 404)
        if name == "torn":
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if name in CUTS:
            at = int(last.partition("-")[0]) if last else 0
            said = f': connected\n\nid: {at + 1}-0\ndata: {{"type": "{STREAM[at]}"}}\n\n'.encode()
            self.wfile.write(f"{len(said) + 1:x}\r\n".encode() + said if name == "torn" else said)
        elif name != "dead":
            self.wfile.write(b'{"detail": "there is no such run"}')


@contextmanager
def serving() -> Iterator[tuple[V2Api, list[str | None]]]:
    """A client of such a server, and the Last-Event-ID of each request."""
    asked: list[str | None] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("AskedHandler", (Handler,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield V2Api(f"http://127.0.0.1:{server.server_address[1]}", "key"), asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("name", CUTS)
def test_a_stream_that_is_cut_is_gone_on_with_behind_the_last_event(name: str) -> None:
    with serving() as (api, asked):
        assert [event["type"] for _, event in api.events(f"/{name}")] == STREAM
    assert asked == [None, "1-0", "2-0"]


def test_a_stream_that_is_always_cut_is_given_up() -> None:
    with serving() as (api, asked), pytest.raises(ClusterError, match="/dead was cut 5 times"):
        list(api.events("/dead"))
    assert len(asked) == MOST_RETURNS


def test_a_refusal_is_told_in_the_apis_words() -> None:
    with serving() as (api, _), pytest.raises(ClusterError, match=r"GET /nothing: 404 .*there is no such run"):
        api.get("/nothing")


def test_an_api_that_is_not_there_is_told() -> None:
    with serving() as (api, _):
        pass
    with pytest.raises(ClusterError, match=r"GET /cut: .*refused"):
        api.get("/cut")
