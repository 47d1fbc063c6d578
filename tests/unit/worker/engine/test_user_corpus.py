"""What users really write in conditions, switches and transforms works, and passes the admission check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.sandbox import Sandbox

STATE: dict[str, JsonValue] = {
    "user_input": "Order #4711 is LATE, refund me! mail: ann@example.org",
    "score": 0.82,
    "count": 3,
    "category": "billing",
    "empty": "",
    "nothing": None,
    "flag": True,
    "user": {"name": "Ann", "age": 41, "tags": ["vip", "eu"], "address": {"city": "Graz"}},
    "items": [{"id": 1, "price": 10.5, "qty": 2}, {"id": 2, "price": 4.0, "qty": 1}, {"id": 3, "price": 0.5, "qty": 9}],
    "answer": '```json\n{"severity": "high", "reasons": ["late"]}\n```',
    "csv": "name,age\nann,41\nbob,x\n",
    "text": "Grüße aus Graz – 3 × 5 €",
}

EXPRESSIONS: list[tuple[str, JsonValue]] = [
    ("state.score > 0.5", True),
    ("state.score >= 0.5 and state.count < 5", True),
    ("state.flag", True),
    ("state.flag == True", True),
    ("not state.empty", True),
    ("state.category == 'billing'", True),
    ('state["category"] == "billing"', True),
    ("state['user']['address']['city']", "Graz"),
    ("state.user.address.city", "Graz"),
    ("state.user['name']", "Ann"),
    ("state.get('score', 0) > 0.5", True),
    ("state.get('missing', 7)", 7),
    ("state.missing", None),
    ("state.missing.deeper.still is None", True),
    ("state['missing'] is None", True),
    ("state['missing']['deeper'] is None", True),
    ("state.missing or 'default'", "default"),
    ("(state.missing or 0) > 5", False),
    ("state.nothing is None", True),
    ("state.category in ['billing', 'refund']", True),
    ("state.category not in ('a', 'b')", True),
    ("'refund' in state.user_input", True),
    ("'REFUND' in state.user_input.upper()", True),
    ("'score' in state", True),
    ("'missing' not in state", True),
    ("'vip' in state.user.tags", True),
    ("len(state.items) > 2", True),
    ("len(state.user.tags) == 2 and state.user.tags[0] == 'vip'", True),
    ("state.items[0].price * state.items[0].qty", 21.0),
    ("state.items[-1]['id']", 3),
    ("state.items[:2]", STATE["items"][:2]),  # type: ignore[index]
    ("any(item.price > 10 for item in state.items)", True),
    ("all(item['qty'] > 0 for item in state.items)", True),
    ("sum(i.price * i.qty for i in state.items)", 29.5),
    ("max(i.price for i in state.items)", 10.5),
    ("sorted(i.id for i in state.items)[0]", 1),
    ("[i.id for i in state.items if i.qty > 1]", [1, 3]),
    ("{i.id: i.qty for i in state.items}", {"1": 2, "2": 1, "3": 9}),
    ("next((i.price for i in state.items if i.id == 2), None)", 4.0),
    ("next((i for i in state.items if i.id == 99), None)", None),
    ("next(i.id for i in state.items)", 1),
    ("list(map(str.upper, state.user.tags))", ["VIP", "EU"]),
    ("sorted(['b', 'A'], key=str.lower)", ["A", "b"]),
    ("state.user.name.lower().startswith('a')", True),
    ("state.user.name.lower().strip().replace('n', 'm')", "amm"),
    ("state.user_input.split('#')[1].split()[0]", "4711"),
    ("int(state.user_input.split('#')[1].split()[0]) % 2 == 1", True),
    ("int(state.count) + 1", 4),
    ("float('0.5') < state.score", True),
    ("str(state.count)", "3"),
    ("bool(state.empty)", False),
    ("round(state.score, 1)", 0.8),
    ("abs(-3) + min(1, 2) + max([1, 2])", 6),
    ("isinstance(state.user, dict)", True),
    ("isinstance(state.score, (int, float))", True),
    ("'high' if state.score > 0.8 else 'low'", "high"),
    ("'a' if state.count > 9 else ('b' if state.count > 2 else 'c')", "b"),
    ("f'{state.user.name} from {state.user.address.city}'", "Ann from Graz"),
    ("f\"{state.user['name']}: {state.score:.1f}\"", "Ann: 0.8"),
    ("'%s-%d' % (state.category, state.count)", "billing-3"),
    ("'{}/{}'.format(state.category, state.count)", "billing/3"),
    ("0.5 < state.score <= 0.9", True),
    ("state.count == 3 if 'count' in state else False", True),
    ("list(state.user.keys())", ["name", "age", "tags", "address"]),
    ("[k for k, v in state.items() if v is None]", ["nothing"]),
    ("len(state)", len(STATE)),
    ("state.user", STATE["user"]),
    ("(lambda x: x * 2)(state.count)", 6),
    ("state.text.count('ü')", 1),
    ("state.text[:5]", "Grüße"),
    ("True", True),
    ("None", None),
    ("'fixed'", "fixed"),
    ("1 == 1", True),
    ("  state.count  ", 3),
    ("(state.count > 1\n and state.flag)", True),
    ("state.count > 1  # enough", True),
    ("tuple(state.user.tags)", ["vip", "eu"]),
]


def read_transforms(name: str) -> list[tuple[str, str, JsonValue]]:
    """Return the title, code and expected result of each transform in a file beside this one."""
    found = []
    for part in Path(__file__).with_name(name).read_text().split("\n=== ")[1:]:
        title, _, rest = part.partition("\n")
        code, _, expected = rest.rpartition("\n--- ")
        found.append((title, code, json.loads(expected)))
    return found


TRANSFORMS = read_transforms("user_transforms.txt")


@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS, ids=[e for e, _ in EXPRESSIONS])
async def test_expression(sandbox: Sandbox, expression: str, expected: JsonValue) -> None:
    await sandbox.check_expression(expression)
    assert await sandbox.evaluate(expression, STATE, 2.0) == expected
    assert await sandbox.test(expression, STATE, 2.0) is bool(expected)


@pytest.mark.parametrize(("code", "expected"), [(c, e) for _, c, e in TRANSFORMS], ids=[n for n, _, _ in TRANSFORMS])
async def test_transform(sandbox: Sandbox, code: str, expected: JsonValue) -> None:
    await sandbox.check_transform(code)
    assert await sandbox.transform(code, STATE, 2.0) == expected


async def test_windows_line_ends(sandbox: Sandbox) -> None:
    assert await sandbox.transform("a = 1\r\nif a:\r\n    result = a\r\n", STATE, 2.0) == 1
