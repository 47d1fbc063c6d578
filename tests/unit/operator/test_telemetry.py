"""What the metrics count, under which labels, and that log lines are JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from prometheus_client import generate_latest

from synapse_operator.errors import ApiUnavailable
from synapse_operator.telemetry import Metrics, configure_logging


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_reconciles_are_counted_by_outcome_and_errors_by_class() -> None:
    metrics = Metrics()
    with metrics.reconcile("SynapseScale"):
        pass
    with pytest.raises(ApiUnavailable), metrics.reconcile("SynapseScale"):
        raise ApiUnavailable("away")
    total, errors = "synapse_operator_reconciles_total", "synapse_operator_reconcile_errors_total"
    assert value(metrics, total, kind="SynapseScale", outcome="ok") == 1
    assert value(metrics, total, kind="SynapseScale", outcome="error") == 1
    assert value(metrics, errors, kind="SynapseScale", error="ApiUnavailable") == 1
    assert value(metrics, "synapse_operator_reconcile_duration_seconds_count", kind="SynapseScale") == 2


def test_the_age_of_the_last_good_reconcile_starts_anew_with_each() -> None:
    metrics = Metrics()
    metrics._last_good -= 100
    name = "synapse_operator_last_good_reconcile_age_seconds"
    assert (value(metrics, name) or 0) >= 100
    with metrics.reconcile("SynapseScale"):
        pass
    assert (value(metrics, name) or 0) < 5


def test_the_queue_and_the_lease_are_shown() -> None:
    metrics = Metrics()
    metrics.watch_queue(lambda: 7)
    metrics.set_leading(True)
    assert value(metrics, "synapse_operator_queue_length") == 7
    assert value(metrics, "synapse_operator_leading") == 1


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    with metrics.reconcile("SynapseScale"):
        metrics.api_call("get", "ok")
    text = generate_latest(metrics.registry).decode()
    labels = {part.split("=")[0] for line in text.splitlines() if "{" in line and not line.startswith("#")
              for part in line[line.index("{") + 1 : line.index("}")].split(",")}  # fmt: skip
    assert labels <= {"kind", "outcome", "error", "verb", "le"}


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_before")
def test_a_log_line_is_one_json_object() -> None:
    configure_logging("info", "json")
    stream = io.StringIO()
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    logging.getLogger("synapse_operator").info("two\nlines of %s", "text")
    logging.getLogger("synapse_operator").debug("unheard")
    line = json.loads(stream.getvalue())
    assert {key: line[key] for key in ("level", "logger", "message")} == {
        "level": "INFO",
        "logger": "synapse_operator",
        "message": "two\nlines of text",
    }
    assert line["time"].startswith("20")
