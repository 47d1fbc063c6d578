"""What users really write in conditions, switches and transforms works, and passes the admission check."""

from __future__ import annotations

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

TRANSFORMS: list[tuple[str, str, JsonValue]] = [
    ("one assignment", "result = state['count'] + 1", 4),
    ("text", "result = state['user_input'].lower().split()[0]", "order"),
    ("dict", "result = {'name': state['user']['name'], 'n': len(state['items'])}", {"name": "Ann", "n": 3}),
    ("get with default", "result = state.get('missing', {}).get('x', 'none')", "none"),
    ("json is there", "result = json.loads('{\"a\": [1, 2]}')['a']", [1, 2]),
    ("import json again", "import json\nresult = json.dumps({'b': 1})", '{"b": 1}'),
    (
        "fenced json of a model",
        "import json, re\n"
        "raw = state.get('answer', '')\n"
        "match = re.search(r'```(?:json)?\\s*(.*?)```', raw, re.DOTALL)\n"
        "try:\n"
        "    data = json.loads(match.group(1) if match else raw)\n"
        "except (json.JSONDecodeError, ValueError) as error:\n"
        "    data = {'error': str(error)}\n"
        "result = data.get('severity', 'unknown')",
        "high",
    ),
    (
        "bad json caught",
        "try:\n    result = json.loads('{nope')\nexcept json.JSONDecodeError:\n    result = {'ok': False}",
        {"ok": False},
    ),
    (
        "totals",
        "total = 0\nfor item in state['items']:\n    total += item['price'] * item['qty']\nresult = round(total, 2)",
        29.5,
    ),
    (
        "filter and sort",
        "rows = [i for i in state['items'] if i['price'] > 1]\n"
        "rows.sort(key=lambda r: r['price'])\n"
        "result = [r['id'] for r in rows]",
        [2, 1],
    ),
    (
        "find first",
        "hit = next((i for i in state['items'] if i['id'] == 3), None)\nresult = hit['qty'] if hit else 0",
        9,
    ),
    ("generator kept", "numbers = (n * n for n in range(4))\nfirst = next(numbers)\nresult = [first, *numbers]", [0, 1, 4, 9]),
    (
        "functions",
        "def clean(value, *, upper=False):\n"
        "    value = value.strip()\n"
        "    return value.upper() if upper else value\n\n"
        "result = [clean(t, upper=True) for t in state['user']['tags']]",
        ["VIP", "EU"],
    ),
    (
        "class",
        "class Ticket:\n"
        "    def __init__(self, subject):\n"
        "        self.subject = subject\n"
        "    def short(self):\n"
        "        return self.subject[:5]\n"
        "result = Ticket(state['user_input']).short()",
        "Order",
    ),
    (
        "dataclass",
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Row:\n    id: int\n    total: float\n"
        "rows = [Row(i['id'], i['price'] * i['qty']) for i in state['items']]\n"
        "result = max(rows, key=lambda r: r.total).id",
        1,
    ),
    (
        "counter and defaultdict",
        "from collections import Counter, defaultdict\n"
        "words = Counter(state['user_input'].lower().split())\n"
        "groups = defaultdict(list)\n"
        "for i in state['items']:\n    groups['big' if i['price'] > 5 else 'small'].append(i['id'])\n"
        "result = {'late': words['late,'], 'groups': dict(groups)}",
        {"late": 1, "groups": {"big": [1], "small": [2, 3]}},
    ),
    (
        "regular expressions",
        "import re\n"
        "mails = re.findall(r'[\\w.]+@[\\w.]+', state['user_input'])\n"
        "order = re.search(r'#(?P<id>\\d+)', state['user_input'])\n"
        "result = {'mails': mails, 'order': int(order.group('id')), 'clean': re.sub(r'\\W+', ' ', 'a!!b').strip()}",
        {"mails": ["ann@example.org"], "order": 4711, "clean": "a b"},
    ),
    (
        "re.sub with a function",
        "import re\nresult = re.sub(r'\\d+', lambda m: str(int(m.group()) + 1), 'a1 b22 c', count=0)",
        "a2 b23 c",
    ),
    (
        "re.sub with a named function",
        "import re\ndef mask(m):\n    return '*' * len(m.group(0))\nresult = re.sub('[aeiou]+', mask, 'queue', flags=re.I)",
        "q****",
    ),
    (
        "dates",
        "from datetime import datetime, timedelta, timezone\n"
        "start = datetime.strptime('2024-02-28', '%Y-%m-%d')\n"
        "result = [(start + timedelta(days=2)).strftime('%d.%m.%Y'), datetime.fromisoformat('2024-01-01').year]",
        ["01.03.2024", 2024],
    ),
    ("utcnow", "from datetime import datetime\nresult = len(datetime.utcnow().isoformat()) >= 19", True),
    ("now in utc", "import datetime as dt\nresult = dt.datetime.now(dt.timezone.utc).isoformat().endswith('+00:00')", True),
    ("delete keys", "data = dict(state['user'])\ndel data['tags']\ndel data['address'], data['age']\nresult = data", {"name": "Ann"}),
    ("delete with brackets and names", "d = {'a': 1, 'b': 2}\nx = 5\ndel(d['a'])\ndel x\nresult = d", {"b": 2}),
    ("delete a slice", "numbers = [1, 2, 3, 4]\ndel numbers[1:3]\nresult = numbers", [1, 4]),
    ("pop and setdefault", "d = {}\nd.setdefault('a', []).append(1)\nresult = [d.pop('a'), d]", [[1], {}]),
    ("method as key", "result = sorted(['b', 'A', 'c'], key=str.lower) + list(map(str.strip, [' x ']))", ["A", "b", "c", "x"]),
    ("comprehensions", "result = {k: [x for x in v if x] for k, v in {'a': [0, 1]}.items()}", {"a": [1]}),
    ("sets are sorted first", "result = sorted({t for t in state['user']['tags']})", ["eu", "vip"]),
    ("merge dicts", "result = {**state['user']['address'], 'zip': '8010'} | {'x': None}", {"city": "Graz", "zip": "8010", "x": None}),
    ("unpacking", "first, *rest = state['items']\na, b = 1, 2\na, b = b, a\nresult = [first['id'], len(rest), a]", [1, 2, 2]),
    ("walrus and while", "n = 10\nsteps = 0\nwhile (n := n // 2) > 0:\n    steps += 1\nresult = steps", 3),
    ("match", "match state['category']:\n    case 'billing' | 'refund':\n        result = 'money'\n    case _:\n        result = 'other'", "money"),
    ("try, else, finally", "log = []\ntry:\n    x = 1\nexcept Exception:\n    pass\nelse:\n    log.append('else')\nfinally:\n    log.append('finally')\nresult = log", ["else", "finally"]),
    ("raise and catch", "try:\n    raise ValueError('bad')\nexcept ValueError as e:\n    result = f'{type(e).__name__}: {e}'", "ValueError: bad"),
    ("csv by hand", "lines = state['csv'].strip().splitlines()\nhead = lines[0].split(',')\nresult = [dict(zip(head, l.split(','))) for l in lines[1:]]", [{"name": "ann", "age": "41"}, {"name": "bob", "age": "x"}]),
    ("enumerate and zip", "result = [f'{i}:{a}{b}' for i, (a, b) in enumerate(zip('ab', 'cd'), 1)]", ["1:ac", "2:bd"]),
    ("f-strings", "u = state['user']\nresult = f\"{u['name']:>5}|{state['score']:.0%}|{1234567:,}|{u['age']!r}\"", "  Ann|82%|1,234,567|41"),
    ("multi-line text", "result = '''\n# Report\n\nName: ''' + state['user']['name']", "\n# Report\n\nName: Ann"),
    ("unicode", "result = state['text'].replace('–', '-').split(' ')[0]", "Grüße"),
    ("math and random", "import math, random\nrandom.seed(1)\nresult = [math.ceil(1.2), math.floor(-1.5), 0 <= random.random() < 1]", [2, -2, True]),
    ("hash and base64", "import hashlib, base64\nresult = [hashlib.sha256(b'a').hexdigest()[:8], base64.b64encode('ü'.encode()).decode()]", ["ca978112", "w7w="]),
    ("itertools and functools", "from itertools import groupby, chain\nfrom functools import reduce\nresult = [reduce(lambda a, b: a * b, [2, 3]), list(chain([1], [2])), [k for k, g in groupby('aab')]]", [6, [1, 2], ["a", "b"]]),
    ("decimal", "from decimal import Decimal\nresult = float(Decimal('0.1') + Decimal('0.2'))", 0.3),
    ("copy", "import copy\nc = copy.deepcopy(state['user'])\nc['tags'].append('new')\nresult = [len(c['tags']), len(state['user']['tags'])]", [3, 2]),
    ("type hints", "from typing import Any, Dict, List\ndef f(x: List[int], y: Dict[str, Any] = {}) -> int:\n    total: int = sum(x)\n    return total\nresult = f([1, 2])", 3),
    ("nested functions and recursion", "def depth(x):\n    return 1 + max(map(depth, x.values()), default=0) if isinstance(x, dict) else 0\nresult = depth(state['user'])", 2),
    ("global", "seen = 0\ndef visit():\n    global seen\n    seen += 1\nvisit()\nvisit()\nresult = seen", 2),
    ("optional module", "try:\n    import numpy as np\nexcept ImportError:\n    np = None\nresult = np is None", True),
    ("prints JSON instead", "print(json.dumps({'a': [1, 2]}))", {"a": [1, 2]}),
    ("prints text instead", "print('hello', state['user']['name'])", "hello Ann"),
    ("result wins over prints", "print('debug')\nresult = 1", 1),
    ("nothing", "x = 1", None),
    ("only a comment", "# nothing yet", None),
    ("changes only its copy", "state['score'] = 0\nstate['new'] = 1\nresult = sorted(state)[:2]", ["answer", "category"]),
    ("windows line ends", "a = 1\r\nif a:\r\n    result = a\r\n", 1),
    ("big numbers and floats", "result = [10**30, 0.1, 1e-7, -0.0]", [10**30, 0.1, 1e-7, -0.0]),
    ("future import", "from __future__ import annotations\nresult = 1", 1),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS, ids=[e for e, _ in EXPRESSIONS])
async def test_expression(sandbox: Sandbox, expression: str, expected: JsonValue) -> None:
    await sandbox.check_expression(expression)
    assert await sandbox.evaluate(expression, STATE, 2.0) == expected
    assert await sandbox.test(expression, STATE, 2.0) is bool(expected)


@pytest.mark.parametrize(("code", "expected"), [(c, e) for _, c, e in TRANSFORMS], ids=[n for n, _, _ in TRANSFORMS])
async def test_transform(sandbox: Sandbox, code: str, expected: JsonValue) -> None:
    await sandbox.check_transform(code)
    assert await sandbox.transform(code, STATE, 2.0) == expected
