"""docs/expressions.md tells the truth about modules, names, its example and the limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from synapse_worker.engine import dialect, locked_child, sandbox
from synapse_worker.engine.dialect import Need
from synapse_worker.engine.errors import CodeRefused
from synapse_worker.engine.locked_python import LockedPython
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.steps.context import EXPRESSION_SECONDS, TRANSFORM_SECONDS

PAGE = (Path(__file__).parents[4] / "docs" / "expressions.md").read_text()


def _words(start: str, end: str) -> list[str]:
    return re.findall(r"\w+", PAGE.split(start, 1)[1].split(end, 1)[0])


SMALL = _words("Modules of the small interpreter: ", ".\n")
WHOLE = re.findall(r"[\w.]+\w", PAGE.split("these but asyncio, and ", 1)[1].split(".\n", 1)[0])


@pytest.mark.parametrize("module", SMALL)
async def test_the_modules_are_there(module: str, sandbox: Sandbox) -> None:
    await sandbox.check_transform(f"import {module}")


async def test_python_itself_has_more(sandbox: Sandbox) -> None:
    for module in WHOLE:
        with pytest.raises(CodeRefused, match="cannot do `import"):
            await sandbox.check_transform(f"import {module}")
    async with LockedPython() as whole:
        imports = [Need(1, f"import {module}") for module in (*SMALL, *WHOLE) if module != "asyncio"]
        await whole.check("", imports)


@pytest.mark.parametrize("name", ["zoneinfo", *_words("packages such as\n", ". Network")])
async def test_the_other_modules_are_not(name: str, sandbox: Sandbox) -> None:
    async with LockedPython() as whole, Sandbox(processes=1, whole=whole) as all_of_it:
        for each in (sandbox, all_of_it):
            with pytest.raises(CodeRefused, match="cannot do `import"):
                await each.check_transform(f"import {name}")


@pytest.mark.parametrize("name", ["callable", "issubclass", "super", "globals", "compile"])
async def test_the_names_are_python_itselfs(name: str, sandbox: Sandbox) -> None:
    assert f"`{name}`" in PAGE
    with pytest.raises(CodeRefused, match=f"'{name}', which the sandbox does not have"):
        await sandbox.check_transform(f"result = {name}()")
    async with LockedPython() as whole:
        await whole.check(f"result = {name}()", [Need(1, name)])


async def test_the_example_runs(sandbox: Sandbox) -> None:
    code = PAGE.split("```python\n")[1].split("```")[0]
    state = {"user_input": "#12 and #7", "items": [{"id": "a", "days": 3}, {"id": "b", "days": 20}]}
    await sandbox.check_transform(code)
    assert await sandbox.transform(code, state, 2.0) == {"orders": ["12", "7"], "late": 1, "first": "b"}


def test_the_limits_are_these() -> None:
    assert f"| time of a condition or switch expression | {EXPRESSION_SECONDS:g} s |" in PAGE
    assert f"| time of a transform | {TRANSFORM_SECONDS:g} s," in PAGE
    small, whole = sandbox.MEMORY_BYTES >> 20, locked_child.MEMORY_BYTES >> 20
    assert f"| memory | {small} MiB ({whole} MiB in Python itself) |" in PAGE
    assert f"| calls within calls | {sandbox.MAX_CALL_DEPTH} |" in PAGE
    assert f"| state that the code reads | {sandbox.MAX_STATE_BYTES >> 20} MiB" in PAGE
    assert f"| result, and what a script prints | {sandbox.MAX_OUTPUT_BYTES >> 20} MiB |" in PAGE
    assert f"at most {dialect.MAX_EXPRESSION_BYTES >> 10} KiB" in PAGE
    assert f"at most {dialect.MAX_TRANSFORM_BYTES >> 10} KiB" in PAGE
