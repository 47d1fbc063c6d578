"""Runs the users' Python where it can do no harm.

The interpreter (pydantic-monty) lives in child processes without environment, files or network; this module gives
it the state as JSON text, takes a JSON text back, and turns each way to fail into one of our errors. Every run of
user code gets a session of its own, so nothing stays behind. What code may say is in docs/expressions.md; what is
rewritten on the way in is in `dialect`; conditions that only compare what is in the state need no interpreter
(`plain_expressions`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum, auto
from types import TracebackType
from typing import Self

import pydantic_monty as monty

from synapse_worker.engine import dialect, plain_expressions
from synapse_worker.engine.errors import CodeFailed, CodeLimit, CodeRefused, EngineError, SandboxCrashed
from synapse_worker.engine.json_values import JsonValue, NotJson, dumps, loads
from synapse_worker.engine.locked_python import LockedPython, Unusable
from synapse_worker.engine.plain_expressions import NotPlain

MEMORY_BYTES = 32 * 1024 * 1024
"""Heap of one run of user code."""

MAX_STATE_BYTES = 4 * 1024 * 1024
"""JSON text of the state keys that the code reads; text of that size fits into the heap, records may not."""

MAX_OUTPUT_BYTES = 1024 * 1024
"""JSON text of a result, and of what a transform prints."""

MAX_CALL_DEPTH = 200

# A worker process is replaced after so many sessions, so that a grown heap is given back.
_SESSIONS_PER_PROCESS = 1000

# Verdicts of the admission check that are remembered: a run checks its whole definition when it starts.
_VERDICTS = 2048

_EXPRESSION = "import json as _json\n" + dialect.EXPRESSION_HELPERS + "state = _json.loads(_state)\n"
_TRANSFORM = "import json\n" + dialect.TRANSFORM_HELPERS + "state = json.loads(_state)\n_state = result = None\n"
_TOOL = "import json\n" + dialect.TRANSFORM_HELPERS + "_args = json.loads(_state)\n_state = None\n"
_RESULT = "import json as _json\n_json.dumps(result)"
_STOP = "raise StopIteration('checked')\n"


class _Script(Enum):
    """What a piece of code is written for: what it is given, and how it answers."""

    EXPRESSION = auto()
    TRANSFORM = auto()
    TOOL = auto()


_JUDGED_BY: Mapping[_Script, tuple[Callable[[str], dialect.Prepared], Callable[[str], Sequence[dialect.Need]]]] = {
    _Script.EXPRESSION: (dialect.prepare_expression, dialect.expression_needs),
    _Script.TRANSFORM: (dialect.prepare_transform, dialect.transform_needs),
    _Script.TOOL: (dialect.prepare_transform, dialect.tool_needs),
}


class Sandbox:
    """A pool of interpreter processes; an async context manager, used from one event loop.

    Args:
        processes: interpreter processes at most; further calls wait for one to be free. One is kept warm.
        max_seconds: upper end of every time limit.
        whole: runs transforms that need more of Python than the interpreter has; None = they are refused.
    """

    def __init__(self, *, processes: int = 2, max_seconds: float = 30.0, whole: LockedPython | None = None) -> None:
        self._max_seconds = max_seconds
        self._whole = whole
        self._pool = monty.AsyncMonty(
            min_processes=1,
            max_processes=processes,
            # Kills a process that does not stop by itself at the time limit.
            request_timeout=max_seconds + 2.0,
            max_checkouts_per_worker=_SESSIONS_PER_PROCESS,
        )
        self._verdicts: OrderedDict[tuple[_Script, str], str | None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, traceback)

    async def evaluate(self, expression: str, state: Mapping[str, object], seconds: float) -> JsonValue:
        """Return the value of an expression over `state`.

        Raises:
            CodeRefused: it is no expression that the sandbox takes.
            CodeFailed: it raised an exception, or its value is not JSON.
            CodeLimit: it passed `seconds`, the memory or a size.
            SandboxCrashed: the process went away; trying again may help.
        """
        return await self._expression(expression, state, seconds, truth=False)

    async def test(self, expression: str, state: Mapping[str, object], seconds: float) -> bool:
        """Return whether an expression is true over `state`, as `if` would see it; errors as `evaluate`."""
        return bool(await self._expression(expression, state, seconds, truth=True))

    async def transform(self, code: str, state: Mapping[str, object], seconds: float) -> JsonValue:
        """Run a script over a copy of `state` and return its `result`.

        A script that leaves `result` unset and prints instead has as its result the JSON that it printed, or the
        printed text where that is no JSON. Errors as `evaluate`.
        """
        prepared = dialect.prepare_transform(code)
        state_text = _state_text(state, prepared.state_keys)
        try:
            return await self._interpreted(prepared, state_text, seconds)
        except (CodeRefused, CodeFailed) as error:
            if self._whole is None or not _may_be_lacking(error):
                raise
            # A transform changes nothing but its own copy of the state, so it may be run from its start again.
            try:
                text, printed = await self._whole.run(code, state_text, self._bounded(seconds))
            except Unusable:
                raise error from None
        return _result(text, printed)

    async def _interpreted(self, prepared: dialect.Prepared, state_text: str, seconds: float) -> JsonValue:
        printed = monty.CollectString(max_bytes=MAX_OUTPUT_BYTES)
        async with _Session(self._pool, self._bounded(seconds)) as session:
            await session.feed(_TRANSFORM, state=state_text)
            await session.feed(prepared.source, prepared=prepared, printed=printed)
            text = await session.feed(_RESULT)
        return _result(text, printed.output)

    async def run(self, code: str, arguments: Mapping[str, object], seconds: float) -> str:
        """Run the script of a custom tool, which is given `_args`, and return what it prints; errors as `evaluate`."""
        prepared = dialect.prepare_transform(code)
        printed = monty.CollectString(max_bytes=MAX_OUTPUT_BYTES)
        async with _Session(self._pool, self._bounded(seconds)) as session:
            await session.feed(_TOOL, state=_state_text(arguments, None))
            await session.feed(prepared.source, prepared=prepared, printed=printed)
        return printed.output.strip()

    async def check_expression(self, text: str) -> None:
        """Judge an expression without running it.

        Raises:
            CodeRefused: with the line; the same sentence each time.
            SandboxCrashed: the process went away without a verdict.
        """
        await self._check(_Script.EXPRESSION, text)

    async def check_transform(self, code: str) -> None:
        """Judge a script without running it, its imports apart; errors as `check_expression`."""
        await self._check(_Script.TRANSFORM, code)

    async def check_tool(self, code: str) -> None:
        """Judge the script of a custom tool, which is given `_args` and prints its result; as `check_transform`."""
        await self._check(_Script.TOOL, code)

    async def _expression(
        self, expression: str, state: Mapping[str, object], seconds: float, *, truth: bool
    ) -> JsonValue:
        prepared = dialect.prepare_expression(expression)
        with suppress(NotPlain):
            plain = plain_expressions.evaluate(prepared.source, state)
            return bool(plain) if truth else plain
        state_text = _state_text(state, prepared.state_keys)
        value = f"bool({prepared.source})" if truth else prepared.source
        async with _Session(self._pool, self._bounded(seconds)) as session:
            text = await session.feed(f"{_EXPRESSION}_json.dumps({value})", state=state_text)
        return _value(text)

    async def _check(self, script: _Script, text: str) -> None:
        key = (script, text)
        if key not in self._verdicts:
            try:
                await self._judge(script, text)
                verdict = None
            except CodeRefused as refused:
                verdict = str(refused)
            self._verdicts[key] = verdict
            if len(self._verdicts) > _VERDICTS:
                self._verdicts.popitem(last=False)
        self._verdicts.move_to_end(key)
        sentence = self._verdicts[key]
        if sentence is not None:
            raise CodeRefused(sentence)

    async def _judge(self, script: _Script, text: str) -> None:
        prepare, needs = _JUDGED_BY[script]
        prepared = prepare(text)
        needed = needs(text)
        try:
            async with _Session(self._pool, self._max_seconds) as session:
                await session.compile(prepared)
                await session.probe(needed)
        except CodeRefused as refused:
            if self._whole is None or script is not _Script.TRANSFORM:
                raise
            try:
                await self._whole.check(text, needed)
            except Unusable:
                raise refused from None

    def _bounded(self, seconds: float) -> float:
        return min(seconds, self._max_seconds)


class _Session:
    """One run of user code in one process, with its limits; translates the interpreter's errors."""

    def __init__(self, pool: monty.AsyncMonty, seconds: float) -> None:
        self._seconds = seconds
        self._checkout = pool.checkout(
            limits={
                "max_feed_duration_secs": seconds,
                "max_memory": MEMORY_BYTES,
                "max_recursion_depth": MAX_CALL_DEPTH,
                "max_suspensions": 50,
                "max_total_sleep_secs": 0,
            },
            # A sleep is not counted as running time by the interpreter, so it must not wait at all.
            os_policy={"sleep": "zero"},
        )

    async def __aenter__(self) -> Self:
        try:
            self._session = await self._checkout.__aenter__()
        except (monty.MontyError, RuntimeError, OSError) as error:
            raise SandboxCrashed(f"The sandbox could not be started: {error}.") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._checkout.__aexit__(kind, error, traceback)

    async def feed(
        self,
        source: str,
        *,
        state: str | None = None,
        prepared: dialect.Prepared | None = None,
        printed: monty.CollectString | None = None,
    ) -> object:
        """Run `source`; its last expression's value is returned. `prepared` says that lines of it are the user's."""
        try:
            return await self._session.feed_run(
                source,
                inputs=None if state is None else {"_state": state},
                print_callback=printed or monty.CollectString(max_bytes=MAX_OUTPUT_BYTES),
            )
        except monty.MontyError as error:
            if state is not None and "recursion limit exceeded" in str(error):
                raise CodeLimit(f"The state nests deeper than {MAX_CALL_DEPTH} levels.") from None
            raise self._translated(error, prepared) from None

    async def compile(self, prepared: dialect.Prepared) -> None:
        """Have the code parsed and compiled, and stopped before its first statement.

        Raises:
            CodeRefused: it cannot be compiled.
        """
        try:
            await self._session.feed_run(_STOP + prepared.source)
        except monty.MontyRuntimeError as error:
            raised = error.exception()
            if isinstance(raised, StopIteration) and str(raised) == "checked":
                return
            raise self._translated(error, prepared, above=1) from None
        except monty.MontyError as error:
            raise self._translated(error, prepared, above=1) from None

    async def probe(self, needs: Sequence[dialect.Need]) -> None:
        """Ask the interpreter for the modules and names that the code needs.

        Raises:
            CodeRefused: it does not have one of them.
        """
        try:
            await self._session.feed_run("\n".join(need.probe for need in needs))
        except monty.MontyRuntimeError as error:
            frames = error.traceback()
            place = min(frames[-1].line, len(needs)) - 1 if frames else 0
            raise CodeRefused(_lacking(str(error.exception()), needs[place])) from None
        except monty.MontyError as error:
            raise self._translated(error, None) from None

    def _translated(self, error: monty.MontyError, prepared: dialect.Prepared | None, above: int = 0) -> EngineError:
        """Our error for the interpreter's; `above` lines of ours stand above the user's."""
        if isinstance(error, monty.MontyCrashedError):
            if error.timed_out:
                return self._too_slow()
            return SandboxCrashed(f"The sandbox process ended: {error}.")
        raised = error.exception()
        message = " ".join(str(raised).split())[:400]
        frames = error.traceback() if isinstance(error, monty.MontyRuntimeError | monty.MontySyntaxError) else []
        line = next((f.line for f in reversed(frames) if f.filename != "<string>"), 0) - above
        place = f" (line {prepared.user_line(line)})" if prepared is not None and line > 0 else ""
        if isinstance(error, monty.MontySyntaxError):
            return CodeRefused(f"The code is not valid Python: {message}{place}.")
        if isinstance(raised, NotImplementedError) and message.startswith(_UNSUPPORTED):
            return CodeRefused(f"The sandbox does not support {message.removeprefix(_UNSUPPORTED)}{place}.")
        if isinstance(raised, TimeoutError) and "time limit exceeded" in message:
            return self._too_slow()
        if isinstance(raised, MemoryError):
            return CodeLimit(f"The code needs more than {MEMORY_BYTES >> 20} MiB of memory{place}.")
        if isinstance(raised, RecursionError):
            return CodeLimit(f"The code nests its calls or its data deeper than {MAX_CALL_DEPTH} levels{place}.")
        return CodeFailed(f"{type(raised).__name__}: {message}{place}" if message else type(raised).__name__ + place)

    def _too_slow(self) -> CodeLimit:
        return CodeLimit(f"The code ran longer than {self._seconds:g} s.")


_LACKING = frozenset(
    {"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "NotImplementedError", "TypeError"}
)
"""Errors that code raises in an interpreter that lacks something."""

_UNSUPPORTED = "The monty syntax parser does not yet support "


def _lacking(message: str, need: dialect.Need) -> str:
    if " " in need.probe:
        return f"The sandbox cannot do `{need.probe}`: {message} (line {need.line})."
    hint = {"true": "; write True", "false": "; write False", "null": "; write None"}.get(need.probe, "")
    return f"The code uses the name {need.probe!r}, which the sandbox does not have (line {need.line}){hint}."


def _state_text(state: Mapping[str, object], keys: frozenset[str] | None) -> str:
    wanted = state if keys is None else {key: state[key] for key in keys if key in state}
    try:
        text = dumps(dict(wanted))
    except NotJson as error:
        raise CodeLimit(f"The state cannot be given to the code: {error}.") from None
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        # Half of a surrogate pair, which the store replaces too when it keeps the state.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        size = len(text.encode())
    if size > MAX_STATE_BYTES:
        raise CodeLimit(
            f"The code reads {size} bytes of state; at most {MAX_STATE_BYTES} fit. Code that names the keys it needs "
            "(`state.key`) is given only those."
        )
    return text


def _may_be_lacking(error: CodeRefused | CodeFailed) -> bool:
    """Whether the interpreter, and not the code, may be what is wrong."""
    return isinstance(error, CodeRefused) or str(error).partition(":")[0].partition(" ")[0] in _LACKING


def _result(text: object, printed: str) -> JsonValue:
    value = _value(text)
    return _printed_value(printed) if value is None else value


def _value(text: object) -> JsonValue:
    if not isinstance(text, str):
        raise CodeFailed("The code ended without a result.")
    if len(text) > MAX_OUTPUT_BYTES:
        raise CodeLimit(f"The result is longer than {MAX_OUTPUT_BYTES >> 20} MiB of JSON.")
    try:
        return loads(text)
    except NotJson as error:
        raise CodeFailed(f"The result is not JSON that can be stored: {error}.") from None


def _printed_value(printed: str) -> JsonValue:
    text = printed.strip()
    if not text:
        return None
    try:
        return loads(text)
    except NotJson:
        if "\x00" in text:
            raise CodeFailed("The printed text holds a zero byte, which cannot be stored.") from None
        return text
