"""Asking models over both protocols, against a server that speaks them; the ways in which a provider fails."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from pydantic import SecretStr

from synapse_worker.engine import model_client
from synapse_worker.engine.errors import ModelRefused, ModelUnavailable
from synapse_worker.engine.models import Answer, Models, Request, Said, ToolResult, ToolSpec, json_arguments
from synapse_worker.engine.providers import Endpoint, WireProtocol
from tests.support.model_server import ModelServer, call, model_server, script
from tests.support.servers import free_port

KEY = "sk-of-the-tenant"
WEATHER = ToolSpec(
    "weather", "Weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    async with Models() as opened:
        yield opened


def endpoint(url: str, protocol: WireProtocol = WireProtocol.OPENAI, model: str = "gpt-4o") -> Endpoint:
    path = "/v1" if protocol is WireProtocol.OPENAI else ""
    return Endpoint(protocol.value, protocol, model, url + path, SecretStr(KEY))


BOTH = pytest.mark.parametrize(
    ("protocol", "model"), [(WireProtocol.OPENAI, "gpt-4o"), (WireProtocol.ANTHROPIC, "claude-haiku-5-5")]
)


@BOTH
async def test_a_conversation_with_a_tool(
    server: ModelServer, models: Models, protocol: WireProtocol, model: str
) -> None:
    at = endpoint(server.url, protocol, model)
    prompt = Said("hello " + script(call("weather", city="Oslo"), {"say": "it is $last"}))
    first = await models.ask(Request(at, "be brief", [prompt], [WEATHER]))
    assert [(wanted.tool, json_arguments(wanted)) for wanted in first.calls] == [("weather", {"city": "Oslo"})]
    assert first.tokens > 0
    assert isinstance(first.cost_usd, Decimal)
    assert first.cost_usd > 0
    # What is stored is enough to go on, in another process too.
    kept = Answer.from_json(first.to_json())
    result = ToolResult(kept.calls[0], "3 degrees", failed=False)
    last = await models.ask(Request(at, "be brief", [prompt, kept, result], [WEATHER]))
    assert (last.text, last.calls) == ("it is 3 degrees", ())
    assert [asked.tools for asked in server.asked] == [["weather"], ["weather"]]
    assert {asked.system for asked in server.asked} == {"be brief"}
    assert server.turns == [0, 1]
    assert KEY in str(server.asked[0].headers)


async def test_a_model_that_has_to_call(server: ModelServer, models: Models) -> None:
    said = Said(script(call("weather", city="Oslo")))
    await models.ask(Request(endpoint(server.url), "", [said], [WEATHER], must_call=True))
    assert server.asked[0].body["tool_choice"] == "required"


async def test_broken_arguments_are_no_error_of_the_client(server: ModelServer, models: Models) -> None:
    said = Said(script({"call": "weather", "args": '{"city": '}))
    answer = await models.ask(Request(endpoint(server.url), "", [said], [WEATHER]))
    assert json_arguments(answer.calls[0]) is None


@BOTH
@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            {"status": 401, "say": f"wrong key {KEY}"},
            "{name} does not accept the key in the setting {name}_key (HTTP 401).",
        ),
        ({"status": 404, "say": "model not found"}, "HTTP 404"),
        (
            {"status": 400, "say": f"too long, {KEY}"},
            "{name} refused the request for model {model!r} (HTTP 400: too long, ***).",
        ),
    ],
)
async def test_what_a_provider_refuses_is_not_asked_again(
    server: ModelServer, models: Models, protocol: WireProtocol, model: str, entry: dict[str, object], sentence: str
) -> None:
    request = Request(endpoint(server.url, protocol, model), "", [Said(script(entry))])
    with pytest.raises(ModelRefused) as refused:
        await models.ask(request)
    assert sentence.format(name=protocol.value, model=model) in str(refused.value)
    assert KEY not in str(refused.value)
    assert len(server.asked) == 1


@BOTH
@pytest.mark.parametrize("status", [429, 500, 529])
async def test_a_busy_provider_is_asked_again(
    server: ModelServer, models: Models, protocol: WireProtocol, model: str, status: int
) -> None:
    entry: dict[str, object] = {"status": status, "times": 1, "headers": {"retry-after": "1"}}
    began = time.monotonic()
    request = Request(endpoint(server.url, protocol, model), "", [Said(script(entry, {"say": "at last"}))])
    assert (await models.ask(request)).text == "at last"
    assert time.monotonic() - began >= 1.0, "Retry-After was not honoured"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"status": 429}, "openai has had too many requests (HTTP 429)."),
        ({"status": 503, "say": f"no {KEY}"}, "openai failed over the request for model 'gpt-4o' (HTTP 503: no ***)."),
        ({"wait": 2, "say": "late"}, "openai has not answered for model 'gpt-4o' in time."),
        ({"raw": "<html>"}, "openai gave no answer for model 'gpt-4o' (Failed to decode"),
        ({"raw": "{}"}, "openai gave an answer that cannot be read"),
    ],
)
async def test_a_provider_that_stays_away_is_given_up(
    server: ModelServer, entry: dict[str, object], sentence: str
) -> None:
    async with Models(seconds=0.5, attempts=2) as models:
        with pytest.raises(ModelUnavailable) as gone:
            await models.ask(Request(endpoint(server.url), "", [Said(script(entry))]))
    assert sentence in str(gone.value)
    assert KEY not in str(gone.value)
    assert len(server.asked) == 2


async def test_nobody_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with Models(attempts=2) as models:
        with pytest.raises(ModelUnavailable, match=f"openai cannot be reached at {url}/v1"):
            await models.ask(Request(endpoint(url), "", [Said("hi")]))


async def test_an_unknown_price_is_no_price(server: ModelServer, models: Models) -> None:
    answer = await models.ask(Request(endpoint(server.url, model="my-own"), "", [Said("hi")]))
    assert (answer.cost_usd, answer.text) == (None, "hi")


async def test_a_request_that_waited_finds_a_client_though_others_took_its_place(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_client, "_MOST_MODELS", 1)
    client = model_client.ModelClient()
    first, second = endpoint(server.url), endpoint(server.url, model="gpt-4o-mini")
    client.prepare(first)
    client.prepare(second)
    try:
        assert (await client.ask(Request(first, "", [Said("hello")]), 10.0)).text
    finally:
        await client.close()


def test_a_worker_without_model_steps_imports_no_provider() -> None:
    code = (
        "import sys, synapse_worker.lifecycle, synapse_worker.cli;"
        "print([name for name in ('pydantic_ai', 'openai', 'anthropic', 'mcp', 'genai_prices') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
