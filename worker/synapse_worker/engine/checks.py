"""Judges the code of a whole definition before a run starts or `sync` stores it, without running it, and custom tools.

`model` has judged the graph by then. Both `sync` and a run's start call this, so that they say the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import CodeLimit, CodeRefused, DefinitionError
from synapse_worker.engine.model import Definition, StepType
from synapse_worker.engine.sandbox import Sandbox

HTTP_TOOL = "http"
"""The `tool_type` of a custom tool that is a request."""

PYTHON_TOOL = "python"
"""The `tool_type` of a custom tool that is a script; such a script is given `_args` and prints its result."""

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
"""The methods of custom tools whose arguments are sent as the body."""

_METHODS = WITH_BODY | {"GET", "DELETE", "HEAD"}


async def check_code(definition: Definition, sandbox: Sandbox) -> None:
    """Have the sandbox judge every expression and transform of `definition`.

    Raises:
        DefinitionError: the first one that it refuses; names orchestration, step, field and line.
        SandboxCrashed: the sandbox went away without a verdict.
    """
    for step in definition.steps.values():
        field = ""
        try:
            if step.type is StepType.IF_ELSE:
                field = "if_condition"
                await sandbox.check_expression(step.if_condition)
            elif step.type is StepType.SWITCH:
                field = "switch_expression"
                await sandbox.check_expression(step.switch_expression)
            elif step.type is StepType.TRANSFORM:
                field = "transform_code"
                await sandbox.check_transform(step.transform_code)
        except (CodeRefused, CodeLimit) as refused:
            where = f"{definition.title[0].upper()}{definition.title[1:]}, {step.title}"
            raise DefinitionError(f"{where}: the {field} cannot run. {refused}") from None


async def check_tool(document: Mapping[str, object], sandbox: Sandbox) -> None:
    """Judge a custom tool, and have the sandbox judge its script.

    Args:
        document: the tool as users write it.
        sandbox: judges scripts.

    Raises:
        DefinitionError: it cannot be called, or the sandbox refuses its script.
        SandboxCrashed: the sandbox went away without a verdict.
    """
    title = f"Tool {str(document.get('name') or document.get('id'))!r}"
    kind, url = document.get("tool_type"), document.get("url")
    if kind != PYTHON_TOOL:
        if kind not in (None, "", HTTP_TOOL) and not url:
            raise DefinitionError(f"{title} is of type {kind!r}; accepted are {HTTP_TOOL} and {PYTHON_TOOL}.")
        if (kind == HTTP_TOOL or url) and (fault := request_fault(document)) is not None:
            raise DefinitionError(f"{title} {fault}.")
        return
    code = document.get("code")
    if not isinstance(code, str) or not code.strip():
        raise DefinitionError(f"{title} is of type {PYTHON_TOOL} and needs code.")
    try:
        await sandbox.check_tool(code)
    except (CodeRefused, CodeLimit) as refused:
        raise DefinitionError(f"{title}: the code cannot run. {refused}") from None


def request_fault(document: Mapping[str, object]) -> str | None:
    """Return why no request can be made for a tool of type http, as what a sentence says of it; None = it can."""
    if not str(document.get("url") or "").startswith(("http://", "https://")):
        return "has no http:// or https:// url"
    method = str(document.get("method") or "GET").upper()
    if method not in _METHODS:
        return f"has the method {method!r}; accepted are {', '.join(sorted(_METHODS))}"
    return None
