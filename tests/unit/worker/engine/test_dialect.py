"""What user code becomes, which state it reads, and where its lines are afterwards."""

from __future__ import annotations

import ast

import pytest

from synapse_worker.engine.dialect import (
    Need,
    expression_needs,
    prepare_expression,
    prepare_transform,
    transform_needs,
)
from synapse_worker.engine.errors import CodeRefused


@pytest.mark.parametrize(
    ("expression", "source"),
    [
        ("state.a", "_get(state, 'a')"),
        ("state.a.b", "_get(_get(state, 'a'), 'b')"),
        ("state['a'][0]", "_item(_item(state, 'a'), 0)"),
        ("state.a[1:]", "_get(state, 'a')[1:]"),
        ("state.items()", "state.items()"),
        ("state.a.items()", "_get(state, 'a').items()"),
        ("f(state.a.b)", "f(_get(_get(state, 'a'), 'b'))"),
        ("state.a.m(state.b)", "_get(state, 'a').m(_get(state, 'b'))"),
        ("f'{state.a}'", "f\"{_get(state, 'a')}\""),
        ("any(x.y for x in z)", "any((_get(x, 'y') for x in z))"),
        ("next(x for x in z)", "next(iter((x for x in z)))"),
        ("map(str.upper, z)", "map(lambda _text, *_more: _text.upper(*_more), z)"),
    ],
)
def test_expressions_are_rewritten(expression: str, source: str) -> None:
    # Trees are compared, since versions of Python differ in the quotes that they write.
    assert ast.dump(ast.parse(prepare_expression(expression).source)) == ast.dump(ast.parse(source))


@pytest.mark.parametrize(
    ("expression", "keys"),
    [
        ("1 == 1", set()),
        ("state.a > 1", {"a"}),
        ("state.a.b and state['c'] or state.get('d', state.e)", {"a", "c", "d", "e"}),
        ("'f' in state", {"f"}),
        ("[x.y for x in state.g if x.z in state.h]", {"g", "h"}),
        ("state", None),
        ("len(state)", None),
        ("state.items()", None),
        ("state[state.key]", None),
        ("state.get(state.key)", None),
        ("(lambda state: state.a)(1)", None),
        ("eval('state')", None),
        ("[k for k in state]", None),
        ("state == {}", None),
        ("'a' in state == True", None),
    ],
)
def test_the_state_that_is_read(expression: str, keys: set[str] | None) -> None:
    assert prepare_expression(expression).state_keys == (None if keys is None else frozenset(keys))


@pytest.mark.parametrize(
    "code",
    [
        "result = state['a'] + 1  # as written",
        "for x in state['l']:\n\n    result   =  x",
        "result = any(x > 1 for x in [1])",
        "import re\nresult = re.sub('a', 'b', state['t'])",
        "this is no Python {",
    ],
)
def test_a_transform_that_needs_nothing_stays_as_it_is(code: str) -> None:
    assert prepare_transform(code).source == code


def test_lines_of_a_rewritten_transform() -> None:
    code = (
        "# comment\n\n"
        "d = {'a': 1,\n     'b': 2}\n\n"
        "del d['a']\n\n"
        "if d:\n    # inside\n    x = d['b']\n\n"
        "def f():\n    '''doc'''\n\n    return 1 / 0\n\n"
        "result = f()\n"
    )
    prepared = prepare_transform(code)
    user = code.splitlines()
    for number, line in enumerate(prepared.source.splitlines(), 1):
        written = user[prepared.user_line(number) - 1].strip()
        if line.strip() in ("x = d['b']", "return 1 / 0", "result = f()", "if d:", "def f():"):
            assert written == line.strip()
    assert prepared.source.splitlines()[1] == "d.pop('a')"
    assert prepared.user_line(2) == 6


@pytest.mark.parametrize(
    ("code", "needs"),
    [
        ("result = state['a']", []),
        ("import uuid\nresult = str(uuid.uuid4())", [Need(1, "import uuid"), Need(2, "str")]),
        ("try:\n    import numpy\nexcept ImportError:\n    numpy = None", [Need(3, "ImportError")]),
        ("from x import *\nresult = anything", [Need(1, "from x import *")]),
        ("exec('a = 1')\nresult = a", []),
        ("def f(x: Unknown) -> Other:\n    return x\nresult = f(1)", []),
        ("for i in range(3):\n    result = i", [Need(1, "range")]),
        ("match state:\n    case {'a': a, **rest}:\n        result = a, rest", []),
    ],
)
def test_what_a_transform_needs(code: str, needs: list[Need]) -> None:
    assert transform_needs(code) == needs


def test_what_an_expression_needs() -> None:
    assert expression_needs("[x for x in state.l if x > len(other)]") == [Need(1, "len"), Need(1, "other")]


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("state.a >", "The expression is no Python expression: invalid syntax (line 1)."),
        ("a = 1", "The expression is no Python expression: "),
        ("", "The expression is no Python expression: "),
        ("x" * 5000, "The expression is longer than 4096 bytes."),
        ("not " * 900 + "1", "The expression nests too deeply."),
    ],
)
def test_expressions_that_are_refused(expression: str, sentence: str) -> None:
    with pytest.raises(CodeRefused) as caught:
        prepare_expression(expression)
    assert str(caught.value).startswith(sentence)


def test_transforms_that_are_refused() -> None:
    with pytest.raises(CodeRefused, match=r"return outside a function; it sets `result` \(line 2\)"):
        prepare_transform("if state:\n    return 1")
    with pytest.raises(CodeRefused, match="longer than 65536 bytes"):
        prepare_transform("x = 1\n" * 20_000)


def test_user_code_gives_no_warnings() -> None:
    assert prepare_transform("import re\nresult = re.findall('\\d', '1')").state_keys == frozenset()
    prepare_expression("state.a is 1")
