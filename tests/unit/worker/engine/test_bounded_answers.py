"""Answers without end, and much packed into little, from a loopback server and from those of models and tools."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Iterator
from contextlib import AsyncExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from pydantic import SecretStr

from synapse_worker.engine import model_client
from synapse_worker.engine.bounded_answers import AnswerTooLong, bounded
from synapse_worker.engine.errors import ModelRefused, ToolsUnavailable
from synapse_worker.engine.models import Models, Request, Said
from synapse_worker.engine.providers import Endpoint, WireProtocol
from synapse_worker.engine.tools import mcp_tools
from synapse_worker.engine.tools.toolbox import ToolFailed
from tests.support.mcp_server import mcp_server
from tests.support.model_server import model_server, script

MOST = 100_000
_PACK = {"/gzip": ("gzip", gzip.compress), "/deflate": ("deflate", zlib.compress), "/twice": ("gzip, gzip", bytes)}


class Handler(BaseHTTPRequestHandler):
    """Answers with as many bytes as the query says, packed as the path says."""

    def do_GET(self) -> None:
        path, _, size = self.path.partition("?")
        body = b"x" * int(size)
        self.send_response(200)
        if path in _PACK:
            name, pack = _PACK[path]
            self.send_header("content-encoding", name)
            body = pack(body)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/plain", "/gzip", "/deflate"])
async def test_what_is_not_too_long_is_read_whole(url: str, path: str) -> None:
    async with httpx2.AsyncClient(event_hooks=bounded(MOST)) as client:
        assert (await client.get(f"{url}{path}?{MOST}")).content == b"x" * MOST


@pytest.mark.parametrize("path", ["/plain", "/gzip", "/deflate"])
async def test_what_is_too_long_is_not_read_on(url: str, path: str) -> None:
    async with httpx2.AsyncClient(event_hooks=bounded(MOST)) as client:
        with pytest.raises(AnswerTooLong, match=f"longer than {MOST} bytes"):
            await client.get(f"{url}{path}?{MOST + 1}")


async def test_what_is_packed_otherwise_is_refused(url: str) -> None:
    async with httpx2.AsyncClient(event_hooks=bounded(MOST)) as client:
        with pytest.raises(httpx2.DecodingError, match="not asked for: 'gzip, gzip'"):
            await client.get(f"{url}/twice?10")


@pytest.mark.parametrize("protocol", [WireProtocol.OPENAI, WireProtocol.ANTHROPIC])
async def test_a_models_answer_that_is_too_long_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, protocol: WireProtocol
) -> None:
    monkeypatch.setattr(model_client, "MAX_BYTES", 5_000)
    with model_server() as server:
        at = server.url + ("/v1" if protocol is WireProtocol.OPENAI else "")
        endpoint = Endpoint(protocol.value, protocol, "m", at, SecretStr("key"))
        async with Models() as models:
            with pytest.raises(ModelRefused, match=f"{protocol.value} answers for model 'm' with more than 5000 bytes"):
                await models.ask(Request(endpoint, "", [Said(script({"say": "x" * 6_000}))]))
        assert len(server.asked) == 1


@pytest.mark.parametrize("sse", [False, True])
async def test_a_tools_answer_that_is_too_long_breaks_its_call(monkeypatch: pytest.MonkeyPatch, *, sse: bool) -> None:
    monkeypatch.setattr(mcp_tools, "MAX_BYTES", 20_000)
    monkeypatch.setattr(mcp_tools, "CALL_SECONDS", 5.0)
    with mcp_server(sse=sse) as server:
        async with AsyncExitStack() as stack:
            tools = await mcp_tools.mcp_tools("demo", {"url": server.url}, None, stack)
            (weather,) = [tool for tool in tools if tool.bare_name == "weather"]
            assert await weather.call({"city": "Oslo"}, "k") == "3 degrees in Oslo"
            with pytest.raises(ToolFailed) as failed:
                await weather.call({"city": "x" * 30_000}, "k")
    assert str(failed.value).startswith("The call failed: ")


async def test_a_server_whose_list_is_too_long_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_tools, "MAX_BYTES", 500)
    monkeypatch.setattr(mcp_tools, "CONNECT_SECONDS", 5.0)
    with mcp_server() as server:
        async with AsyncExitStack() as stack:
            with pytest.raises(ToolsUnavailable):
                await mcp_tools.mcp_tools("demo", {"url": server.url}, None, stack)
