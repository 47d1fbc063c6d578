"""The seam of tracing: endpoints as users write them, what is no traceparent, and silence when it is off."""

from __future__ import annotations

import time

import pytest

from synapse_worker import tracing
from synapse_worker.errors import ConfigurationError
from synapse_worker.store import claims, runs


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("", ""),
        ("  ", ""),
        ("http://jaeger:4317", "http://jaeger:4317"),
        ("http://otel-collector:4317/", "http://otel-collector:4317"),
        ("http://jaeger", "http://jaeger:4317"),
        ("https://api.honeycomb.io", "https://api.honeycomb.io"),
        ("https://api.honeycomb.io:443", "https://api.honeycomb.io:443"),
        ("http://[::1]:4317", "http://[::1]:4317"),
    ],
)
def test_endpoints_of_the_page(text: str, endpoint: str) -> None:
    assert tracing.endpoint_of(text, "OTLP_ENDPOINT") == endpoint


@pytest.mark.parametrize(
    "text",
    [
        "jaeger:4317",
        "jaeger",
        "grpc://jaeger:4317",
        "http://",
        "http://jaeger:port",
        "http://jaeger:4317/v1/traces",
        "https://key:secret@collector",
        "https://collector?api-key=secret",
    ],
)
def test_others_are_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^OTLP_ENDPOINT .*accepted: http://host:4317") as refused:
        tracing.endpoint_of(text, "OTLP_ENDPOINT")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n",
    ],
)
def test_what_is_no_traceparent(text: object) -> None:
    assert tracing.well_formed(text) == ""


def test_a_traceparent() -> None:
    text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert tracing.well_formed(text) == text


def test_off_every_call_does_nothing() -> None:
    with tracing.begin("run", tracing.Kind.CONSUMER, {}, parent="x"), tracing.span("step", step_id="s"):
        tracing.note(a=1)
        tracing.past("wait", 0, 1)
        tracing.ended("failed", "why")
        assert tracing.traceparent() == ""


def test_off_a_span_costs_less_than_two_microseconds() -> None:
    """A step of a run opens about ten; it takes milliseconds."""
    rounds, best = 2_000, float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(rounds):
            with tracing.sql("SELECT 1"):
                pass
        best = min(best, (time.perf_counter() - began) / rounds)
    assert best < 2e-6


def test_statements_are_named_by_what_they_do() -> None:
    summary = tracing._summary
    assert summary("SELECT envelope FROM job_ledger WHERE job_id = $1") == "SELECT job_ledger"
    assert summary(claims._TAKE) == "INSERT job_ledger"
    assert summary(runs._CHECKPOINT).startswith(("INSERT ", "UPDATE "))
    assert summary("SET jit = off") == "SET"
