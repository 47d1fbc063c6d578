"""Spans made by OpenTelemetry's SDK and sent by OTLP over gRPC: the only module that imports either.

What can go wrong with a collector must stay here. Spans wait in a queue with an end and are sent by a thread of their
own; what does not fit, or is not taken, is dropped and told of once a minute. The SDK reads the standard OTEL_*
variables itself: headers, certificates, timeouts, resource attributes, sampling, limits.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from synapse_worker import __version__
from synapse_worker.errors import ConfigurationError, SynapseError
from synapse_worker.tracing import Kind, Value

log = logging.getLogger(__name__)

_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.CLIENT: SpanKind.CLIENT,
    Kind.PRODUCER: SpanKind.PRODUCER,
    Kind.CONSUMER: SpanKind.CONSUMER,
}
_TELL_SECONDS = 60.0
_NOTHING = nullcontext()
_PROPAGATOR = TraceContextTextMapPropagator()


class OtlpTracer:
    """`tracing.Tracer` by OpenTelemetry."""

    def __init__(self, endpoint: str, *, service: str, instance: str) -> None:
        """Start the thread that sends; nothing is connected before the first spans.

        Args:
            endpoint: http://host:port, or https://host[:port] with TLS.

        Raises:
            ConfigurationError: one of the OTEL_* variables cannot be used.
        """
        theirs = logging.getLogger("opentelemetry")
        theirs.setLevel(logging.WARNING)  # what is wrong with a variable they say here
        ours = {"service.name": service, "service.instance.id": instance, "service.version": __version__}
        try:
            self._exporter = _Exporter(endpoint=endpoint)
            self._provider = TracerProvider(
                resource=Resource.create({**ours, **OTELResourceDetector().detect().attributes}),
                id_generator=_Ids(),
                shutdown_on_exit=False,
            )
            self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        except (ValueError, OSError) as error:
            raise ConfigurationError(f"the OTEL_* variables cannot be used: {str(error).splitlines()[0]}.") from None
        # One line of ours a minute says what theirs say at each try.
        theirs.setLevel(logging.CRITICAL)
        self._tracer = self._provider.get_tracer("synapse_worker", __version__)

    @property
    def provider(self) -> TracerProvider:
        """See `tracing.provider`."""
        return self._provider

    def begin(
        self, name: str, kind: Kind, attributes: Mapping[str, Value], *, parent: str, key: str, start_ns: int | None
    ) -> AbstractContextManager[None]:
        """See `tracing.begin`."""
        context = _PROPAGATOR.extract({"traceparent": parent}, Context()) if parent else None
        with _key(key):
            span = self._tracer.start_span(name, context, _KINDS[kind], _named(attributes), start_time=start_ns)
        return _current(span)

    def span(self, name: str, kind: Kind, attributes: Mapping[str, Value]) -> AbstractContextManager[None]:
        """See `tracing.span`."""
        if not trace.get_current_span().is_recording():
            return _NOTHING
        return _current(self._tracer.start_span(name, None, _KINDS[kind], _named(attributes)))

    def past(self, name: str, attributes: Mapping[str, Value], start_ns: int, end_ns: int) -> None:
        """See `tracing.past`."""
        if trace.get_current_span().is_recording():
            span = self._tracer.start_span(name, attributes=_named(attributes), start_time=start_ns)
            span.end(max(start_ns, end_ns))

    def note(self, attributes: Mapping[str, Value]) -> None:
        """See `tracing.note`."""
        trace.get_current_span().set_attributes(_named(attributes))

    def failed(self, sentence: str) -> None:
        """See `tracing.failed`."""
        trace.get_current_span().set_status(Status(StatusCode.ERROR, sentence))

    def traceparent(self) -> str:
        """See `tracing.traceparent`."""
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier)
        return carrier.get("traceparent", "")

    async def close(self, seconds: float) -> None:
        """Send what waits, for at most `seconds`; what a collector does not take by then is dropped."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(sent.set)

        # A thread of ours, since those of the loop are waited for at the end of the process.
        threading.Thread(target=flush, name="flush-spans", daemon=True).start()
        try:
            async with asyncio.timeout(seconds):
                await sent.wait()
        except TimeoutError:
            log.warning("the last spans were not taken within %g s and are dropped", seconds)
            self._exporter.shutdown()


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which says once a minute what the collector did not take."""

    _lost = 0
    _told = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; called by the thread that sends."""
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._lost += len(spans)
            if time.monotonic() - self._told > _TELL_SECONDS:
                log.warning("the collector at OTLP_ENDPOINT did not take %d spans; runs go on", self._lost)
                self._told, self._lost = time.monotonic(), 0
        return result


class _Ids(RandomIdGenerator):
    """Ids of new traces by the key that `begin` was given, so that who samples by them decides the same each time."""

    key: ContextVar[str] = ContextVar("key", default="")

    def generate_trace_id(self) -> int:
        """Return the id of a new trace."""
        key = self.key.get()
        if not key:
            return super().generate_trace_id()
        return int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:16])


@contextmanager
def _key(key: str) -> Iterator[None]:
    token = _Ids.key.set(key)
    try:
        yield
    finally:
        _Ids.key.reset(token)


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Make a span the current one until the block ends; what leaves the block as an error is its status."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except asyncio.CancelledError:
            span.set_attribute("synapse.interrupted", True)
            raise
        except Exception as error:
            # Others' errors quote what they met, which may be anything.
            said = str(error) if isinstance(error, SynapseError) else type(error).__name__
            span.set_status(Status(StatusCode.ERROR, said))
            raise


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {name if "." in name else f"synapse.{name}": value for name, value in attributes.items()}
