"""Custom tools in Python: a script in the sandbox that reads `_args` and prints its result."""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import EngineError
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.tools.toolbox import Tool, ToolFailed, object_schema

SECONDS = 10.0
"""Running time of one call."""


def python_tool(name: str, document: Mapping[str, object], sandbox: Sandbox) -> Tool:
    """Return a custom tool of type python."""
    schema = next((document[key] for key in ("inputSchema", "schema", "parameters") if document.get(key)), {})
    code = str(document.get("code") or "")

    async def call(arguments: JsonObject, key: str) -> str:
        try:
            return await sandbox.run(code, arguments, SECONDS)
        except EngineError as error:
            if not error.final:
                raise  # the sandbox's process went away, which says nothing about the tool
            raise ToolFailed(str(error)) from None

    return Tool(name, str(document.get("description") or ""), object_schema(schema), call)
