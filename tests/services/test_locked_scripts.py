"""Transforms that need all of Python run in processes that can do nothing else, whatever the transform tries."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest
import uvloop

from synapse_worker.engine import locked_child, locked_python
from synapse_worker.engine.errors import CodeFailed, CodeLimit, CodeRefused, SandboxCrashed
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.locked_python import LockedPython
from synapse_worker.engine.sandbox import Sandbox
from tests.unit.worker.engine.test_hostile_corpus import ESCAPING, EXHAUSTING, ODD
from tests.unit.worker.engine.test_user_corpus import STATE, TRANSFORMS, read_transforms

WHOLE_TRANSFORMS = read_transforms("user_transforms_whole.txt")
FORCED = "class _Forced(Exception):\n    pass\n"
"""In front of a script, it is one that the interpreter refuses."""
SECONDS = 5.0
SHORT = 0.3
PATIENCE = 60.0
AT_ONCE = 3

Outcome: TypeAlias = "JsonValue | CodeFailed | CodeLimit | CodeRefused | SandboxCrashed"


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """A sandbox with all of Python, as workers have it."""
    async with LockedPython(processes=AT_ONCE) as whole, Sandbox(processes=1, whole=whole) as opened:
        yield opened
    assert children() == set()


def children() -> set[str]:
    """The locked processes that there are."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                b"locked_child" in (folder / "cmdline").read_bytes()
                and f"PPid:\t{os.getpid()}\n" in (folder / "status").read_text()
            ):
                found.add(folder.name)
    return found


async def outcome(sandbox: Sandbox, code: str, seconds: float = SECONDS) -> Outcome:
    """Run a script in whole Python."""
    try:
        return await asyncio.wait_for(sandbox.transform(FORCED + code, {"key": "value"}, seconds), PATIENCE)
    except (CodeFailed, CodeLimit, CodeRefused, SandboxCrashed) as error:
        return error


async def outcomes(sandbox: Sandbox, codes: Mapping[str, str], seconds: float = SECONDS) -> dict[str, Outcome]:
    """Run many scripts, a few at once; afterwards the sandbox is as good as before."""
    found = await asyncio.gather(*(outcome(sandbox, code, seconds) for code in codes.values()))
    assert await outcome(sandbox, "result = state['key'] * 2") == "valuevalue"
    return dict(zip(codes, found, strict=True))


# ---- what users write


async def test_what_the_interpreter_lacks_runs(sandbox: Sandbox) -> None:
    async def accepted_and_run(code: str) -> JsonValue:
        await sandbox.check_transform(code)
        return await sandbox.transform(code, STATE, SECONDS)

    found = await asyncio.gather(*(accepted_and_run(code) for _, code, _ in WHOLE_TRANSFORMS))
    assert {name: value for (name, _, _), value in zip(WHOLE_TRANSFORMS, found, strict=True)} == {
        name: expected for name, _, expected in WHOLE_TRANSFORMS
    }


async def test_without_whole_python_each_of_them_is_refused_or_fails() -> None:
    async with Sandbox(processes=1) as alone:
        for name, code, _ in WHOLE_TRANSFORMS:
            with pytest.raises((CodeRefused, CodeFailed)):
                raise AssertionError(name, await alone.transform(code, STATE, SECONDS))


async def test_both_give_the_same_results(sandbox: Sandbox) -> None:
    async def both(code: str) -> JsonValue:
        return await sandbox.transform(FORCED + code, STATE, SECONDS)

    scripts = [(c, e) for n, c, e in TRANSFORMS if "from __future__" not in c]
    assert await asyncio.gather(*(both(code) for code, _ in scripts)) == [expected for _, expected in scripts]


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("class A(B):\n    pass", "The sandbox cannot do `B`: name 'B' is not defined (line 1)."),
        ("x = 1\nimport numpy", "The sandbox cannot do `import numpy`: No module named 'numpy' (line 2)."),
        ("from zoneinfo import ZoneInfo", "The sandbox cannot do `from zoneinfo import ZoneInfo`: "),
        ("x = 1\nclass A(dict):\n  x = = 1", "The code is not valid Python: invalid syntax (line 3)."),
        ("import statistics\nresult = true", "The sandbox cannot do `true`: name 'true' is not defined (line 2)."),
    ],
)
async def test_what_python_lacks_too_is_refused_with_the_line(sandbox: Sandbox, code: str, sentence: str) -> None:
    with pytest.raises(CodeRefused) as refused:
        await sandbox.check_transform(code)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("code", "error", "sentence"),
    [
        ("x = state['nope']", CodeFailed, "KeyError: 'nope' (line 3)"),
        ("def f():\n    raise _Forced('own')\nf()", CodeFailed, "_Forced: own (line 4)"),
        ("result = {1, 2}", CodeFailed, "TypeError: Object of type set is not JSON serializable"),
        ("result = float('nan')", CodeFailed, "The result is not JSON that can be stored: "),
        ("result = 'r' * (2 << 20)", CodeLimit, "The result is longer than 1 MiB of JSON."),
        ("print('r' * (2 << 20))", CodeLimit, "The code prints more than fits (line 3)."),
        ("x = 'r' * (200 << 20)", CodeLimit, "The code needs more than 96 MiB of memory (line 3)."),
        ("while True: pass", CodeLimit, "The code ran longer than 2 s."),
        ("def f(): f()\nf()", CodeLimit, "The code nests its calls or its data too deeply (line 3)."),
        ("import os\nos._exit(0)", CodeFailed, "The code ended without a result."),
        ("import ctypes\nctypes.string_at(0)", CodeFailed, "The code ended its process (Segmentation fault)."),
    ],
)
async def test_ends_are_told_as_the_interpreter_tells_them(
    sandbox: Sandbox, code: str, error: type[Exception], sentence: str
) -> None:
    said = await outcome(sandbox, code, 2.0)
    assert isinstance(said, error), said
    assert str(said).startswith(sentence)


async def test_printed_json_is_the_result_where_there_is_no_other(sandbox: Sandbox) -> None:
    assert await outcome(sandbox, "print(json.dumps({'a': 1}))") == {"a": 1}
    assert await outcome(sandbox, "print('a', 'b')") == "a b"
    assert await outcome(sandbox, "x = 1") is None


async def test_a_script_that_fails_for_its_own_reasons_is_not_run_again(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> tuple[str, str]:
        raise AssertionError

    monkeypatch.setattr(LockedPython, "run", never)
    with pytest.raises(CodeFailed, match="KeyError"):
        await sandbox.transform("result = state['nope']", {}, SECONDS)


# ---- what means harm


async def test_exhausting_code_is_stopped(sandbox: Sandbox) -> None:
    for name, said in (await outcomes(sandbox, EXHAUSTING, SHORT)).items():
        assert isinstance(said, CodeLimit | CodeFailed), (name, said)


async def test_code_that_reaches_outside_gets_nothing(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_TEST_SECRET", "seen")
    for name, said in (await outcomes(sandbox, ESCAPING)).items():
        assert not isinstance(said, SandboxCrashed), (name, said)
        for secret in ("seen", "root:", "uid="):
            assert secret not in str(said), (name, said)
    assert not os.path.exists("/tmp/sandbox-was-here")  # noqa: S108, ASYNC240 - the path that the snippets write


async def test_odd_code_ends_in_time(sandbox: Sandbox) -> None:
    for name, said in (await outcomes(sandbox, ODD, SHORT)).items():
        assert not isinstance(said, SandboxCrashed), (name, said)


NATIVE = {
    "forged answer": 'import os\nos.write(1, b\'{"result": "7"}\')\nos._exit(0)',
    "no answer": "import os\nos.write(1, b'{')\nos._exit(0)",
    "an answer of another form": "import os\nos.write(1, b'[1]')\nos._exit(0)",
    "deep answer": "import os\nos.write(1, b'[' * 100000)\nos._exit(0)",
    "flood": "import os\nwhile True:\n    os.write(1, b'x' * 65536)",
    "ignores signals": (
        "import signal\nfor n in range(1, 65):\n    try:\n        signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass"
    ),
    "other descriptors": (
        "import os\nfound = []\nfor fd in range(2, 200):\n    try:\n        found.append(os.read(fd, 10))\n"
        "    except OSError:\n        pass\nassert not found, found"
    ),
    "closes its answer": "import os\nos.close(1)",
    "breaks json": "json.dumps = None\nresult = 1",
    "breaks sys": "import sys\nfor name in list(sys.modules):\n    del sys.modules[name]\nresult = 1",
    "breaks builtins": "__builtins__ = None\nlen = None\nresult = 1",
    "raises what cannot be told": ("class E(Exception):\n    def __str__(self):\n        raise self\nraise E()"),
    "lies about its name": "class E(Exception):\n    pass\nE.__name__ = 'x' * 10 ** 6\nraise E()",
    "wild pointer": "import ctypes\nctypes.memset(0x1234, 1, 100)",
    "smashes its objects": "import ctypes\nctypes.memset(id(json), 255, 4096)\nresult = 1",
    "more memory": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    ),
    "thread": "import _thread\n_thread.start_new_thread(print, ())",
    "faults of the stack": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n    return f((x,))\nf(0)",
    "billion laughs": (
        "import xml.etree.ElementTree as E\nd = '<!DOCTYPE a [<!ENTITY x0 \"y\">' + ''.join(\n"
        "    f'<!ENTITY x{n} \"' + f'&x{n - 1};' * 10 + '\">' for n in range(1, 20)) + ']><a>&x19;</a>'\n"
        "result = len(E.fromstring(d).text)"
    ),
    "external entity": (
        "import xml.etree.ElementTree as E\n"
        "result = E.fromstring('<!DOCTYPE a [<!ENTITY x SYSTEM \"file:///etc/passwd\">]><a>&x;</a>').text"
    ),
    "collisions": "class K:\n    def __hash__(self):\n        return 1\nresult = len({K(): 1 for _ in range(10 ** 5)})",
    "catches memory errors": (
        "keep = []\nwhile True:\n    try:\n        keep.append(bytearray(1 << 20))\n"
        "    except MemoryError:\n        pass"
    ),
}
"""Harm that only whole Python can try."""


async def test_native_harm_stays_inside(sandbox: Sandbox) -> None:
    found = await outcomes(sandbox, NATIVE, 2.0)
    for name, said in found.items():
        assert not isinstance(said, SandboxCrashed), (name, said)
        assert "root:" not in str(said), (name, said)
    assert found["forged answer"] == 7
    assert found["breaks builtins"] == 1
    for name in ("flood", "ignores signals", "catches memory errors", "collisions"):
        assert isinstance(found[name], CodeLimit), (name, found[name])
    for name in ("closes its answer", "more memory", "thread", "wild pointer", "no answer", "deep answer"):
        assert isinstance(found[name], CodeFailed), (name, found[name])


async def test_every_other_system_call_is_refused(sandbox: Sandbox) -> None:
    """All numbers that there are, called from native code; those of the other convention of the processor too."""
    column = 0 if platform.machine() == "x86_64" else 1
    allowed = {
        each[column] for table in (locked_child._ALLOWED, locked_child._NOT_EXECUTABLE) for each in table.values()
    }
    # The kernel's own, of its probes: whoever else makes them is ended by SIGILL, filter or not.
    allowed |= {335, 336} if column == 0 else set()
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
allowed = {sorted(allowed)}
answered = []
for number in range(1024):
    for base in (0, 0x40000000):
        if base + number in allowed:
            continue
        ctypes.set_errno(0)
        if libc.syscall(ctypes.c_long(base + number), 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != {errno.EPERM}:
            answered.append((base, number, ctypes.get_errno()))
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
failed = ctypes.c_void_p(-1).value
plain = libc.mmap(None, 4096, 3, 0x22, -1, 0)
result = {{
    "answered": answered,
    "plain": plain != failed,
    "executable": libc.mmap(None, 4096, 7, 0x22, -1, 0) != failed,
    "made executable": libc.mprotect(plain, 4096, 5) == 0,
}}
"""
    assert await outcome(sandbox, code) == {
        "answered": [],
        "plain": True,
        "executable": False,
        "made executable": False,
    }


async def test_the_process_has_nothing_of_ours(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:pass@host")
    code = (
        "import os, sys, gc\nresult = [dict(os.environ), sys.argv[1:], sys.path,"
        " sorted(m for m in sys.modules if 'synapse' in m),"
        " any(''.join(['pa', 'ss@']) in repr(o) for o in gc.get_objects())]"
    )
    assert await outcome(sandbox, code) == [{}, [], [], [], False]


# ---- where it cannot be had


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filters_are_whole_for_both_processors(machine: str) -> None:
    program = locked_child.filter_program(machine)
    statements = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    assert statements[0] == (0x20, 0, 0, 4)
    assert statements[-1] == (0x06, 0, 0, 0x00050000 | errno.EPERM)
    for at, (code, yes, no, _) in enumerate(statements):
        if code != 0x06:  # a jump stays inside
            assert at + 1 + max(yes, no) < len(statements)
    # Never that of the other processor, nor one that opens, connects, starts or signals.
    column = 0 if machine == "x86_64" else 1
    allowed = [each[column] for each in locked_child._ALLOWED.values()]
    assert len(allowed) == len(set(allowed))
    forbidden = {
        "x86_64": {2, 41, 42, 56, 57, 58, 59, 62, 101, 257, 272, 310, 317, 322, 425, 435},
        "aarch64": {56, 97, 117, 129, 131, 198, 203, 220, 221, 270, 277, 281, 425, 435},
    }[machine]
    assert not forbidden & set(allowed)


async def test_without_a_lock_nothing_runs_and_the_refusal_is_the_interpreters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "locked_child.py"
    program.write_text("print('unusable: seccomp is refused: Operation not permitted')")
    monkeypatch.setattr(locked_python, "_PROGRAM", str(program))
    async with LockedPython() as whole, Sandbox(processes=1, whole=whole) as sandbox:
        for _ in range(2):
            with pytest.raises(CodeRefused, match="does not support class inheritance"):
                await sandbox.transform(FORCED, {}, SECONDS)
            with pytest.raises(CodeRefused, match="does not support class inheritance"):
                await sandbox.check_transform(FORCED)
    assert [record.getMessage() for record in caplog.records] == [
        "transforms that need all of Python are refused here: seccomp is refused: Operation not permitted"
    ]


def test_an_unknown_processor_has_no_filter() -> None:
    with pytest.raises(locked_child.CannotLock, match="the system calls of riscv64 are not known here"):
        locked_child.filter_program("riscv64")


async def test_a_process_that_was_killed_while_it_waited_fails_no_script() -> None:
    async with LockedPython(processes=1) as whole:
        assert (await whole.run("result = 1", "{}", 5.0))[0] == "1"
        assert whole._spare is not None
        spare = (await whole._spare).process
        spare.kill()
        spare.wait()
        assert (await whole.run("result = 2", "{}", 5.0))[0] == "2"


def test_processes_that_start_beside_a_script_hold_nothing_of_its() -> None:
    """In the worker's loop, with a thread that starts processes as the interpreter's pool does: they inherit all."""
    started: list[subprocess.Popen[bytes]] = []
    done = threading.Event()

    def start() -> None:
        while not done.is_set() and len(started) < 500:
            started.append(subprocess.Popen(["sleep", "60"], close_fds=False))

    async def run() -> list[str]:
        async with LockedPython(processes=2) as whole:
            answers = await asyncio.gather(*(whole.run(f"result = {number}", "{}", 10.0) for number in range(20)))
        return [result for result, _ in answers]

    beside = threading.Thread(target=start)
    beside.start()
    try:
        assert uvloop.run(run()) == [str(number) for number in range(20)]
    finally:
        done.set()
        beside.join()
        for process in started:
            process.kill()
            process.wait()
