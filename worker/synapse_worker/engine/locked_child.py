"""The program of `locked_python`: Python that runs one script of a user in a process that can do nothing else.

It is started for one script, with no environment and only a socket to its parent. It imports what scripts may use,
takes its limits, and then locks itself: from there on the kernel refuses every call but those for memory, time and that
socket, so whatever a script finds in this process, native code included, it cannot open, connect, start or signal
anything.
Only then does it say `ready` and read the script. Standard library only; nothing of ours is imported.
"""

from __future__ import annotations

import ast
import base64
import binascii
import bisect
import calendar
import cmath
import collections.abc
import colorsys
import contextlib
import copy
import csv
import ctypes
import dataclasses
import datetime
import decimal
import difflib
import enum
import errno
import fractions
import functools
import hashlib
import heapq
import hmac
import html.parser
import importlib
import io
import itertools
import json
import logging
import math
import numbers
import operator
import os
import platform
import pprint
import random
import re
import resource
import secrets
import shlex
import signal
import statistics
import string
import struct
import sys
import textwrap
import time
import traceback
import types
import typing
import unicodedata
import urllib.parse
import uuid
import warnings
import xml.etree.ElementTree
import zlib

# What the modules above import at their first use only.
_LATE = (
    *("_strptime", "html.entities", "tomllib", "stringprep", "encodings.idna", "encodings.ascii", "encodings.latin_1"),
    *("encodings.cp1252", "encodings.cp437", "encodings.utf_16", "encodings.utf_16_le", "encodings.utf_32"),
    *("encodings.utf_8_sig", "encodings.unicode_escape", "encodings.raw_unicode_escape", "encodings.iso8859_15"),
)
# Named, so that nobody takes them for unused: scripts import them.
MODULES = (
    *(ast, base64, binascii, bisect, calendar, cmath, collections.abc, colorsys, contextlib, copy, csv, dataclasses),
    *(datetime, decimal, difflib, enum, fractions, functools, hashlib, heapq, hmac, html.parser, itertools, logging),
    *(
        math,
        numbers,
        operator,
        pprint,
        random,
        re,
        secrets,
        shlex,
        statistics,
        string,
        struct,
        textwrap,
        time,
        traceback,
    ),
    *(types, typing, unicodedata, urllib.parse, uuid, warnings, xml.etree.ElementTree, zlib),
)

MEMORY_BYTES = 96 * 1024 * 1024
"""What a script may use beside what this program has."""
_CPU_SECONDS = 35
"""Whoever started it ends it earlier; this holds when nobody does."""
_MOST_PRINTED = 1024 * 1024
SCRIPT = "<script>"

_X86_64, _AARCH64 = "x86_64", "aarch64"
_AUDIT = {_X86_64: 0xC000003E, _AARCH64: 0xC00000B7}
_ALLOWED: dict[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1 = not there
    "read": (0, 63),
    "write": (1, 64),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, -1),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "sched_yield": (24, 124),
    "getrandom": (318, 278),
}
_NOT_EXECUTABLE: dict[str, tuple[int, int]] = {"mmap": (9, 222), "mprotect": (10, 226)}
"""Allowed for memory that is not to be executed."""

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
_NUMBER_AT, _ARCHITECTURE_AT, _PROTECTION_AT = 0, 4, 32
_PROT_EXEC = 4
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 4, 22, 38
_FILTER = 2


class CannotLock(Exception):
    """This platform has nothing to lock a process with."""


def filter_program(machine: str) -> bytes:
    """Return the seccomp filter of a machine as the kernel takes it: a sequence of struct sock_filter.

    Raises:
        CannotLock: nobody knows the numbers of its system calls.
    """
    if machine not in _AUDIT:
        raise CannotLock(f"the system calls of {machine} are not known here")
    column = 0 if machine == _X86_64 else 1

    def statement(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    program = [
        statement(_LOAD, _ARCHITECTURE_AT),
        statement(_EQUAL, _AUDIT[machine], yes=1),
        statement(_RETURN, _KILL),
        statement(_LOAD, _NUMBER_AT),
    ]
    for numbers_ in _ALLOWED.values():
        if numbers_[column] >= 0:
            program += [statement(_EQUAL, numbers_[column], no=1), statement(_RETURN, _ALLOW)]
    for numbers_ in _NOT_EXECUTABLE.values():
        program += [
            statement(_EQUAL, numbers_[column], no=4),
            statement(_LOAD, _PROTECTION_AT),
            statement(_ANY_BIT, _PROT_EXEC, no=1),
            statement(_RETURN, _REFUSE),
            statement(_RETURN, _ALLOW),
        ]
    program.append(statement(_RETURN, _REFUSE))
    return b"".join(program)


def lock() -> None:
    """Give up all but memory, time, input and output, for good.

    Raises:
        CannotLock: the kernel, or whoever confines us, does not let us.
    """
    if sys.platform != "linux":
        raise CannotLock(f"{sys.platform} has no seccomp")
    program = filter_program(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("statements", ctypes.c_char_p))

    calls: tuple[tuple[int, object], ...] = (
        (_SET_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL)),
        (_SET_DUMPABLE, ctypes.c_ulong(0)),
        (_SET_NO_NEW_PRIVILEGES, ctypes.c_ulong(1)),
    )
    zero = ctypes.c_ulong(0)
    for option, value in calls:
        if libc.prctl(option, value, zero, zero, zero) != 0:
            raise CannotLock(f"prctl {option} is refused: {os.strerror(ctypes.get_errno())}")
    filter_ = Program(len(program) // 8, program)
    if libc.prctl(_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.byref(filter_), zero, zero) != 0:
        raise CannotLock(f"seccomp is refused: {os.strerror(ctypes.get_errno())}")
    # What was asked for must hold, or nothing of a user's runs here.
    try:
        os.getsid(0)
    except OSError:
        return
    raise CannotLock("a system call that the filter refuses is answered")


def limit() -> None:
    """Take limits of memory, processor time, files and core dumps, and be the first to go when memory runs out."""
    with open("/proc/self/statm", encoding="ascii") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    os.nice(5)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_AS, present + MEMORY_BYTES),
    ):
        resource.setrlimit(what, (most, most))


class _Printed(io.StringIO):
    """What a script prints, up to a limit."""

    def write(self, text: str, /) -> int:
        if self.tell() + len(text) > _MOST_PRINTED:
            raise MemoryError("prints")
        return super().write(text)


def run(code: str, state: str) -> dict[str, object]:
    """Run a transform; returns `result` as JSON text and what was printed, or a `problem`, its `text` and `line`."""
    printed = _Printed()
    sys.stdout = printed
    try:
        scope: dict[str, object] = {"__name__": "__main__", "json": json, "state": json.loads(state), "result": None}
        exec(compile(code, SCRIPT, "exec", dont_inherit=True), scope)  # noqa: S102 - what this process is for
        return {"result": json.dumps(scope.get("result")), "printed": printed.getvalue()}
    except BaseException as error:
        return _problem(error)


def check(code: str, probes: list[list[object]]) -> dict[str, object]:
    """Compile a transform and try its imports and names (line, statement) without running it; returns as `run`."""
    try:
        compile(code, SCRIPT, "exec", dont_inherit=True)
    except BaseException as error:
        return _problem(error)
    for line, probe in probes:
        try:
            exec(str(probe), {})  # noqa: S102 - an import or a name
        except BaseException as error:
            return {"problem": "lacks", "text": f"`{probe}`: {error}", "line": line}
    return {"result": "null", "printed": ""}


def _problem(error: BaseException) -> dict[str, object]:
    kind = "failed"
    if isinstance(error, MemoryError):
        kind = "prints" if error.args == ("prints",) else "memory"
    elif isinstance(error, RecursionError):
        kind = "depth"
    elif isinstance(error, SyntaxError) and error.filename == SCRIPT:
        return {"problem": "syntax", "text": str(error.msg), "line": error.lineno or 0}
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == SCRIPT:
            line = trace.tb_lineno
        trace = trace.tb_next
    try:
        said = " ".join(str(error).split())[:400]
    except BaseException:
        said = ""
    name = type(error).__name__
    return {"problem": kind, "text": f"{name}: {said}" if said else name, "line": line}


def _say(answer: bytes) -> None:
    while answer:
        answer = answer[os.write(1, answer) :]


def _read() -> bytes:
    parts = []
    while part := os.read(0, 1 << 16):
        parts.append(part)
    return b"".join(parts)


def main() -> None:
    """Lock up, say so, run what comes, answer and end."""
    try:
        for name in _LATE:
            importlib.import_module(name)
        "".encode("idna")
        os.environ.clear()  # Python itself has put its locale there
        # Nothing more is found; what is asked for and not here is told at once.
        sys.path.clear()
        sys.path_hooks.clear()
        sys.path_importer_cache.clear()
        limit()
        lock()
    except (CannotLock, OSError, ValueError, ImportError) as error:
        _say(f"unusable: {error}\n".encode())
        os._exit(1)
    _say(b"ready\n")
    request = json.loads(_read())
    sys.stdin = io.StringIO("")
    sys.stderr = io.StringIO()
    sys.setrecursionlimit(1000)
    probes = request.get("probes")
    write, dumps, leave = _say, json.dumps, os._exit
    answer = check(request["code"], probes) if probes is not None else run(request["code"], request["state"])
    try:
        text = dumps(answer)
    except BaseException as error:
        text = dumps(_problem(error))
    write(text.encode())
    leave(0)


if __name__ == "__main__":
    main()
