"""Asking models: what a request and an answer are, retries, and one client for all jobs of a process.

The providers' packages are large, so they are imported with the first request (`model_client`), in a thread: a worker
that runs no model step never has them, and the first request does not hold up the loop. Which endpoint a name stands
for is `providers`'s; what is said in a step, the step's.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Protocol, Self, TypeAlias, cast

import tenacity

from synapse_worker import tracing
from synapse_worker.engine.errors import ModelUnavailable
from synapse_worker.engine.json_values import JsonObject, NotJson, loads
from synapse_worker.engine.providers import Endpoint, WireProtocol

log = logging.getLogger(__name__)

REQUEST_SECONDS = 180.0
"""How long a provider may take for one answer; the step's own timeout_seconds holds beside it."""

_ATTEMPTS = 5
_MOST_WAIT_SECONDS = 60.0
_BACKOFF = tenacity.wait_random_exponential(multiplier=0.5, max=20.0)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a model is told of it: `name` is one that every provider takes, `schema` JSON schema of an object."""

    name: str
    description: str
    schema: JsonObject


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model wants a tool called; `arguments` is JSON text as the model wrote it, which may be broken."""

    id: str
    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """What the step says to the model; `images` are base64 data URLs."""

    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Replied:
    """What a model answered in a conversation before this one, of which only the text is kept."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: what it says, "" for nothing.
        thinking: what it lets be seen of its reasoning.
        calls: tools to call before it goes on.
        tokens: read and written, together.
        cost_usd: None = the price of that model is not known.
        message: the answer in the client's own form, which it needs to go on with the conversation.
    """

    text: str
    thinking: str
    calls: tuple[ToolCall, ...]
    tokens: int
    cost_usd: Decimal | None
    message: JsonObject

    def to_json(self) -> JsonObject:
        """The stored form, without what it cost."""
        calls = [{"id": call.id, "tool": call.tool, "arguments": call.arguments} for call in self.calls]
        return cast(JsonObject, {"text": self.text, "thinking": self.thinking, "calls": calls, "message": self.message})

    @classmethod
    def from_json(cls, stored: JsonObject) -> Answer:
        """Read the stored form; it costs nothing again."""
        calls = cast(list[dict[str, str]], stored["calls"])
        return cls(
            text=cast(str, stored["text"]),
            thinking=cast(str, stored["thinking"]),
            calls=tuple(ToolCall(call["id"], call["tool"], call["arguments"]) for call in calls),
            tokens=0,
            cost_usd=Decimal(0),
            message=cast(JsonObject, stored["message"]),
        )


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a called tool gave back; `failed` tells the model that it did not do what was asked."""

    call: ToolCall
    content: str
    failed: bool


Message: TypeAlias = Said | Replied | Answer | ToolResult


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a model: `must_call` = it has to call one of `tools`."""

    endpoint: Endpoint
    system: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    must_call: bool = False


class Client(Protocol):
    """Asks a provider once; `model_client` is the one that there is."""

    def prepare(self, endpoint: Endpoint) -> None:
        """Import what the endpoint's protocol needs; blocks."""

    async def ask(self, request: Request, seconds: float) -> Answer:
        """Return the answer.

        Raises:
            ModelRefused: the provider says no, for good.
            Busy: it may answer when asked again.
        """

    async def close(self) -> None:
        """Close all connections."""


class Busy(ModelUnavailable):
    """One request was not answered; `retry_after` is the provider's wish in seconds, None when it has none."""

    def __init__(self, sentence: str, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class Models:
    """All model requests of a process; an async context manager.

    Args:
        seconds: for one answer.
        attempts: requests until a provider that does not answer is given up.
    """

    def __init__(self, *, seconds: float = REQUEST_SECONDS, attempts: int = _ATTEMPTS) -> None:
        self._seconds = seconds
        self._attempts = attempts
        self._client: Client | None = None
        self._loaded: set[WireProtocol] = set()
        self._unpriced: set[tuple[str, str]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def load(self, endpoint: Endpoint) -> None:
        """Import what an endpoint's protocol needs; takes seconds, once in a process."""
        if endpoint.protocol not in self._loaded:
            await self._prepared(endpoint)
            self._loaded.add(endpoint.protocol)

    async def ask(self, request: Request) -> Answer:
        """Return the model's answer; a provider that is busy or away is asked again, at the time that it names.

        Raises:
            ModelRefused: the provider says no, for good.
            ModelUnavailable: it has not answered at the last attempt either.
        """
        endpoint = request.endpoint
        named = {"gen_ai.provider.name": endpoint.provider, "gen_ai.request.model": endpoint.model}
        with tracing.call(f"model {endpoint.model}", **named):
            answer = await self._ask(request)
            tracing.note(tokens=answer.tokens)
        self._note_price(endpoint, answer)
        return answer

    async def _ask(self, request: Request) -> Answer:
        client = await self._prepared(request.endpoint)
        answer: Answer | None = None
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Busy),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=_wait,
            reraise=True,
        ):
            with attempt:
                answer = await client.ask(request, self._seconds)
        assert answer is not None  # noqa: S101 - the retry ends with an answer or an exception
        return answer

    async def _prepared(self, endpoint: Endpoint) -> Client:
        if self._client is None:
            module = await asyncio.to_thread(importlib.import_module, "synapse_worker.engine.model_client")
            # Two first requests at once: the second finds the client of the first.
            self._client = self._client or cast(Callable[[], Client], module.ModelClient)()
        await asyncio.to_thread(self._client.prepare, endpoint)
        return self._client

    def _note_price(self, endpoint: Endpoint, answer: Answer) -> None:
        model = (endpoint.provider, endpoint.model)
        if answer.cost_usd is None and model not in self._unpriced:
            self._unpriced.add(model)
            log.warning("the price of model %s at %s is not known: it counts as 0", endpoint.model, endpoint.provider)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    wish = error.retry_after if isinstance(error, Busy) else None
    return min(_MOST_WAIT_SECONDS, wish) if wish is not None else _BACKOFF(state)


def json_arguments(call: ToolCall) -> JsonObject | None:
    """Return the arguments of a call; None when the model wrote no JSON object, or one that cannot be stored."""
    try:
        value = loads(call.arguments or "{}")
    except NotJson:
        return None
    return value if isinstance(value, dict) else None
