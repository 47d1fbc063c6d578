"""Code that means harm is stopped in bounded time, learns nothing, and leaves the sandbox usable."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from synapse_worker.engine.errors import CodeFailed, CodeLimit, CodeRefused, SandboxCrashed
from synapse_worker.engine.sandbox import Sandbox

SECONDS = 2.0
"""Time limit of code that is not after time: long enough for a busy machine."""

SHORT = 0.1
"""Time limit of code that would use up any."""

PATIENCE = 6.0
"""Seconds until a snippet counts as not stopped: limit, the process's own grace of one second, a slow machine."""

# Uses up time, memory, stack or output: a limit stops it.
EXHAUSTING = {
    "spins": "n = 0\nwhile n >= 0:\n    n += 1",
    "spins in a function": "def busy():\n    while 1:\n        pass\nbusy()",
    "counts for ever": "for number in range(10 ** 15):\n    pass",
    "endless iterator": "import itertools\nfor _ in itertools.cycle('ab'):\n    pass",
    "endless all()": "import itertools\nresult = all(itertools.count(1))",
    "sums for ever": "result = sum(range(10 ** 13))",
    "catches its own stop": (
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        continue"
    ),
    "goes on in finally": "try:\n    while True:\n        pass\nfinally:\n    while True:\n        pass",
    "tower of powers": "result = 9 ** 9 ** 9",
    "squares for ever": "x = 3\nwhile True:\n    x = x * x",
    "shifts far": "result = 1 << (1 << 40)",
    "long text": "result = 'ab' * (10 ** 11)",
    "long list": "result = [None] * (10 ** 10)",
    "long bytes": "result = b'x' * (10 ** 11)",
    "doubling text": "s = 'x'\nwhile True:\n    s = s + s",
    "doubling list": "s = [1]\nwhile True:\n    s.extend(s)",
    "hoards dicts": "d = {}\ni = 0\nwhile True:\n    d[i] = {'n': i, 't': 'y' * 50}\n    i += 1",
    "hoards and ignores the limit": (
        "keep = []\nwhile True:\n    try:\n        keep.append('z' * 500000)\n    except BaseException:\n        pass"
    ),
    "materialises a range": "result = list(range(10 ** 11))",
    "big set": "result = len(set(range(10 ** 9)))",
    "sorts too much": "result = sorted(range(10 ** 9), key=lambda v: -v)",
    "product of everything": ("import itertools\nresult = len([c for c in itertools.product(range(500), repeat=5)])"),
    "wide format": "result = f'{7:>{10 ** 10}}'",
    "wide percent": "result = '%099999999999d' % 7",
    "padded": "result = 'x'.rjust(10 ** 11, '.')",
    "centred": "result = 'x'.center(10 ** 11)",
    "replaces into a bomb": "s = 'q' * 5000000\nresult = s.replace('q', s)",
    "joins into a bomb": "result = ('-' * 10000000).join(['x'] * 100000)",
    "factorial": "import math\nresult = len(str(math.factorial(10 ** 8)))",
    "binomial": "import math\nresult = math.comb(10 ** 8, 5 * 10 ** 7)",
    "hashes for ever": "import hashlib\nwhile True:\n    hashlib.sha512(b'p' * 100000).hexdigest()",
    "prints for ever": "while True:\n    print('spam ' * 1000)",
    "prints a lot": "print('s' * (3 * 1024 * 1024))",
    "big result": "result = 'r' * (2 * 1024 * 1024)",
    "big result of numbers": "result = list(range(400000))",
    "recursion": "def down(n):\n    return down(n + 1)\ndown(0)",
    "mutual recursion": "def ping():\n    return pong()\ndef pong():\n    return ping()\nping()",
    "deep result": "x = 0\nfor _ in range(100000):\n    x = {'x': x}\nresult = x",
    "eval recursion": "def again(code):\n    return eval(code)\nresult = again('again(code)')",
}

# Reaches for something outside: refused, or an error that tells nothing.
ESCAPING = {
    "environment": "import os\nresult = dict(os.environ)",
    "one variable": "import os\nresult = os.getenv('SANDBOX_TEST_SECRET')",
    "environ get": "import os\nresult = os.environ.get('SANDBOX_TEST_SECRET', '') or 1 / 0",
    "reads a file": "result = open('/etc/hostname').read()",
    "reads bytes": "result = len(open('/proc/self/environ', 'rb').read())",
    "writes a file": "with open('/tmp/sandbox-was-here', 'w') as f:\n    f.write('x')",
    "appends": "open('/tmp/sandbox-was-here', 'a').write('x')",
    "lists a folder": "import os\nresult = os.listdir('/')",
    "walks": "import os\nresult = [x for x in os.walk('/')][0]",
    "path reads": "from pathlib import Path\nresult = Path('/etc/passwd').read_text()",
    "path exists": "from pathlib import Path\nresult = Path('/etc').exists()",
    "path writes": "from pathlib import Path\nPath('/tmp/sandbox-was-here').write_text('x')",
    "climbs": "result = open('../../../../etc/passwd').read()",
    "shell": "import os\nresult = os.system('id')",
    "popen": "import os\nresult = os.popen('id').read()",
    "fork": "import os\nresult = os.fork()",
    "exec": "import os\nos.execv('/bin/sh', ['sh'])",
    "kill": "import os\nos.kill(os.getppid(), 9)",
    "subprocess": "import subprocess\nresult = subprocess.check_output(['id'])",
    "socket": "import socket\nresult = socket.gethostname()",
    "http": "import urllib.request\nresult = urllib.request.urlopen('http://127.0.0.1').read()",
    "requests": "import requests\nresult = requests.get('http://169.254.169.254/').text",
    "ctypes": "import ctypes\nresult = ctypes.CDLL(None)",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "threads": "import threading\nthreading.Thread(target=print).start()",
    "importlib": "import importlib\nresult = importlib.import_module('os').getcwd()",
    "dunder import": "result = __import__('os').environ",
    "builtins": "result = __builtins__",
    "builtins module": "import builtins\nresult = builtins.open",
    "sys modules": "import sys\nresult = list(sys.modules)",
    "gc": "import gc\nresult = len(gc.get_objects())",
    "inspect": "import inspect\nresult = inspect.stack()",
    "subclasses": "result = len([].__class__.__base__.__subclasses__())",
    "mro": "result = str({}.__class__.__mro__)",
    "type mro": "result = str(type([]).mro())",
    "getattr class": "result = str(getattr('', '__class__').__bases__)",
    "format string attribute": "result = '{0.__class__.__init__.__globals__}'.format(1)",
    "format map": "result = '{x.__class__.__mro__}'.format(x=[])",
    "function globals": "def f():\n    pass\nresult = str(f.__globals__)",
    "function code": "result = str((lambda: 0).__code__.co_consts)",
    "frame": "try:\n    1 / 0\nexcept Exception as e:\n    result = str(e.__traceback__.tb_frame.f_back.f_globals)",
    "generator frame": "result = str((x for x in [1]).gi_frame.f_globals)",
    "pickle": "import pickle\nresult = pickle.loads(b'cos\\nsystem\\n(S\\'id\\'\\ntR.')",
    "marshal": "import marshal\nresult = marshal.dumps(1)",
    "compiles": "result = compile('1', 'x', 'exec')",
    "eval for os": "result = eval(\"__import__('os').getcwd()\")",
    "exec for os": "exec('import subprocess')",
    "breakpoint": "breakpoint()",
    "asks": "result = input('password? ')",
    "signals": "import signal\nsignal.alarm(1)",
    "urandom": "import os\nresult = os.urandom(8).hex()",
    "exits": "raise SystemExit(3)",
    "sys.exit": "import sys\nsys.exit(0)",
    "keyboard": "raise KeyboardInterrupt()",
    "returns early": "return 'not json'",
    "result is a function": "result = lambda: 1",
    "result is a set": "result = {1, 2}",
    "result is bytes": "result = b'x'",
    "result is a module": "import json\nresult = json",
    "result holds itself": "x = []\nx.append(x)\nresult = x",
    "result is nan": "result = float('nan')",
    "result holds infinity": "result = {'a': [float('inf')]}",
    "keys that are no text": "result = {(1, 2): 3}",
    "zero byte": "result = 'a\\x00b'",
    "zero byte in a key": "result = {'a\\x00': 1}",
    "zero byte printed": "print('a\\x00b')",
    "nests deeper than we store": "x = 0\nfor _ in range(150):\n    x = [x]\nresult = x",
    "number of many digits": "result = 10 ** 5000",
}

# Does nothing that matters, but looks for a crash: any end is good that comes in time.
ODD = {
    "sleeps": "import time\ntime.sleep(3600)",
    "sleeps again and again": "import time\nfor _ in range(1000):\n    time.sleep(10)",
    "sleeps async": "import asyncio\nawait asyncio.sleep(3600)",
    "slow pattern": "import re\nresult = bool(re.match(r'(x+x+)+y', 'x' * 5000))",
    "nested pattern": "import re\nresult = bool(re.search('(' * 500 + 'a' + ')*' * 500, 'a' * 500))",
    "deep json": "result = len(json.loads('[' * 500000 + ']' * 500000))",
    "deep dump": "x = []\nfor _ in range(50000):\n    x = [x]\nresult = json.dumps(x)",
    "deep text form": "x = []\nfor _ in range(100000):\n    x = [x]\nresult = repr(x)",
    "deep equality": "a = []\nb = []\nfor _ in range(50000):\n    a = [a]\n    b = [b]\nresult = a == b",
    "deep tuple hash": "t = ()\nfor _ in range(50000):\n    t = (t,)\nresult = hash(t)",
    "deep copy": "import copy\nx = []\nfor _ in range(50000):\n    x = [x]\nresult = len(copy.deepcopy(x))",
    "huge parse": "result = int('9' * 3000000) % 7",
    "decimal precision": (
        "from decimal import Decimal, getcontext\ngetcontext().prec = 10 ** 9\nresult = str(Decimal(1) / Decimal(7))"
    ),
    "decimal power": "from decimal import Decimal\nresult = str(Decimal(7) ** Decimal(10 ** 10))[:5]",
    "eval of brackets": "result = eval('[' * 50000 + ']' * 50000)",
    "shadowed json": "json = None\nresult = 1",
    "shadowed helpers": "_state = _re_sub = _json = None\nresult = 2",
    "shadowed builtins": "len = str = dict = isinstance = None\nresult = 3",
    "breaks json.dumps": "import json\njson.dumps = lambda value: 'NaN'\nresult = 1",
    "state is replaced": "state = 5\nresult = state",
    "lone surrogate": "result = '\\ud800'",
    "direction marks": "result = '\\u202e\\u2066'",
    "sort with a liar": "result = sorted([3, 1, 2], key=lambda v: [].pop())",
    "changes while iterating": "x = [1]\nfor v in x:\n    x.append(v)\n    if len(x) > 9999:\n        break",
    "undefined names": "for _ in range(5000):\n    try:\n        nowhere\n    except NameError:\n        pass",
}

# Written to break whoever reads the code.
UNREADABLE = {
    "brackets": "(" * 20_000 + "1" + ")" * 20_000,
    "few brackets": "(" * 1_500 + "1" + ")" * 1_500,
    "minus signs": "-" * 4_000 + "1",
    "not not": "not " * 1_000 + "1",
    "dots": "state" + ".a" * 2_000,
    "subscripts": "state" + "[0]" * 1_300,
    "calls": "f" + "()" * 2_000,
    "lambdas": "lambda: " * 500 + "1",
    "conditions": "1 if 1 else " * 300 + "1",
    "powers": "2" + "**2" * 1_000,
    "long sum": "+".join(["1"] * 2_000),
    "comparisons": "1" + "<2" * 1_500,
    "f-strings": "f'{1:" + "{1:" * 300 + "}" * 300 + "}'",
    "zero byte": "1 + \x00 1",
    "surrogate": "'\ud800'",
    "form feed": "\x0c1\x0c",
    "two expressions": "1; 2",
    "assignment": "state.x = 1",
    "statement": "import os",
    "yield": "(yield 1)",
    "await": "await state.x",
    "nothing": "   ",
    "too long": "1 + " * 2_000 + "1",
}


async def _outcome(sandbox: Sandbox, code: str, seconds: float = SECONDS) -> object:
    try:
        return await asyncio.wait_for(sandbox.transform(code, {"key": "value"}, seconds), PATIENCE)
    except (CodeFailed, CodeLimit, CodeRefused, SandboxCrashed) as error:
        return error


async def _is_usable(sandbox: Sandbox) -> bool:
    value = await asyncio.wait_for(sandbox.transform("result = state['key'] * 2", {"key": "ok"}, 2.0), PATIENCE)
    return value == "okok"


@pytest.mark.parametrize("code", EXHAUSTING.values(), ids=EXHAUSTING.keys())
async def test_exhausting_code_meets_a_limit(sandbox: Sandbox, code: str) -> None:
    outcome = await _outcome(sandbox, code, SHORT)
    assert isinstance(outcome, CodeLimit), outcome
    assert await _is_usable(sandbox)


@pytest.mark.parametrize("code", ESCAPING.values(), ids=ESCAPING.keys())
async def test_code_that_reaches_outside_fails(sandbox: Sandbox, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_TEST_SECRET", "seen")
    outcome = await _outcome(sandbox, code)
    assert isinstance(outcome, CodeFailed | CodeRefused), outcome
    assert "seen" not in str(outcome)
    assert "root:" not in str(outcome)
    assert not os.path.exists("/tmp/sandbox-was-here")  # noqa: S108, ASYNC240  # the path that the snippets write
    assert await _is_usable(sandbox)


@pytest.mark.parametrize("code", ODD.values(), ids=ODD.keys())
async def test_odd_code_ends_in_time(sandbox: Sandbox, code: str) -> None:
    outcome = await _outcome(sandbox, code)
    assert not isinstance(outcome, SandboxCrashed), outcome
    assert await _is_usable(sandbox)


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("as_transform", [False, True], ids=["expression", "transform"])
async def test_unreadable_code_is_judged(sandbox: Sandbox, text: str, as_transform: bool) -> None:
    check = sandbox.check_transform if as_transform else sandbox.check_expression
    run = sandbox.transform if as_transform else sandbox.evaluate
    for call in (check(text), run(text, {"a": 1}, SECONDS)):
        with contextlib.suppress(CodeRefused, CodeFailed, CodeLimit):
            await asyncio.wait_for(call, PATIENCE)
    assert await _is_usable(sandbox)
