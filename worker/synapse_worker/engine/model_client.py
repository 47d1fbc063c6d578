"""The client of all providers, over pydantic-ai; imported by `models` with the first request, and by nobody else.

The packages of a protocol come with its first endpoint. Connections are kept per endpoint and key. Every way to fail
becomes one of two errors with one sentence, in which no key is left.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from decimal import Decimal
from typing import NamedTuple, Protocol, cast

from pydantic_ai import exceptions
from pydantic_ai.direct import model_request
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from synapse_worker.engine.bounded_answers import AnswerTooLong, bounded
from synapse_worker.engine.errors import ModelRefused
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.models import Answer, Busy, Message, Replied, Request, Said, ToolCall, ToolResult
from synapse_worker.engine.providers import Endpoint, WireProtocol

MAX_BYTES = 16 * 1024 * 1024
"""Of one answer of a provider; what is longer is not read on."""

_MOST_MODELS = 64
_KEYLESS = "none"
_SHOWN = 300


class _Closes(Protocol):
    async def close(self) -> None: ...


class _Connected(NamedTuple):
    """A model at an endpoint, and the client whose connections it uses."""

    model: Model
    client: _Closes


class ModelClient:
    """See `models.Client`."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[Endpoint, str], _Connected] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, endpoint: Endpoint) -> None:
        """Import what the endpoint's protocol needs and have a client for it; blocks."""
        key = endpoint.key.get_secret_value() if endpoint.key is not None else ""
        self._connected(endpoint, key)

    def _connected(self, endpoint: Endpoint, key: str) -> _Connected:
        """Return the client of an endpoint: also a request that waited long must find one, which may be a new one."""
        found = self._models.get((endpoint, key)) or _connected(endpoint, key)
        with self._lock:  # threads prepare while the loop asks
            found = self._models.setdefault((endpoint, key), found)
            self._models.move_to_end((endpoint, key))
            if len(self._models) > _MOST_MODELS:
                self._models.popitem(last=False)
            return found

    async def close(self) -> None:
        """Close all connections; see `models.Client`."""
        for connected in self._models.values():
            await connected.client.close()
        self._models.clear()

    async def ask(self, request: Request, seconds: float) -> Answer:
        """Return the answer; see `models.Client`."""
        endpoint = request.endpoint
        key = endpoint.key.get_secret_value() if endpoint.key is not None else ""
        tools = [
            ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.schema)
            for tool in request.tools
        ]
        try:
            response = await model_request(
                self._connected(endpoint, key).model,
                _messages(request),
                model_settings=ModelSettings(timeout=seconds),
                model_request_parameters=ModelRequestParameters(
                    function_tools=tools, allow_text_output=not request.must_call
                ),
            )
        except exceptions.ModelAPIError as error:
            raise _translated(error, endpoint, key) from None
        except (exceptions.AgentRunError, ValueError) as error:
            # An answer of 200 that is none, such as a proxy's page.
            said = _shown(str(error), key)
            raise Busy(f"{endpoint.provider} gave an answer that cannot be read ({said}).") from None
        return _answer(response)


def _connected(endpoint: Endpoint, key: str) -> _Connected:
    if endpoint.protocol is WireProtocol.ANTHROPIC:
        from anthropic import AsyncAnthropic
        from anthropic import DefaultAsyncHttpxClient as AnthropicHttp
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.providers.anthropic import AnthropicProvider

        anthropic = AsyncAnthropic(
            api_key=key,
            base_url=endpoint.base_url,
            max_retries=0,
            http_client=AnthropicHttp(event_hooks=bounded(MAX_BYTES)),
        )
        return _Connected(
            AnthropicModel(endpoint.model, provider=AnthropicProvider(anthropic_client=anthropic)), anthropic
        )
    from openai import AsyncOpenAI
    from openai import DefaultAsyncHttpxClient as OpenAIHttp
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider
    from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

    openai = AsyncOpenAI(
        api_key=key or _KEYLESS,
        base_url=endpoint.base_url,
        max_retries=0,
        http_client=OpenAIHttp(event_hooks=bounded(MAX_BYTES)),
    )
    provider = (
        OpenAIProvider(openai_client=openai)
        if endpoint.provider == "openai"
        else OpenAICompatibleProvider(endpoint.provider, openai_client=openai)
    )
    return _Connected(OpenAIChatModel(endpoint.model, provider=provider), openai)


def _messages(request: Request) -> list[ModelMessage]:
    """What is said to the model goes together in one message up to its next answer, as providers want it."""
    messages: list[ModelMessage] = []
    said: list[ModelRequestPart] = []
    instructions = request.system or None
    for message in request.messages:
        if isinstance(message, Answer | Replied):
            messages.append(ModelRequest(said, instructions=instructions))
            if isinstance(message, Replied):
                messages.append(ModelResponse([TextPart(message.text)]))
            else:
                messages += ModelMessagesTypeAdapter.validate_python([message.message])
            said = []
        else:
            said.append(_part(message))
    return [*messages, ModelRequest(said, instructions=instructions)]


def _part(message: Message) -> ModelRequestPart:
    if isinstance(message, ToolResult):
        call = message.call
        return ToolReturnPart(call.tool, message.content, call.id, outcome="failed" if message.failed else "success")
    said = cast(Said, message)
    return UserPromptPart([said.text, *map(BinaryContent.from_data_uri, said.images)] if said.images else said.text)


def _answer(response: ModelResponse) -> Answer:
    try:
        cost: Decimal | None = response.cost().total_price
    except (LookupError, ValueError, AssertionError):
        cost = None
    (message,) = ModelMessagesTypeAdapter.dump_python([response], mode="json")
    parts = response.parts
    return Answer(
        text="\n".join(part.content for part in parts if isinstance(part, TextPart) and part.content),
        thinking="\n".join(part.content for part in parts if isinstance(part, ThinkingPart) and part.content),
        calls=tuple(
            ToolCall(
                part.tool_call_id,
                part.tool_name,
                part.args if isinstance(part.args, str) else json.dumps(part.args or {}),
            )
            for part in parts
            if isinstance(part, ToolCallPart)
        ),
        tokens=response.usage.total_tokens,
        cost_usd=cost,
        message=cast(JsonObject, message),
    )


def _translated(error: exceptions.ModelAPIError, endpoint: Endpoint, key: str) -> ModelRefused | Busy:
    provider, model = endpoint.provider, endpoint.model
    if _is_too_long(error):
        return ModelRefused(f"{provider} answers for model {model!r} with more than {MAX_BYTES} bytes.")
    status = f"HTTP {error.status_code}" if isinstance(error, exceptions.ModelHTTPError) else ""
    match error:
        case exceptions.ModelAuthenticationError():
            return ModelRefused(
                f"{provider} does not accept the key in the setting {endpoint.key_setting} ({status or 'no access'})."
            )
        case exceptions.ModelNotFoundError():
            return ModelRefused(f"{provider} has no model {model!r} ({status or 'not found'}).")
        case exceptions.ModelQuotaExceededError():
            return ModelRefused(f"{provider} answers no more requests: the quota of its account is used up ({status}).")
        case exceptions.ModelRateLimitError():
            return Busy(f"{provider} has had too many requests ({status}).", error.retry_after)
        case exceptions.ModelTimeoutError() | exceptions.ModelRequestTimeout():
            return Busy(f"{provider} has not answered for model {model!r} in time.", error.retry_after)
        case exceptions.ModelConnectionError():
            return Busy(f"{provider} cannot be reached at {endpoint.base_url or 'its own address'}.", error.retry_after)
    code = error.status_code if isinstance(error, exceptions.ModelHTTPError) else 0
    said = _shown(_words(error), key)
    if (
        code in (408, 409, 425, 429)
        or code >= 500
        or isinstance(error, exceptions.ModelUnavailableError | exceptions.ModelServerError)
    ):
        return Busy(f"{provider} failed over the request for model {model!r} ({status}: {said}).", error.retry_after)
    if code:
        return ModelRefused(f"{provider} refused the request for model {model!r} ({status}: {said}).")
    return Busy(f"{provider} gave no answer for model {model!r} ({said}).", error.retry_after)


def _is_too_long(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, AnswerTooLong):
        error = error.__cause__
    return error is not None


def _words(error: exceptions.ModelAPIError) -> str:
    """What the provider says, without the wrapping of client and protocol."""
    body: object = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        words = inner.get("message") if isinstance(inner, dict) else inner
        if isinstance(words, str):
            return words
    return error.message if body is None else str(body)


def _shown(words: str, key: str) -> str:
    plain = " ".join(words.split())
    return (plain.replace(key, "***") if key else plain)[:_SHOWN]
