"""A definition whose code cannot run is refused before its first step, in one sentence."""

from __future__ import annotations

import pytest

from synapse_worker.engine.checks import check_code, check_tool
from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.sandbox import Sandbox
from tests.unit.worker.engine.documents import Document, a_definition, a_print


async def test_good_code_passes(sandbox: Sandbox) -> None:
    await check_code(
        a_definition(
            a_print("a"),
            {"id": "b", "type": "if_else", "if_condition": "state.x > 1"},
            {"id": "c", "type": "switch", "switch_expression": "state.kind"},
            {"id": "d", "type": "transform", "transform_code": "result = 1"},
            {"id": "e", "type": "end"},
        ),
        sandbox,
    )


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            {"id": "b", "name": "Check", "type": "if_else", "if_condition": "state.x >"},
            "step 'Check' (b): the if_condition cannot run. The expression is no Python expression",
        ),
        ({"id": "b", "type": "switch", "switch_expression": "kind"}, "the switch_expression cannot run"),
        (
            {"id": "b", "type": "transform", "transform_code": "x = 1\ndef f():\n    yield x"},
            "the transform_code cannot run. The sandbox does not support yield expressions (line 3).",
        ),
    ],
)
async def test_bad_code_is_named(sandbox: Sandbox, step: dict[str, object], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        await check_code(a_definition(a_print("a"), step), sandbox)
    assert str(caught.value).startswith("Orchestration 'Triage' (orch_1), step ")
    assert words in str(caught.value)


async def test_a_tools_script_may_use_its_arguments_and_print(sandbox: Sandbox) -> None:
    code = "import re\nwords = re.findall('[a-z]+', _args['text'])\nprint(json.dumps({'words': len(words)}))\n"
    await check_tool({"name": "count", "tool_type": "python", "code": code}, sandbox)
    await check_tool({"name": "look_up", "tool_type": "http", "url": "https://example.com"}, sandbox)
    await check_tool({"name": "nothing said"}, sandbox)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tool_type": "http"}, "Tool 'look_up' has no http:// or https:// url."),
        ({"url": "example.com/{id}"}, "Tool 'look_up' has no http:// or https:// url."),
        (
            {"url": "https://example.com", "method": "FETCH"},
            "Tool 'look_up' has the method 'FETCH'; accepted are DELETE, GET, HEAD, PATCH, POST, PUT.",
        ),
        (
            {"tool_type": "pyhton", "code": "print(1)"},
            "Tool 'look_up' is of type 'pyhton'; accepted are http and python.",
        ),
    ],
)
async def test_a_tool_that_cannot_be_called_is_named(sandbox: Sandbox, fields: Document, sentence: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        await check_tool({"name": "look_up", **fields}, sandbox)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "Tool 'count' is of type python and needs code."),
        (" ", "Tool 'count' is of type python and needs code."),
        ("import requests\nprint(1)", "Tool 'count': the code cannot run. The sandbox cannot do `import requests`"),
        ("x = 1\nprint(state)", "Tool 'count': the code cannot run. The code uses the name 'state'"),
        ("print(", "Tool 'count': the code cannot run. The code is not valid Python"),
    ],
)
async def test_a_tools_script_that_cannot_run_is_named(sandbox: Sandbox, code: object, words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        await check_tool({"name": "count", "tool_type": "python", "code": code}, sandbox)
    assert str(caught.value).startswith(words)
