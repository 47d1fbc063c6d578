"""Tools as models call them: over HTTP against a loopback server, in the sandbox, and what a toolbox says."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr

from synapse_worker.egress_policy import Address, Allowed
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.models import ToolCall
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.snapshot import Snapshot
from synapse_worker.engine.tools import ToolSecrets, Vault, http_tool, open_tools
from synapse_worker.engine.tools.http_tool import filled
from synapse_worker.engine.tools.toolbox import MAX_RESULT_CHARACTERS, Tool, Toolbox, ToolFailed
from synapse_worker.store.local_blobs import LocalBlobs
from tests.support.endpoint import Endpoint
from tests.support.mcp_server import mcp_server

VAULT = Vault(LocalBlobs(Path("/nonexistent")), "acme")


@pytest.fixture
def site() -> Iterator[Endpoint]:
    opened = Endpoint()
    yield opened
    opened.close()


async def call_tool(
    sandbox: Sandbox, document: dict[str, object], secrets: dict[str, str] | None = None, **arguments: object
) -> tuple[str, bool]:
    """Call a custom tool as an agent would; returns what the model is told, and whether it failed."""
    snapshot = Snapshot(tools={"t": {"name": "t", **document}})
    headers = {"t": {name: SecretStr(value) for name, value in (secrets or {}).items()}}
    async with open_tools(["t"], (), snapshot, ToolSecrets(headers=headers), sandbox, VAULT) as toolbox:
        result = await toolbox.call(ToolCall("1", "t", json.dumps(arguments)), "run_1:s:1:2")
    return result.content, result.failed


async def test_arguments_fill_the_url_and_the_rest_is_the_query(sandbox: Sandbox, site: Endpoint) -> None:
    document: dict[str, object] = {"url": site.url + "/users/{id}/{data.kind}", "tool_type": "http"}
    answer = await call_tool(
        sandbox, document, {"X-Key": "k"}, id="a/b", data={"kind": "x y", "other": 1}, page=2, all=True
    )
    assert answer == ('{"ok": true}', False)
    ((method, path, headers, body),) = site.requests
    assert (method, path, body) == ("GET", "/users/a%2Fb/x%20y?page=2&all=true", "")
    assert (headers["x-key"], headers["idempotency-key"]) == ("k", "run_1:s:1:2")


async def test_a_post_has_the_rest_as_its_body(sandbox: Sandbox, site: Endpoint) -> None:
    await call_tool(sandbox, {"url": site.url + "/{id}", "method": "post"}, id=7, note="hi", tags=["a"])
    ((method, path, headers, body),) = site.requests
    assert (method, path, json.loads(body)) == ("POST", "/7", {"note": "hi", "tags": ["a"]})
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/teapot", 'The tool answers with HTTP 418: {"ok": true}'),
        ("/big", "The tool answers with more than 1 MiB."),
        ("/{missing}", "The arguments lack missing."),
    ],
)
async def test_what_an_endpoint_gets_wrong_is_told_to_the_model(
    sandbox: Sandbox, site: Endpoint, path: str, words: str
) -> None:
    assert await call_tool(sandbox, {"url": site.url + path}) == (words, True)


async def test_a_redirect_is_followed_within_what_the_author_named(sandbox: Sandbox, site: Endpoint) -> None:
    other = Endpoint()
    try:
        document: dict[str, object] = {"url": f"{site.url}/redirect?to={other.url}/there"}
        assert await call_tool(sandbox, document, {"X-Key": "k"}) == ('{"ok": true}', False)
        # The author's headers, which may be secrets, are not sent to another host.
        assert "x-key" in site.requests[0][2]
        assert "x-key" not in other.requests[0][2]
    finally:
        other.close()


async def test_a_redirect_leads_to_no_other_private_host(sandbox: Sandbox, site: Endpoint) -> None:
    """Nor back to the author's: who was redirected to says where to go by then."""
    other = Endpoint()
    try:
        elsewhere = other.url.replace("127.0.0.1", "127.0.0.2")
        answer = await call_tool(sandbox, {"url": f"{site.url}/redirect?to={elsewhere}/there"})
        assert answer == ("The tool redirects to the private address '127.0.0.2', which is not followed.", True)
        assert other.requests == []
    finally:
        other.close()


async def test_a_redirect_of_another_host_leads_to_no_private_one(
    sandbox: Sandbox, site: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(host: str) -> list[Address]:
        return [ip_address("127.0.0.1")]

    monkeypatch.setattr(http_tool, "_addresses", addresses)
    monkeypatch.setattr(http_tool, "_PUBLIC", Allowed(hosts=frozenset({"tools.invalid"})))
    port = site.url.rpartition(":")[2]
    back = f"http://127.0.0.1:{port}/there"
    document: dict[str, object] = {"url": f"{site.url}/redirect?to=http://tools.invalid:{port}/redirect?to={back}"}
    answer = await call_tool(sandbox, document)
    assert answer == ("The tool redirects to the private address '127.0.0.1', which is not followed.", True)
    assert [path for _, path, _, _ in site.requests][1:] == [f"/redirect?to={back}"]


async def test_a_host_that_a_model_names_is_no_private_one(sandbox: Sandbox, site: Endpoint) -> None:
    port = site.url.rpartition(":")[2]
    said, failed = await call_tool(sandbox, {"url": "http://{host}:" + port + "/"}, host="127.0.0.1")
    assert (said, failed) == (
        "The address '127.0.0.1' is private; a tool reaches it only when its url names it.",
        True,
    )
    assert site.requests == []


async def test_a_host_that_a_model_names_is_connected_to_at_the_address_that_was_judged(
    sandbox: Sandbox, site: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def addresses(host: str) -> list[Address]:
        return [ip_address("127.0.0.1")] if host == "tools.invalid" else []

    # Nobody else can resolve that name: a connection that looked it up once more would fail.
    monkeypatch.setattr(http_tool, "_addresses", addresses)
    monkeypatch.setattr(http_tool, "_PUBLIC", Allowed.parse("127.0.0.1"))
    port = site.url.rpartition(":")[2]
    answer = await call_tool(sandbox, {"url": "http://{host}:" + port + "/redirect?to=/there"}, host="tools.invalid")
    assert answer == ('{"ok": true}', False)
    assert [(path, headers["host"]) for _, path, headers, _ in site.requests] == [
        ("/redirect?to=/there", f"tools.invalid:{port}"),
        ("/there", f"tools.invalid:{port}"),
    ]


@pytest.mark.parametrize(
    ("document", "arguments"),
    [
        ({"url": "http://{host}/"}, {"host": "a..b"}),
        ({"url": "http://{host}/"}, {"host": "a" * 70 + ".com"}),
        ({"url": "http://127.0.0.1:1/"}, {"q": "x" * 70_000}),
        ({"url": "http://127.0.0.1:1/{q}"}, {"q": "\ud800"}),
        ({"url": "http://127.0.0.1:1/", "method": "POST"}, {"q": float("nan")}),
        ({"url": "http://127.0.0.1:1/", "method": "POST"}, {"q": "\ud800"}),
    ],
)
async def test_arguments_that_make_no_request_are_told_to_the_model(
    sandbox: Sandbox, document: dict[str, object], arguments: dict[str, object]
) -> None:
    assert (await call_tool(sandbox, document, **arguments))[1]
    with pytest.raises(ToolFailed):  # also where a toolbox would let them pass
        await http_tool.http_tool("t", document, {}).call(cast(JsonObject, arguments), "k")


@pytest.mark.parametrize("charset", ["rot13", "base64", "idna", "punycode", "undefined", "utf-7", "nonsense"])
async def test_an_answer_in_no_charset_of_texts_is_read_as_utf_8(
    sandbox: Sandbox, site: Endpoint, charset: str
) -> None:
    assert await call_tool(sandbox, {"url": f"{site.url}/charset?to={charset}"}) == ('{"ok": true}', False)


async def test_an_idempotency_key_is_sent_whatever_ids_it_is_made_of(site: Endpoint) -> None:
    tool = http_tool.http_tool("t", {"url": site.url + "/"}, {"X-Name": "\u00e9"})
    await tool.call({}, "run_1:\u00e9tape 1\n:1:2")
    assert site.requests[0][2]["idempotency-key"] == "run_1:%C3%A9tape%201%0A:1:2"


@pytest.mark.parametrize("arguments", ["[" * 100_000, '{"a": ' * 100_000, '{"a": NaN}', '{"a": "\\u0000"}', "9" * 5000])
async def test_arguments_that_cannot_be_stored_are_told_to_the_model(arguments: str) -> None:
    result = await Toolbox([a_tool("t")]).call(ToolCall("1", "t", arguments), "k")
    assert (result.content, result.failed) == ("The arguments are no JSON object.", True)


def test_a_value_stays_in_its_part_of_the_url() -> None:
    url, rest = filled("https://x.example/{a}", {"a": "../b?c#d", "e": None})
    assert (url, rest) == ("https://x.example/..%2Fb%3Fc%23d", {"e": None})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"url": "file:///etc/passwd"}, "The tool 't' has no http:// or https:// url."),
        ({"url": "https://x.example", "method": "TRACE"}, "The tool 't' has the method 'TRACE'; accepted are DELETE,"),
        ({"url": "http://127.0.0.1:9/"}, "The tool cannot be reached: ConnectError."),
    ],
)
async def test_a_tool_that_cannot_be_called_says_why(sandbox: Sandbox, document: dict[str, object], words: str) -> None:
    said, failed = await call_tool(sandbox, document)
    assert said.startswith(words)
    assert failed


async def test_a_python_tool_prints_its_result(sandbox: Sandbox) -> None:
    code = "import re\nprint(json.dumps([_args['a'], re.sub('x', 'y', 'axa')]))"
    assert await call_tool(sandbox, {"tool_type": "python", "code": code}, a=1) == ('[1, "aya"]', False)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(_args['no'])", "KeyError"),
        ("while True:\n    pass", "The code ran longer than"),
        ("open('/etc/passwd')", "PermissionError"),
    ],
)
async def test_a_python_tool_that_fails_tells_the_model(sandbox: Sandbox, code: str, words: str) -> None:
    said, failed = await call_tool(sandbox, {"tool_type": "python", "code": code})
    assert failed
    assert words in said


def a_tool(name: str, **schema: object) -> Tool:
    async def call(arguments: JsonObject, key: str) -> str:
        if arguments.get("fail"):
            raise ToolFailed("it broke")
        return "x" * int(str(arguments.get("size", 1)))

    return Tool(name, "", {"type": "object", "properties": {}, **schema}, call)  # type: ignore[dict-item]


async def test_names_that_providers_do_not_take_are_replaced() -> None:
    toolbox = Toolbox([a_tool("my server__do it"), a_tool("my.server__do it"), a_tool("ü" * 100)])
    names = [spec.name for spec in toolbox.specs]
    assert names == ["my_server__do_it", "my_server__do_it_2", "_" * 64]
    assert toolbox.title(ToolCall("1", "my_server__do_it_2", "{}")) == "my.server__do it"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", "The arguments are no JSON object."),
        ("[1]", "The arguments are no JSON object."),
        ("{}", "The arguments lack a, b."),
        ('{"a": 1, "b": 2, "fail": true}', "it broke"),
    ],
)
async def test_a_call_that_goes_wrong_is_a_result(arguments: str, words: str) -> None:
    result = await Toolbox([a_tool("t", required=["a", "b"])]).call(ToolCall("1", "t", arguments), "k")
    assert (result.content, result.failed) == (words, True)


async def test_a_long_result_is_cut_and_says_so() -> None:
    long = ToolCall("1", "t", json.dumps({"size": MAX_RESULT_CHARACTERS + 5}))
    result = await Toolbox([a_tool("t")]).call(long, "k")
    assert result.content.endswith(f"\n[cut: {MAX_RESULT_CHARACTERS + 5} characters in all]")
    assert not result.failed


@pytest.mark.parametrize(
    ("names", "allowed", "expected", "missing"),
    [
        (["a", "b"], [], ["a", "b"], ()),
        (["a", "b", "no"], [], ["a", "b"], ("no",)),
        (["a", "b"], ["b", "c"], ["b"], ()),
        (["all"], [], ["a", "b", "c", "vault_list", "vault_read", "vault_write"], ()),
        (["a", "vault_read"], [], ["a", "vault_read"], ()),
        (["all"], ["vault_list"], ["vault_list"], ()),
        (["all"], ["c"], ["c"], ()),
        ([], ["a"], [], ()),
    ],
)
async def test_a_step_narrows_its_agents_tools(
    sandbox: Sandbox, names: list[str], allowed: list[str], expected: list[str], missing: tuple[str, ...]
) -> None:
    snapshot = Snapshot(tools={key: {"name": key, "url": "https://x.example"} for key in "abc"})
    async with open_tools(names, allowed, snapshot, ToolSecrets(), sandbox, VAULT) as toolbox:
        assert [spec.name for spec in toolbox.specs] == expected
        assert toolbox.missing == missing


# The server's end, in this process, is torn off: what it has left open is collected here, and not in another test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("sse", [False, True])
async def test_an_mcp_server_that_goes_away_is_told_to_the_model(sandbox: Sandbox, sse: bool) -> None:
    async with AsyncExitStack() as stack:
        with mcp_server(sse=sse) as server:
            snapshot = Snapshot(mcp_servers={"demo": {"url": server.url}})
            opened = open_tools(["demo__weather"], (), snapshot, ToolSecrets(), sandbox, VAULT)
            toolbox = await stack.enter_async_context(opened)
            assert not (await toolbox.call(ToolCall("1", "demo__weather", '{"city": "Oslo"}'), "k1")).failed
        # A connection that breaks cancels the task that holds it: were that this one, the step would look stopped.
        result = await toolbox.call(ToolCall("2", "demo__weather", '{"city": "Oslo"}'), "k2")
        assert (result.failed, result.content[:17]) == (True, "The call failed: ")
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    gc.collect()
