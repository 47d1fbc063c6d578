"""Runs users' transforms in CPython, for what the sandbox's interpreter lacks: classes that inherit, `yield`, modules.

Each script gets a process of its own that has locked itself by seccomp before it reads it (`locked_child`): no file,
socket, process or signal, no environment, a limit of memory. Here those processes are started, timed and killed, and
their answers, which a script may have forged, are read as what they are: somebody's text of bounded size. One process
is kept ready from the first use on. Where the kernel or the platform offers no such lock, nothing runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from synapse_worker.engine.dialect import Need
from synapse_worker.engine.errors import CodeFailed, CodeLimit, CodeRefused, SandboxCrashed
from synapse_worker.engine.locked_child import MEMORY_BYTES

log = logging.getLogger(__name__)

_PROGRAM = str(Path(__file__).with_name("locked_child.py"))
_START_SECONDS = 15.0
_CHECK_SECONDS = 5.0
_MOST_ANSWER_BYTES = 8 * 1024 * 1024
"""The texts in an answer are bounded by whoever reads them; escaped, each may be several times as long."""


class Unusable(Exception):
    """A process that locks itself cannot be had here; `str()` says why."""


@dataclass(frozen=True, slots=True)
class _Child:
    """A process and the socket that is its input and its output."""

    process: subprocess.Popen[bytes]
    output: asyncio.StreamReader
    input: asyncio.StreamWriter


class LockedPython:
    """Runs scripts; an async context manager, used from one event loop.

    Args:
        processes: scripts that run at once; further ones wait.
    """

    def __init__(self, *, processes: int = 2) -> None:
        self._places = asyncio.Semaphore(processes)
        self._spare: asyncio.Task[_Child] | None = None
        self._problem: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.cancel()
            with suppress(Unusable, SandboxCrashed, asyncio.CancelledError):
                await _end(await spare)

    async def run(self, code: str, state: str, seconds: float) -> tuple[str, str]:
        """Run a transform over a state.

        Args:
            code: the user's script.
            state: JSON text of the keys that it reads.
            seconds: how long it may take.

        Returns:
            Its result as JSON text, and what it printed; both as the script wants them to be.

        Raises:
            Unusable: nothing can run here.
            CodeRefused: it is no Python.
            CodeFailed: it raised an exception, or ended its process.
            CodeLimit: it passed the time, the memory or a size.
            SandboxCrashed: a process could not be started; trying again may help.
        """
        answer = await self._ask({"code": code, "state": state}, seconds)
        return _text(answer, "result"), _text(answer, "printed")

    async def check(self, code: str, needs: Sequence[Need]) -> None:
        """Judge a transform without running it: its syntax, its imports and the names that it does not define.

        Raises:
            Unusable, SandboxCrashed: there is no verdict.
            CodeRefused: it cannot run, with the line.
        """
        probes = [[need.line, need.probe] for need in needs]
        try:
            await self._ask({"code": code, "probes": probes}, _CHECK_SECONDS)
        except (CodeFailed, CodeLimit) as error:
            raise CodeRefused(str(error)) from None

    async def _ask(self, request: Mapping[str, object], seconds: float) -> Mapping[str, object]:
        async with self._places:
            child = await self._take()
            try:
                async with asyncio.timeout(seconds):
                    text = await _converse(child, json.dumps(request).encode())
                    code = await _exit_code(child)
            except TimeoutError:
                raise CodeLimit(f"The code ran longer than {seconds:g} s.") from None
            finally:
                await _end(child)
        return _understood(text, code, seconds)

    async def _take(self) -> _Child:
        """Return a process that waits for its script, and have the next one started.

        Raises:
            Unusable: it said that it cannot lock itself, now or before.
            SandboxCrashed: it did not start.
        """
        if self._problem is not None:
            raise Unusable(self._problem)
        spare, self._spare = self._spare, None
        try:
            child = await (spare or _start())
            if child.process.poll() is not None:  # the kernel takes idle ones first when memory runs out
                await _end(child)
                child = await _start()
        except Unusable as error:
            self._problem = str(error)
            log.warning("transforms that need all of Python are refused here: %s", error)
            raise
        if self._spare is None:
            self._spare = asyncio.create_task(_start())
        return child


async def _start() -> _Child:
    """Start a process; returns once it is locked and waits for its script."""
    if sys.platform != "linux":
        raise Unusable(f"{sys.platform} has no seccomp")
    child: _Child | None = None
    try:
        child = await _spawn()
        async with asyncio.timeout(_START_SECONDS):
            said = (await child.output.readline()).decode(errors="replace").strip()
    except (OSError, TimeoutError) as error:
        if child is not None:
            await _end(child)
        raise SandboxCrashed(f"A process for the code could not be started: {error!r}.") from error
    except BaseException:
        if child is not None:
            await _end(child)
        raise
    if said == "ready":
        return child
    await _end(child)
    if said.startswith("unusable: "):
        raise Unusable(said.removeprefix("unusable: ")[:200])
    raise SandboxCrashed("A process for the code ended before it was ready.")


async def _spawn() -> _Child:
    """Start the program with a socket to us.

    Not with the event loop's own subprocesses: uvloop's have ends of pipes that any process inherits which another
    thread starts meanwhile, as the interpreter's pool does. That one keeps them open, and their end is never seen.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            output, input_ = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        try:
            # In this thread, since the process dies with the one that started it; it takes less than a millisecond.
            process = subprocess.Popen(  # noqa: ASYNC220
                (sys.executable, "-I", "-S", "-B", "-X", "utf8", _PROGRAM),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            input_.close()
            raise
    return _Child(process, output, input_)


async def _converse(child: _Child, request: bytes) -> bytes:
    """Send the request and return the answer, as much of it as is read at all."""
    answer = bytearray()
    with suppress(ConnectionError):  # it ended before it had read all; its exit code, read next, says how
        child.input.write(request)
        await child.input.drain()
        child.input.write_eof()
        while part := await child.output.read(1 << 16):
            answer += part
            if len(answer) > _MOST_ANSWER_BYTES:
                raise CodeLimit("The result, or what the code prints, is too long.")
    return bytes(answer)


async def _exit_code(child: _Child) -> int:
    """Wait until a process has ended; negative, as `Popen` has it, when a signal ended it."""
    return await asyncio.to_thread(child.process.wait)


async def _end(child: _Child) -> None:
    child.input.close()
    child.process.kill()
    await _exit_code(child)


def _understood(text: bytes, code: int, seconds: float) -> Mapping[str, object]:
    """Return a good answer, or raise what a bad one means."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        if code == -signal.SIGXCPU:
            raise CodeLimit(f"The code ran longer than {seconds:g} s.")
        if code < 0:
            raise CodeFailed(f"The code ended its process ({signal.strsignal(-code) or -code}).")
        raise CodeFailed("The code ended without a result.")
    problem, said, line = answer.get("problem"), _text(answer, "text")[:500], answer.get("line")
    place = f" (line {line})" if isinstance(line, int) and line > 0 else ""
    match problem:
        case None:
            return answer
        case "memory":
            raise CodeLimit(f"The code needs more than {MEMORY_BYTES >> 20} MiB of memory{place}.")
        case "prints":
            raise CodeLimit(f"The code prints more than fits{place}.")
        case "depth":
            raise CodeLimit(f"The code nests its calls or its data too deeply{place}.")
        case "syntax":
            raise CodeRefused(f"The code is not valid Python: {said}{place}.")
        case "lacks":
            raise CodeRefused(f"The sandbox cannot do {said}{place}.")
        case _:
            raise CodeFailed(f"{said}{place}")


def _text(answer: Mapping[str, object], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""
