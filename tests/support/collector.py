"""An OpenTelemetry collector for tests: takes spans by OTLP over gRPC and keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """A span as it came; ids as hexadecimal text, `parent` "" for the first of a trace, times in ns."""

    name: str
    trace: str
    id: str
    parent: str
    start: int
    end: int
    kind: int
    failed: str | None
    attributes: Mapping[str, object]
    resource: Mapping[str, object]
    headers: Mapping[str, str]


@dataclass
class Collector(TraceServiceServicer):
    """Serves while its `with` block lasts; `url` is its plain endpoint."""

    credentials: grpc.ServerCredentials | None = None
    spans: list[SeenSpan] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)
        if self.credentials is None:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        else:
            self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", self.credentials)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    @property
    def url(self) -> str:
        """The endpoint as users write it."""
        return f"{'http' if self.credentials is None else 'https'}://127.0.0.1:{self.port}"

    def Export(  # noqa: N802 - the service's own name
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Keep what was sent."""
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        self.spans.extend(list(_read(request, headers)))
        return ExportTraceServiceResponse()

    def wait_for(self, what: Callable[[list[SeenSpan]], bool], *, seconds: float = 20) -> list[SeenSpan]:
        """Poll until `what` holds of the spans so far; returns them. Spans come every OTEL_BSP_SCHEDULE_DELAY."""
        deadline = time.monotonic() + seconds
        while not what(list(self.spans)):
            assert time.monotonic() < deadline, [(span.name, span.trace) for span in self.spans]
            time.sleep(0.02)  # the poll's period; the deadline above bounds it
        return list(self.spans)


def tree(spans: list[SeenSpan]) -> dict[str, str]:
    """Return span name -> its parent's name ("" = none; "?" = one that did not come), for names that occur once."""
    names = {span.id: span.name for span in spans}
    return {span.name: names.get(span.parent, "?") if span.parent else "" for span in spans}


def _read(request: ExportTraceServiceRequest, headers: Mapping[str, str]) -> Iterator[SeenSpan]:
    for group in request.resource_spans:
        for scope in group.scope_spans:
            for span in scope.spans:
                yield SeenSpan(
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    kind=span.kind,
                    failed=span.status.message if span.status.code == 2 else None,
                    attributes=_values(span.attributes),
                    resource=_values(group.resource.attributes),
                    headers=headers,
                )


def _values(pairs: list[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}
