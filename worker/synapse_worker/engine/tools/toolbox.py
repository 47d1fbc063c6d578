"""The tools of one step as a model sees them: names that every provider takes, and calls that never raise.

Whatever goes wrong with a call (no such tool, broken arguments, an error of the tool) is told to the model as the
call's result, so that it can do better. How a tool is called is in the modules beside this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from synapse_worker import tracing
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.models import ToolCall, ToolResult, ToolSpec, json_arguments
from synapse_worker.errors import SynapseError

MAX_RESULT_CHARACTERS = 200_000
"""What of a tool's result a model is given; a longer one is cut, and says so."""

_MAX_NAME = 64
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


class ToolFailed(SynapseError):
    """A tool did not do what was asked; the sentence is for the model."""


class Calls(Protocol):
    """Does one call of a tool."""

    async def __call__(self, arguments: JsonObject, key: str) -> str:
        """Return what the tool gives back; `key` is the call's idempotency key.

        Raises:
            ToolFailed: it cannot, with what to tell the model.
        """


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as definitions name it.

    Attributes:
        name: what definitions and events call it; of an MCP server's tool `server__tool`.
        schema: JSON schema of its arguments, an object.
        call: does it.
    """

    name: str
    description: str
    schema: JsonObject
    call: Calls

    @property
    def bare_name(self) -> str:
        """The name without the MCP server's."""
        return self.name.rpartition("__")[2]


class Toolbox:
    """The tools of one step.

    Args:
        tools: each name once.
        missing: names that were asked for and that nothing has.
    """

    def __init__(self, tools: Iterable[Tool], missing: Iterable[str] = ()) -> None:
        self.missing = tuple(missing)
        self._tools = _named(tools)

    @property
    def specs(self) -> list[ToolSpec]:
        """What the model is told."""
        return [ToolSpec(name, tool.description, tool.schema) for name, tool in self._tools.items()]

    def title(self, call: ToolCall) -> str:
        """Return the name that definitions use for what a model calls."""
        tool = self._tools.get(call.tool)
        return call.tool if tool is None else tool.name

    async def call(self, call: ToolCall, key: str) -> ToolResult:
        """Call a tool; `key` is the idempotency key of this very call."""
        tool = self._tools.get(call.tool)
        if tool is None:
            there = ", ".join(self._tools) or "none"
            return ToolResult(call, f"There is no tool {call.tool!r}; there are: {there}.", failed=True)
        arguments = json_arguments(call)
        if arguments is None:
            return ToolResult(call, "The arguments are no JSON object.", failed=True)
        lacking = [name for name in _required(tool.schema) if name not in arguments]
        if lacking:
            return ToolResult(call, f"The arguments lack {', '.join(lacking)}.", failed=True)
        try:
            with tracing.span(f"tool {call.tool}", tool=call.tool):
                content = await tool.call(arguments, key)
        except ToolFailed as error:
            return ToolResult(call, _bounded(str(error)), failed=True)
        return ToolResult(call, _bounded(content), failed=False)


def object_schema(value: object) -> JsonObject:
    """Return a tool's schema as models want it: of an object, with properties."""
    schema = dict(value) if isinstance(value, Mapping) else {}
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {}}
    if not isinstance(schema.get("properties"), Mapping):
        schema["properties"] = {}
    return schema


def _required(schema: JsonObject) -> list[str]:
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


def _named(tools: Iterable[Tool]) -> dict[str, Tool]:
    named: dict[str, Tool] = {}
    for tool in tools:
        name = base = _NOT_IN_NAMES.sub("_", tool.name)[:_MAX_NAME] or "tool"
        number = 1
        while name in named:
            number += 1
            name = f"{base[: _MAX_NAME - 4]}_{number}"
        named[name] = tool
    return named


def _bounded(text: str) -> str:
    text = text.encode(errors="replace").decode()  # half a character could be sent to no provider
    if len(text) <= MAX_RESULT_CHARACTERS:
        return text
    return f"{text[:MAX_RESULT_CHARACTERS]}\n[cut: {len(text)} characters in all]"
