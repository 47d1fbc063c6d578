"""What a scale sends out, shown as text: a trace for each run, by OTLP over gRPC, and webhooks. For a try-out.

    GET /runs/RUN   the run's trace as a tree
    GET /hooks      the newest webhooks, one JSON object a line
    POST /hook      where a run's webhook_url leads to

Statements of PostgreSQL and exchanges with Redis are counted and added up behind the span that made them. It is no
collector: what it keeps is in memory, and of the newest traces only. `python receiver.py OTLP_PORT HTTP_PORT`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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

MOST_TRACES = 500
MOST_HOOKS = 100
MOST_BODY_BYTES = 8 * 1024 * 1024
UNFINISHED = "some spans are on their way"
STORES = ("postgresql", "redis")
ENDS = ("completed", "failed", "cancelled")
SHOWN = {
    "gen_ai.provider.name": "at {}",
    "synapse.tokens": "{} tokens",
    "synapse.step_type": "{}",
    "synapse.queue": "{}",
    "synapse.run_status": "{}",
    "http.response.status_code": "HTTP {}",
}
"""Attribute -> how it is shown behind a span."""


@dataclass(frozen=True)
class Seen:
    """A span: ids as hexadecimal text, `parent` "" for the first of a trace, times in ns since the epoch."""

    name: str
    id: str
    parent: str
    start: int
    end: int
    process: str
    failed: str
    attributes: Mapping[str, object]

    @property
    def store(self) -> str:
        """Which store was asked; "" = the span is about something else."""
        return next((store for store in STORES if self.name.startswith(f"{store} ")), "")


class Traces(TraceServiceServicer):
    """The newest traces, in the order in which their first spans came."""

    def __init__(self) -> None:
        self._spans: OrderedDict[str, list[Seen]] = OrderedDict()
        self._lock = threading.Lock()

    def Export(  # noqa: N802 - the service's own name
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """Keep what was sent."""
        with self._lock:
            for trace, span in _read(request):
                self._spans.setdefault(trace, []).append(span)
            while len(self._spans) > MOST_TRACES:
                self._spans.popitem(last=False)
        return ExportTraceServiceResponse()

    def of_run(self, run_id: str) -> tuple[str, list[Seen]]:
        """Return the id and the spans of a run's trace; ("", []) when none has come."""
        with self._lock:
            for trace, spans in self._spans.items():
                if any(span.attributes.get("synapse.run_id") == run_id for span in spans):
                    return trace, list(spans)
        return "", []


def lines(trace: str, spans: Sequence[Seen]) -> Iterator[str]:
    """Show a trace: a heading, then each span below its parent, in the order of their beginnings."""
    known = {span.id for span in spans}
    below: dict[str, list[Seen]] = {}
    for span in sorted(spans, key=lambda each: each.start):
        below.setdefault(span.parent, []).append(span)
    processes = len({span.process for span in spans})
    took = max(span.end for span in spans) - min(span.start for span in spans)
    ended = any(span.attributes.get("synapse.run_status") in ENDS for span in spans)
    waits = [] if ended and all(span.parent in known or not span.parent for span in spans) else [UNFINISHED]
    yield ", ".join([f"trace {trace}: {len(spans)} spans of {processes} processes, {_duration(took)}", *waits])
    for parent, children in below.items():
        if parent not in known:
            yield from _tree(children, below, "")


def _tree(spans: Iterable[Seen], below: Mapping[str, Sequence[Seen]], indent: str) -> Iterator[str]:
    for span in spans:
        if span.store:
            continue
        children = below.get(span.id, ())
        told = [form.format(span.attributes[name]) for name, form in SHOWN.items() if name in span.attributes]
        for store in STORES:
            asked = [child.end - child.start for child in children if child.store == store]
            told += [f"{store} {len(asked)}x {_duration(sum(asked))}"] if asked else []
        told += [f"failed: {span.failed}"] if span.failed else []
        yield f"{_duration(span.end - span.start):>8}  {indent}{', '.join([span.name, *told])}"
        yield from _tree(children, below, f"{indent}  ")


def _duration(ns: int) -> str:
    return f"{ns / 1e9:.2f} s" if ns >= 1e9 else f"{ns / 1e6:.1f} ms"


def _read(request: ExportTraceServiceRequest) -> Iterator[tuple[str, Seen]]:
    for group in request.resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield (
                    span.trace_id.hex(),
                    Seen(
                        name=span.name,
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        start=span.start_time_unix_nano,
                        end=span.end_time_unix_nano,
                        process=str(resource.get("service.instance.id")),
                        failed=(span.status.message or "yes") if span.status.code == 2 else "",
                        attributes=_values(span.attributes),
                    ),
                )


def _values(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    traces: Traces
    hooks: deque[str]

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Show a trace or the webhooks; anything else is a probe."""
        folder, _, run_id = self.path.strip("/").partition("/")
        if folder == "hooks":
            self._send(200, list(self.hooks))
        elif folder == "runs":
            trace, spans = self.traces.of_run(run_id)
            self._send(200 if spans else 404, lines(trace, spans) if spans else [f"no span of run {run_id} has come"])
        else:
            self._send(200, ["ok"])

    def do_POST(self) -> None:
        """Keep a webhook."""
        body = self.rfile.read(min(MOST_BODY_BYTES, int(self.headers.get("content-length") or 0)))
        signed = "X-Synapse-Signature" in self.headers
        self.hooks.append(json.dumps({"signed": signed, "body": body.decode(errors="replace")}))
        self._send(200, ["thank you"])

    def _send(self, status: int, text: Iterable[str]) -> None:
        body = "".join(f"{line}\n" for line in text).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(otlp_port: int, http_port: int) -> None:
    """Take and show until the process is ended."""
    traces = Traces()
    otlp = grpc.server(futures.ThreadPoolExecutor(4))
    add_TraceServiceServicer_to_server(traces, otlp)
    otlp.add_insecure_port(f"0.0.0.0:{otlp_port}")
    otlp.start()
    handler = type("ReceiverHandler", (Handler,), {"traces": traces, "hooks": deque(maxlen=MOST_HOOKS)})
    ThreadingHTTPServer(("0.0.0.0", http_port), handler).serve_forever()  # noqa: S104 - a pod's Service reaches it


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
