"""Metrics and log lines of the operator.

Every metric name is here; modules get a `Metrics` and say what happened. Labels take a bounded set of
values (verbs, kinds, outcomes), never a namespace or a name: the object's own status carries those.
`probes` serves the registry; what workers export is theirs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from pythonjsonlogger.json import JsonFormatter

_DURATION_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The metrics of one process, in a registry of their own so that tests can hold several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._reconciles = Counter(
            "synapse_operator_reconciles",
            "Reconciles that ended, by outcome.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._errors = Counter(
            "synapse_operator_reconcile_errors",
            "Reconciles that raised and were put back, by class of error.",
            ["kind", "error"],
            registry=self.registry,
        )
        self._durations = Histogram(
            "synapse_operator_reconcile_duration_seconds",
            "Time that one reconcile took.",
            ["kind"],
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self._api_calls = Counter(
            "synapse_operator_api_calls",
            "Requests of our own client to the API server, by verb and outcome; the watches are not among them.",
            ["verb", "outcome"],
            registry=self.registry,
        )
        self._queue_length = Gauge(
            "synapse_operator_queue_length", "Keys that are due and wait for a free slot.", registry=self.registry
        )
        self._leading = Gauge(
            "synapse_operator_leading", "1 while this process holds the Lease.", registry=self.registry
        )
        self._last_good = time.monotonic()
        Gauge(
            "synapse_operator_last_good_reconcile_age_seconds",
            "Seconds since a reconcile last ended without an error (at first: since the start).",
            registry=self.registry,
        ).set_function(lambda: time.monotonic() - self._last_good)

    @contextmanager
    def reconcile(self, kind: str) -> Iterator[None]:
        """Measure one reconcile of `kind`; an exception passes through and is counted by its class."""
        started = time.perf_counter()
        outcome = "interrupted"
        try:
            yield
        except Exception as error:
            outcome = "error"
            self._errors.labels(kind, type(error).__name__).inc()
            raise
        else:
            outcome = "ok"
            self._last_good = time.monotonic()
        finally:
            self._reconciles.labels(kind, outcome).inc()
            self._durations.labels(kind).observe(time.perf_counter() - started)

    def api_call(self, verb: str, outcome: Literal["ok", "refused", "failed"]) -> None:
        """Count one request: `refused` = the server said no, `failed` = no answer, or it could not."""
        self._api_calls.labels(verb, outcome).inc()

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Show `length()` as the length of the queue whenever the metrics are read."""
        self._queue_length.set_function(length)

    def set_leading(self, leading: bool) -> None:
        """Say whether this process holds the Lease."""
        self._leading.set(int(leading))


def configure_logging(level: str, form: str) -> None:
    """Send all log lines to standard error, one each, as JSON (`form` "json") or as text ("console")."""
    handler = logging.StreamHandler()
    if form == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(message)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
                datefmt="%Y-%m-%dT%H:%M:%S%z",
            )
        )
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf tells of every handler that ran; ours only put a key into the queue.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    logging.getLogger("kopf.activities").setLevel(logging.WARNING)
