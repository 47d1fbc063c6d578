"""Judges the code of a whole definition before a run starts or `sync` stores it, without running it.

`model` has judged the graph by then. Both `sync` and a run's start call this, so that they say the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import CodeLimit, CodeRefused, DefinitionError
from synapse_worker.engine.model import Definition, StepType
from synapse_worker.engine.sandbox import Sandbox

PYTHON_TOOL = "python"
"""The `tool_type` of a custom tool that is a script; such a script is given `_args` and prints its result."""


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
    """Have the sandbox judge the script of a custom tool; a tool of another type passes.

    Args:
        document: the tool as users write it.
        sandbox: the judge.

    Raises:
        DefinitionError: it is a Python tool without a script, or the sandbox refuses the script.
        SandboxCrashed: the sandbox went away without a verdict.
    """
    if document.get("tool_type") != PYTHON_TOOL:
        return
    title = f"Tool {str(document.get('name') or document.get('id'))!r}"
    code = document.get("code")
    if not isinstance(code, str) or not code.strip():
        raise DefinitionError(f"{title} is of type {PYTHON_TOOL} and needs code.")
    try:
        await sandbox.check_tool(code)
    except (CodeRefused, CodeLimit) as refused:
        raise DefinitionError(f"{title}: the code cannot run. {refused}") from None
