"""Spans of a run's trace, as the rest of the code writes them: a few calls that do nothing where tracing is off.

Only what belongs to a run is traced. `begin` opens or continues a trace; `span` and the others add to the one that the
caller is in, and outside of one they do nothing, so that an idle worker's polling is nobody's trace. What makes spans
and sends them is `otlp`, which is imported where an endpoint is set and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from synapse_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Value = str | int | float | bool

ENDPOINT_ACCEPTED = "http://host:4317 (plain) or https://host (TLS), without a path, user or password"

_PLAIN_PORT = 4317
_FLUSH_SECONDS = 2.0
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TOUCHED = re.compile(r"\b(INSERT INTO|DELETE FROM|UPDATE|FROM)\s+(\w+)")
_NOTHING = nullcontext()


class Kind(StrEnum):
    """What a span stands for, in OpenTelemetry's words."""

    INTERNAL = "internal"
    CLIENT = "client"
    PRODUCER = "producer"
    CONSUMER = "consumer"


class Tracer(Protocol):
    """Who makes the spans; `otlp.OtlpTracer`, and nobody where tracing is off."""

    @property
    def provider(self) -> TracerProvider:
        """See the function `provider`."""

    def begin(
        self, name: str, kind: Kind, attributes: Mapping[str, Value], *, parent: str, key: str, start_ns: int | None
    ) -> AbstractContextManager[None]:
        """See the function `begin`."""

    def span(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> AbstractContextManager[None]:
        """See the function `span`."""

    def past(self, name: str, attributes: Mapping[str, Value], start_ns: int, end_ns: int) -> None:
        """See the function `past`."""

    def note(self, attributes: Mapping[str, Value]) -> None:
        """See the function `note`."""

    def failed(self, sentence: str) -> None:
        """See the function `failed`."""

    def traceparent(self) -> str:
        """See the function `traceparent`."""


_tracer: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Have all spans of this process made by `tracer`; None = tracing is off, as it is at the start."""
    global _tracer
    _tracer = tracer


def is_on() -> bool:
    """Whether spans are made at all."""
    return _tracer is not None


def provider() -> TracerProvider | None:
    """Return what a library that traces by itself is to make its spans with, as FastAPI does; None = tracing is off."""
    return None if _tracer is None else _tracer.provider


@asynccontextmanager
async def exporting(endpoint: str, *, service: str, instance: str) -> AsyncIterator[None]:
    """Trace while the block lasts, and send what is left at its end for at most 2 s; "" = tracing is off.

    Args:
        endpoint: OTLP over gRPC, as `endpoint_of` returns it.
        service: service.name of the spans, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise.
        instance: service.instance.id, with the same exception.

    Raises:
        ConfigurationError: one of the OTEL_* variables cannot be used.
    """
    if not endpoint:
        yield
        return
    from synapse_worker.otlp import OtlpTracer

    tracer = OtlpTracer(endpoint, service=service, instance=instance)
    install(tracer)
    try:
        yield
    finally:
        install(None)
        await tracer.close(_FLUSH_SECONDS)


def endpoint_of(text: str, name: str) -> str:
    """Return an OTLP endpoint with its port; "" stays "".

    Args:
        name: the variable that it comes from, for the error.

    Raises:
        ConfigurationError: it is not of an accepted form.
    """
    if not text.strip():
        return ""
    try:
        parts = urlsplit(text.strip())
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"{name} cannot be read as a URL; accepted: {ENDPOINT_ACCEPTED}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{name} is no http:// or https:// URL of a host; accepted: {ENDPOINT_ACCEPTED}.")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigurationError(
            f"{name} holds more than scheme, host and port; accepted: {ENDPOINT_ACCEPTED}."
            " Keys of a hosted collector belong into OTEL_EXPORTER_OTLP_HEADERS."
        )
    if port is None and parts.scheme == "http":  # with TLS it is 443, as hosted collectors have it
        return f"http://{parts.netloc}:{_PLAIN_PORT}"
    return f"{parts.scheme}://{parts.netloc}"


def begin(
    name: str,
    kind: Kind,
    attributes: Mapping[str, Value],
    *,
    parent: str = "",
    key: str = "",
    start_ns: int | None = None,
) -> AbstractContextManager[None]:
    """Open a span of the trace that `parent` (a traceparent) or the caller belongs to, or the first one of a new trace.

    Args:
        attributes: a name without a dot is ours and gets the prefix `synapse.`.
        key: a new trace gets its id from this text, so that all who begin one for the same key are in the same trace.
        start_ns: when it began, in ns since the epoch; None = now.
    """
    if _tracer is None:
        return _NOTHING
    return _tracer.begin(name, kind, attributes, parent=well_formed(parent), key=key, start_ns=start_ns)


def span(name: str, **attributes: Value) -> AbstractContextManager[None]:
    """Open a span inside the caller's trace; attributes as for `begin`. An error that leaves it is noted in it."""
    if _tracer is None:
        return _NOTHING
    return _tracer.span(name, Kind.INTERNAL, attributes)


def call(name: str, **attributes: Value) -> AbstractContextManager[None]:
    """As `span`, for a call of somebody else's service."""
    if _tracer is None:
        return _NOTHING
    return _tracer.span(name, Kind.CLIENT, attributes)


def step(step_id: str, step_type: str, visit: int) -> AbstractContextManager[None]:
    """Open a span for one step of a run, its checkpoint included."""
    return span(f"step {step_id}", step_id=step_id, step_type=step_type, step_visit=visit)


def sql(statement: str) -> AbstractContextManager[None]:
    """Open a span for one statement of PostgreSQL."""
    if _tracer is None:
        return _NOTHING
    summary = _summary(statement)
    operation = summary.partition(" ")[0]
    attributes = {"db.system.name": "postgresql", "db.query.summary": summary, "db.operation.name": operation}
    return _tracer.span(f"postgresql {summary}", Kind.CLIENT, attributes)


def redis(operation: str) -> AbstractContextManager[None]:
    """Open a span for one exchange with Redis."""
    return call(f"redis {operation}", **{"db.system.name": "redis", "db.operation.name": operation})


def past(name: str, start_ns: int, end_ns: int, **attributes: Value) -> None:
    """Add a span for what is over already, with its times in ns since the epoch."""
    if _tracer is not None:
        _tracer.past(name, attributes, start_ns, end_ns)


def note(**attributes: Value) -> None:
    """Add attributes to the span that the caller is in."""
    if _tracer is not None:
        _tracer.note(attributes)


def failed(sentence: str) -> None:
    """Mark the span that the caller is in as failed, for what no exception tells it."""
    if _tracer is not None:
        _tracer.failed(sentence)


def ended(status: str, error: str | None) -> None:
    """Say in the run's span, which the caller is in, how the run ended."""
    note(run_status=status)
    if error is not None:
        failed(error)


def traceparent() -> str:
    """Return the span that the caller is in as W3C's traceparent, for whoever continues the trace; "" = none."""
    return "" if _tracer is None else _tracer.traceparent()


def well_formed(text: object) -> str:
    """Return a traceparent that somebody else wrote, or "" when it is none."""
    return text if isinstance(text, str) and _TRACEPARENT.fullmatch(text) else ""


@lru_cache(maxsize=512)
def _summary(statement: str) -> str:
    """Return a statement's verb and the table that it is about: the first that it writes, else the first it reads."""
    touched = _TOUCHED.findall(statement)
    for verb, table in touched:
        if verb != "FROM":
            return f"{verb.partition(' ')[0]} {table}"
    table = touched[0][1] if touched else ""
    return f"SELECT {table}".rstrip() if touched else statement.split(maxsplit=1)[0].upper()
