"""Reading and writing arq's job format, safely.

Upstream and stock arq serialize jobs with pickle, so we must read it; an unpickler that finds no class at all
can build only builtins. We write pickle of builtins too, since a stock worker that meets anything else deletes
the job unrun. What the functions mean is left to `jobs`.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Mapping
from types import MappingProxyType, NoneType
from typing import NamedTuple, Never

from synapse_worker.errors import PayloadError

EXPIRED = "payload expired before a worker took it"
"""What is said of a job whose id is there and whose payload is not."""

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
_MAX_NODES = 1_000_000
_MAX_DEPTH = 100
_MAX_BITS = 1_024
_TEXT = frozenset((str,))
_PLAIN = frozenset((str, NoneType, bool))
"""What is fine whatever it is; most arguments are."""
_MAX_MS = 4_102_444_800_000
"""The year 2100: what claims to come from later is not a time in ms."""


_NO_EXTRAS: Mapping[str, object] = MappingProxyType({})


class JobPayload(NamedTuple):
    """One job: `function` by name, its keyword arguments (JSON values), when it was enqueued (ms), our extras."""

    function: str
    arguments: Mapping[str, object]
    positional: tuple[object, ...] = ()
    enqueued_ms: int = 0
    extras: Mapping[str, object] = _NO_EXTRAS


class _BuiltinsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Never:
        raise PayloadError(
            f"the payload is a pickle that asks for {module[:60]}.{name[:60]}; only plain values are accepted"
        )

    def persistent_load(self, pid: object) -> Never:
        raise PayloadError("the payload is a pickle with persistent references; only plain values are accepted")


def encode(payload: JobPayload) -> bytes:
    """Return the bytes of arq's `arq:job:<id>` value, readable by stock arq."""
    document: dict[str, object] = {
        "t": None,
        "f": payload.function,
        "a": payload.positional,
        "k": dict(payload.arguments),
        "et": payload.enqueued_ms,
    }
    if payload.extras:
        document["x"] = dict(payload.extras)
    return pickle.dumps(document, protocol=4)


def encode_result(
    payload: JobPayload, *, job_id: str, queue_key: str, success: bool, result: str | BaseException, now_ms: int
) -> bytes:
    """Return the bytes of arq's `arq:result:<id>`: small, without the arguments.

    Args:
        result: a text, or the exception that arq's `Job.result()` is to raise.
    """
    return pickle.dumps(
        {
            "t": 1,
            "f": payload.function,
            "a": (),
            "k": {},
            "et": payload.enqueued_ms,
            "s": success,
            "r": result,
            "st": now_ms,
            "ft": now_ms,
            "q": queue_key,
            "id": job_id,
        },
        protocol=4,
    )


def decode(raw: bytes) -> JobPayload:
    """Read a job, pickled or JSON.

    Raises:
        PayloadError: it is too large, cannot be read, asks for classes, or is not a job of arq's shape.
    """
    if len(raw) > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"the payload has {len(raw)} bytes; at most {MAX_PAYLOAD_BYTES} are accepted")
    document = _load(raw)
    if not isinstance(document, dict) or not isinstance(function := document.get("f"), str):
        raise PayloadError("the payload is not a job: it names no function")
    arguments, positional = document.get("k") or {}, document.get("a") or ()
    if not isinstance(arguments, dict) or not _TEXT.issuperset(map(type, arguments)):
        raise PayloadError("the payload's keyword arguments are not a mapping of names")
    if type(positional) is not tuple:
        if not isinstance(positional, list):
            raise PayloadError("the payload's positional arguments are not a list")
        positional = tuple(positional)
    extras = document.get("x")
    plain = _PLAIN.issuperset(map(type, arguments.values())) and len(arguments) <= _MAX_NODES
    if positional or extras is not None or not plain:
        check_values([arguments, positional, extras])
    enqueued = document.get("et")
    return JobPayload(
        function,
        arguments,
        positional,
        enqueued if isinstance(enqueued, int) and 0 < enqueued < _MAX_MS else 0,
        extras if isinstance(extras, dict) else _NO_EXTRAS,
    )


def _load(raw: bytes) -> object:
    try:
        if raw[:1] == b"{":
            return json.loads(raw)
        return _BuiltinsOnly(io.BytesIO(raw)).load()
    except PayloadError:
        raise
    except MemoryError:
        raise PayloadError("the payload needs more memory than is allowed") from None
    except Exception as error:
        raise PayloadError(f"the payload cannot be read ({type(error).__name__})") from None


def check_values(root: object) -> None:
    """Refuse what is not JSON: other types, cycles and structures that explode when written out."""
    stack: list[tuple[object, int]] = [(root, 0)]
    seen = 0
    while stack:
        value, depth = stack.pop()
        seen += 1
        if isinstance(value, dict):
            for key, item in value.items():
                if type(key) is not str:
                    raise PayloadError("the payload's arguments hold a mapping whose keys are not text")
                if type(item) not in _PLAIN:
                    stack.append((item, depth + 1))
            seen += len(value)
        elif isinstance(value, list | tuple):
            stack.extend([(item, depth + 1) for item in value if type(item) not in _PLAIN])
            seen += len(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise PayloadError(f"the payload's arguments hold the number {value}, which JSON does not have")
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise PayloadError(f"the payload's arguments hold a whole number of over {_MAX_BITS} bits")
        elif value is not None and not isinstance(value, str | int | float | bool):
            raise PayloadError(f"the payload's arguments hold a {type(value).__name__}; only JSON values are accepted")
        if seen > _MAX_NODES or depth > _MAX_DEPTH:
            raise PayloadError("the payload's arguments are nested too deeply or are too many")
