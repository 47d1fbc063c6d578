"""What the SDK makes of our spans: parents, ids, statuses, and an end that no collector can delay."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator

import pytest

from synapse_worker import tracing
from synapse_worker.errors import ConfigurationError, JobFailed
from synapse_worker.tracing import Kind
from tests.support.collector import Collector, SeenSpan, tree
from tests.support.servers import free_port


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector in this process."""
    with Collector() as serving:
        yield serving


def named(spans: list[SeenSpan], name: str) -> SeenSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


async def test_spans_hang_together_and_only_inside_a_trace(collector: Collector) -> None:
    async with tracing.exporting(collector.url, service="s", instance="i"):
        with tracing.span("of nobody"), tracing.redis("poll"):
            assert tracing.traceparent() == ""
        with tracing.begin("run", Kind.CONSUMER, {"run_id": "r", "messaging.system": "redis"}, start_ns=1_000):
            tracing.past("wait", 5, 9)
            with tracing.span("step", step_id="a"):
                await asyncio.gather(*(asyncio.create_task(traced_call(name)) for name in ("x", "y")))
            tracing.note(late=True)
    parents = tree(collector.spans)
    assert parents == {
        "run": "",
        "wait": "run",
        "step": "run",
        "postgresql SELECT x": "step",
        "postgresql SELECT y": "step",
    }
    run = named(collector.spans, "run")
    assert run.start == 1_000
    assert run.attributes == {"synapse.run_id": "r", "messaging.system": "redis", "synapse.late": True}
    assert (named(collector.spans, "wait").start, named(collector.spans, "wait").end) == (5, 9)
    assert run.resource["service.instance.id"] == "i"


async def traced_call(table: str) -> None:
    with tracing.sql(" ".join(("SELECT 1 FROM", table))):
        await asyncio.sleep(0)


async def test_a_parent_from_elsewhere_is_gone_on_with(collector: Collector) -> None:
    async with tracing.exporting(collector.url, service="s", instance="i"):
        with tracing.begin("first", Kind.PRODUCER, {}):
            parent = tracing.traceparent()
        with tracing.begin("second", Kind.CONSUMER, {}, parent=parent, key="ignored"):
            pass
        with tracing.begin("third", Kind.CONSUMER, {}, parent="nonsense"):
            pass
    assert tree(collector.spans) == {"first": "", "second": "first", "third": ""}
    assert named(collector.spans, "third").trace != named(collector.spans, "first").trace


async def test_what_is_not_sampled_stays_so_below(collector: Collector) -> None:
    unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with tracing.exporting(collector.url, service="s", instance="i"):
        with tracing.begin("run", Kind.CONSUMER, {}, parent=unsampled), tracing.span("step"):
            assert tracing.traceparent().startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
            assert tracing.traceparent().endswith("-00")
    assert collector.spans == []


async def test_the_same_key_gives_the_same_trace(collector: Collector) -> None:
    async with tracing.exporting(collector.url, service="s", instance="i"):
        for name in ("one", "other"):
            with tracing.begin(name, Kind.CONSUMER, {}, key="run_1"):
                pass
    assert {span.trace for span in collector.spans} == {hashlib.sha256(b"run_1").hexdigest()[:32]}


async def test_errors_are_said_as_far_as_they_are_ours(collector: Collector) -> None:
    async with tracing.exporting(collector.url, service="s", instance="i"):
        with tracing.begin("run", Kind.CONSUMER, {}):
            for name, error in (("ours", JobFailed("the step is wrong")), ("theirs", ValueError("a secret"))):
                with pytest.raises(type(error)), tracing.span(name):
                    raise error
            with pytest.raises(asyncio.CancelledError), tracing.span("stopped"):
                raise asyncio.CancelledError
            tracing.ended("failed", "why")
    failed = {span.name: span.failed for span in collector.spans}
    assert failed == {"ours": "the step is wrong", "theirs": "ValueError", "stopped": None, "run": "why"}
    assert named(collector.spans, "stopped").attributes == {"synapse.interrupted": True}


async def test_the_end_waits_for_no_collector() -> None:
    began = time.monotonic()
    async with tracing.exporting(f"http://127.0.0.1:{free_port()}", service="s", instance="i"):
        with tracing.begin("run", Kind.CONSUMER, {}):
            pass
    assert time.monotonic() - began < 5
    assert not tracing.is_on()
    assert tracing.provider() is None


async def test_a_variable_of_opentelemetrys_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match=r"^the OTEL_\* variables cannot be used: .*soon"):
        async with tracing.exporting("http://127.0.0.1:1", service="s", instance="i"):
            pass
    assert not tracing.is_on()


async def test_a_certificate_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.crt")
    async with tracing.exporting("https://127.0.0.1:1", service="s", instance="i"):
        assert "/nowhere/ca.crt" in caplog.text
