"""The sandbox's answers to failing code, its admission check, and its own ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from synapse_worker.engine.errors import CodeFailed, CodeLimit, CodeRefused, SandboxCrashed
from synapse_worker.engine.sandbox import Sandbox


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("a = {}\n\nresult = a['x']", "KeyError: 'x' (line 3)"),
        ("result = state['missing']", "KeyError: 'missing' (line 1)"),
        ("def f(x):\n    return x / 0\n\nresult = f(1)", "ZeroDivisionError: division by zero (line 2)"),
        ("raise ValueError('no good\\nat all')", "ValueError: no good at all (line 1)"),
        ("d = {'a': 1}\ndel d['a']\n\n\nresult = d['a']", "KeyError: 'a' (line 5)"),
        ("assert False, 'stop'", "AssertionError: stop (line 1)"),
        ("raise ValueError", "ValueError (line 1)"),
        ("\nresult = eval('1 / 0')", "ZeroDivisionError: division by zero (line 2)"),
    ],
)
async def test_exceptions_name_the_line(sandbox: Sandbox, code: str, sentence: str) -> None:
    with pytest.raises(CodeFailed) as caught:
        await sandbox.transform(code, {}, 2.0)
    assert str(caught.value) == sentence
    assert caught.value.final


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("state.n > 5", "TypeError: '>' not supported between instances of 'NoneType' and 'int'"),
        ("state.n.lower()", "AttributeError: 'NoneType' object has no attribute 'lower'"),
        ("{1, 2}", "TypeError: Object of type set is not JSON serializable"),
        ("float('nan')", "The result is not JSON that can be stored: it holds NaN, which JSON has no number for."),
    ],
)
async def test_expressions_fail_with_the_exception(sandbox: Sandbox, expression: str, sentence: str) -> None:
    with pytest.raises(CodeFailed) as caught:
        await sandbox.evaluate(expression, {}, 2.0)
    assert str(caught.value) == sentence


async def test_truth_needs_no_json(sandbox: Sandbox) -> None:
    assert await sandbox.test("{1} & {1}", {}, 2.0) is True
    assert await sandbox.test("set(state.a) - {'x'}", {"a": ["x"]}, 2.0) is False


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("a = 1\n\nx = (1,", "The code is not valid Python: unexpected EOF while parsing (line 3)."),
        ("def numbers():\n    yield 1", "The sandbox does not support yield expressions (line 2)."),
        ("class Bad(Exception):\n    pass", "The sandbox does not support class inheritance and metaclasses (line 1)."),
        ("x = 1\nimport uuid", "The sandbox cannot do `import uuid`: No module named 'uuid' (line 2)."),
        (
            "import json, numpy as np",
            "The sandbox cannot do `import json, numpy as np`: No module named 'numpy' (line 1).",
        ),
        (
            "def f():\n    from collections import OrderedDict",
            "The sandbox cannot do `from collections import OrderedDict`",
        ),
        ("x = 1\nresult = callable(x)", "The code uses the name 'callable', which the sandbox does not have (line 2)."),
        ("result = reslut", "The code uses the name 'reslut', which the sandbox does not have (line 1)."),
        ("x = 1\nif x:\n    return x", "The transform has a return outside a function; it sets `result` (line 3)."),
        (
            "while True:\n    result = 1 / 0\n    del result.x",
            "The sandbox does not support the 'del' statement (line 3).",
        ),
    ],
)
async def test_transforms_are_judged_without_running(sandbox: Sandbox, code: str, sentence: str) -> None:
    for _ in range(2):
        with pytest.raises(CodeRefused) as caught:
            await sandbox.check_transform(code)
        assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("state.a ==", "The expression is no Python expression: invalid syntax (line 1)."),
        ("state.a == true", "The code uses the name 'true', which the sandbox does not have (line 1); write True."),
        ("re.search('a', state.t)", "The code uses the name 're', which the sandbox does not have (line 1)."),
        ("[x async for x in state.a]", "The sandbox does not support async comprehensions (line"),
    ],
)
async def test_expressions_are_judged_without_running(sandbox: Sandbox, expression: str, sentence: str) -> None:
    with pytest.raises(CodeRefused) as caught:
        await sandbox.check_expression(expression)
    assert str(caught.value).startswith(sentence)


async def test_the_check_runs_nothing(sandbox: Sandbox) -> None:
    await sandbox.check_transform("while True:\n    pass")
    await sandbox.check_expression("1 / 0")


async def test_limits_say_which(sandbox: Sandbox) -> None:
    with pytest.raises(CodeLimit, match=r"ran longer than 0\.2 s"):
        await sandbox.evaluate("sum(range(10 ** 12))", {}, 0.2)
    with pytest.raises(CodeLimit, match=r"more than 32 MiB of memory \(line 2\)"):
        await sandbox.transform("x = 1\nresult = 'a' * 10 ** 9", {}, 2.0)
    with pytest.raises(CodeLimit, match="deeper than 200 levels"):
        await sandbox.transform("def f():\n    return f()\nf()", {}, 2.0)
    with pytest.raises(CodeLimit, match="longer than 1 MiB"):
        await sandbox.transform("result = 'a' * (2 * 1024 * 1024)", {}, 2.0)


async def test_time_is_bounded_by_the_sandbox_too() -> None:
    async with Sandbox(processes=1, max_seconds=0.2) as sandbox:
        with pytest.raises(CodeLimit, match=r"0\.2 s"):
            await sandbox.transform("while True: pass", {}, 3600.0)


async def test_state_travels_whole_or_by_key(sandbox: Sandbox) -> None:
    state = {"small": 1, "large": "x" * (5 * 1024 * 1024)}
    assert await sandbox.evaluate("state.small", state, 2.0) == 1
    assert await sandbox.transform("result = state['small']", state, 2.0) == 1
    with pytest.raises(CodeLimit, match="is given only those"):
        await sandbox.evaluate("len(list(state))", state, 2.0)
    with pytest.raises(CodeLimit, match="state cannot be given to the code"):
        await sandbox.evaluate("state.x", {"x": float("nan")}, 2.0)
    assert await sandbox.evaluate("state.x", {"x": "a\ud800b"}, 2.0) == "a\ufffdb"


async def test_state_that_is_too_deep(sandbox: Sandbox) -> None:
    deep: list[object] = []
    for _ in range(250):
        deep = [deep]
    with pytest.raises(CodeLimit, match="state nests deeper than 200"):
        await sandbox.evaluate("state.x", {"x": deep}, 2.0)
    with pytest.raises(CodeLimit, match="state nests deeper than 200"):
        await sandbox.transform("result = state['x']", {"x": deep}, 2.0)


async def test_nothing_stays_behind(sandbox: Sandbox) -> None:
    await sandbox.transform("secret = 42\nimport math\nresult = 1", {"a": 1}, 2.0)
    for code in ("result = secret", "result = math.pi", "result = state['a']"):
        with pytest.raises(CodeFailed):
            await sandbox.transform(code, {}, 2.0)


async def test_user_code_does_not_hold_up_the_loop() -> None:
    async with Sandbox(processes=2) as sandbox:
        busy = asyncio.create_task(sandbox.transform("while True: pass", {}, 20.0))
        values = [await sandbox.evaluate("state.n + 1", {"n": n}, 2.0) for n in range(20)]
        assert values == list(range(1, 21))
        assert not busy.done()
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


async def test_a_cancelled_call_frees_its_process() -> None:
    async with _one_process() as (sandbox, process):
        busy = asyncio.create_task(sandbox.transform("while True: pass", {}, 5.0))
        waiting = asyncio.create_task(sandbox.evaluate("1 + 1", {}, 2.0))
        while _is_idle(process):  # noqa: ASYNC110  # nothing tells when the interpreter has begun
            await asyncio.sleep(0)
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy
        assert await asyncio.wait_for(waiting, 3.0) == 2


async def test_a_killed_process_is_told_apart_and_replaced() -> None:
    async with _one_process() as (sandbox, process):
        assert Path(f"/proc/{process}/environ").read_bytes() == b""  # noqa: ASYNC240  # no wait in /proc
        busy = asyncio.create_task(sandbox.transform("while True: pass", {}, 5.0))
        while _is_idle(process):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0)
        os.kill(process, signal.SIGKILL)
        with pytest.raises(SandboxCrashed) as caught:
            await busy
        assert not caught.value.final
        assert await sandbox.evaluate("1 + 1", {}, 2.0) == 2


async def test_a_sandbox_that_is_not_open() -> None:
    with pytest.raises(SandboxCrashed, match="could not be started"):
        await Sandbox().evaluate("1 + 1", {}, 1.0)


@contextlib.asynccontextmanager
async def _one_process() -> AsyncIterator[tuple[Sandbox, int]]:
    """A sandbox and the id of its only process; those of earlier tests may still be on their way out."""
    earlier = _interpreters()
    async with Sandbox(processes=1) as sandbox:
        (process,) = _interpreters() - earlier
        yield sandbox, process


def _interpreters() -> set[int]:
    """Process ids of our children that run the interpreter."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name.startswith("monty") and int(rest.split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def _is_idle(process: int) -> bool:
    """Whether the process has used no processor time worth a few clock ticks since it was started."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) < 5
