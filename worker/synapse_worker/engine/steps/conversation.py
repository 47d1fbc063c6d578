"""A step's conversation with a model: what is said, asked and called, each turn done once and told in events.

Turns are numbered in the order in which they happen, which depends on nothing but the answers before; so a conversation
that another worker began is gone through again without asking or calling anything twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import cast

from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.model import Step
from synapse_worker.engine.models import Answer, Message, Request, Said, ToolCall, ToolResult, ToolSpec, json_arguments
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.providers import Endpoint
from synapse_worker.engine.steps.context import StepContext, event
from synapse_worker.engine.tools import Toolbox
from synapse_worker.engine.turns import Done

_PREVIEW = 500


class Conversation:
    """One conversation of one visit of a step."""

    def __init__(self, step: Step, context: StepContext, endpoint: Endpoint, system: str = "") -> None:
        self._step = step
        self._means = context.for_models
        self._key = context.idempotency_key
        self._endpoint = endpoint
        self._system = system
        self._messages: list[Message] = list(self._means.before)
        self._turn = 0

    def say(self, text: str, images: Sequence[str] = ()) -> None:
        """Say something; it reaches the model with the next `ask`."""
        self._messages.append(Said(text, tuple(images)))

    async def ask(
        self, toolbox: Toolbox | None = None, *, specs: tuple[ToolSpec, ...] = (), must_call: bool = False
    ) -> Answer:
        """Return the model's answer to all so far.

        Args:
            toolbox: tools that the caller will call when asked to, which is told in events.
            specs: or tools that stand for a choice.
            must_call: the answer has to be a call.
        """
        tools = specs or tuple(toolbox.specs if toolbox is not None else ())
        request = Request(self._endpoint, self._system, tuple(self._messages), tools, must_call)

        async def do() -> Done:
            answer = await self._means.models.ask(request)
            return Done(answer.to_json(), answer.tokens, answer.cost_usd or Decimal(0))

        def say(value: JsonObject) -> list[JsonObject]:
            return self._answer_events(Answer.from_json(value), toolbox)

        answer = Answer.from_json(await self._once(do, say))
        self._messages.append(answer)
        return answer

    async def call(self, toolbox: Toolbox, call: ToolCall) -> ToolResult:
        """Call a tool as the last answer wants, and have the model told of the result with the next `ask`."""
        key = f"{self._key}:{self._turn + 1}"

        async def do() -> Done:
            result = await toolbox.call(call, key)
            return Done({"content": result.content, "failed": result.failed})

        def say(value: JsonObject) -> list[JsonObject]:
            preview = str(value["content"])[:_PREVIEW]
            fields: JsonObject = {"tool_name": toolbox.title(call), "preview": preview, "failed": value["failed"]}
            return [event("tool_result", self._step, **fields)]

        value = await self._once(do, say)
        result = ToolResult(call, cast(str, value["content"]), failed=bool(value["failed"]))
        self._messages.append(result)
        return result

    def refuse(self, call: ToolCall, why: str) -> None:
        """Answer a call that is no tool of ours."""
        self._messages.append(ToolResult(call, why, failed=True))

    def outcome(self, outcome: StepOutcome) -> StepOutcome:
        """Return a step's outcome with what its turns cost."""
        turns = self._means.turns
        return replace(outcome, tokens=turns.tokens, cost_usd=turns.cost_usd)

    async def _once(
        self, do: Callable[[], Awaitable[Done]], say: Callable[[JsonObject], Sequence[JsonObject]]
    ) -> JsonObject:
        self._turn += 1
        return await self._means.turns.once(self._turn, do, say)

    def _answer_events(self, answer: Answer, toolbox: Toolbox | None) -> list[JsonObject]:
        events: list[JsonObject] = []
        # What is said beside calls is on the way to the answer; the answer itself is told when the step has ended.
        thought = "\n".join(filter(None, (answer.thinking, answer.text if answer.calls else "")))
        if thought:
            events.append(event("thinking", self._step, content=thought))
        if toolbox is not None:
            events += [
                event("tool_execution", self._step, tool_name=toolbox.title(call), args=json_arguments(call))
                for call in answer.calls
            ]
        return events
