"""Logs and metrics: their form, and the name of every series.

The names without a prefix of their own are those that upstream's dashboards use; ours stand beside them.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pythonjsonlogger.json import JsonFormatter

from synapse_worker import __version__

_MOST_LABEL_VALUES = 200
_OTHER = "other"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_DURATIONS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


def set_up_logging(*, level: str, form: str) -> None:
    """Send log lines to standard error, as JSON or for a person's eyes."""
    handler = logging.StreamHandler(sys.stderr)
    formatter: logging.Formatter
    if form == "json":
        formatter = JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            datefmt="%Y-%m-%dT%H:%M:%SZ",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
        )
        formatter.converter = time.gmtime
    else:
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # Libraries speak up at warning; their info lines hold job arguments and request lines.
    for name in ("arq", "uvicorn", "uvicorn.access", "asyncio", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _BoundedLabels:
    """Keeps the values of labels that users choose to a number that a Prometheus can bear."""

    def __init__(self) -> None:
        self._seen: dict[str, set[str]] = {}

    def value(self, label: str, value: str) -> str:
        """Return the value, or `other` for one that comes after the first 200."""
        seen = self._seen.setdefault(label, set())
        if value not in seen:
            if len(seen) >= _MOST_LABEL_VALUES:
                return _OTHER
            seen.add(value)
        return value


class Metrics:
    """All series of a worker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bounded = _BoundedLabels().value
        self._runs_completed = Counter(
            "synapse_runs_completed",
            "Runs that ended, by tenant and status",
            ["tenant_id", "status"],
            registry=self.registry,
        )
        self._run_duration = Histogram(
            "synapse_run_duration_seconds",
            "Active seconds of a run, over all its claims",
            ["tenant_id"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._step_duration = Histogram(
            "synapse_step_duration_seconds",
            "Seconds of a step",
            ["step_type"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._step_durations: dict[str, Histogram] = {}
        self._chat_jobs = Counter(
            "synapse_chat_jobs",
            "Turns of chats that ended, by tenant and status",
            ["tenant_id", "status"],
            registry=self.registry,
        )
        self._webhook_deliveries = Counter(
            "synapse_webhook_deliveries", "Attempts to deliver a webhook", ["status"], registry=self.registry
        )
        self.active_runs = Gauge("synapse_active_runs", "Runs in this process now", registry=self.registry)
        self.active_workers = Gauge(
            "synapse_active_workers", "Workers that are online, of all processes", registry=self.registry
        )
        self._queue_depth = Gauge(
            "synapse_queue_depth", "Jobs that wait in a queue", ["queue_name"], registry=self.registry
        )
        self._parked_jobs = Gauge(
            "synapse_parked_jobs",
            "Those of them that are over their tenants' max_concurrent_runs",
            ["queue_name"],
            registry=self.registry,
        )
        self._oldest_job = Gauge(
            "synapse_oldest_job_seconds", "Age of the oldest waiting job", ["queue_name"], registry=self.registry
        )
        self.slots = Gauge("synapse_worker_slots", "Jobs that this process runs at once", registry=self.registry)
        self.recovered_leases = Counter(
            "synapse_lease_recoveries", "Leases of dead workers that this process returned", registry=self.registry
        )
        self.lost_leases = Counter("synapse_lost_leases", "Leases that this process lost", registry=self.registry)
        self.suspended = Gauge(
            "synapse_worker_suspended", "1 while Redis or PostgreSQL does not answer", registry=self.registry
        )
        info = Gauge("synapse_worker_info", "The worker's version", ["version"], registry=self.registry)
        info.labels(__version__).set(1)

    def runs_completed(self, tenant_id: str, status: str) -> None:
        """Count a run that ended."""
        self._runs_completed.labels(self._bounded("tenant_id", tenant_id), status).inc()

    def chat_job(self, tenant_id: str, status: str) -> None:
        """Count a turn of a chat that ended."""
        self._chat_jobs.labels(self._bounded("tenant_id", tenant_id), status).inc()

    def run_duration(self, tenant_id: str, seconds: float) -> None:
        """Observe a run's active seconds."""
        self._run_duration.labels(self._bounded("tenant_id", tenant_id)).observe(seconds)

    def step_duration(self, step_type: str, seconds: float) -> None:
        """Observe a step's seconds."""
        series = self._step_durations.get(step_type)
        if series is None:  # finding it by its labels takes longer than all else here
            series = self._step_durations[step_type] = self._step_duration.labels(step_type)
        series.observe(seconds)

    def webhook_delivery(self, status: str) -> None:
        """Count an attempt to deliver a webhook: delivered, failed (another follows) or given_up."""
        self._webhook_deliveries.labels(status).inc()

    def queues(self, figures: Mapping[str, tuple[int, int, float]]) -> None:
        """Set the gauges of queues.

        Args:
            figures: key -> jobs that wait, how many of them are parked, seconds that the oldest has waited.
        """
        named: dict[str, tuple[int, int, float]] = {}
        for name, (depth, parked, oldest) in figures.items():
            label = self._bounded("queue_name", name)
            before = named.get(label, (0, 0, 0.0))
            named[label] = (before[0] + depth, before[1] + parked, max(before[2], oldest))
        for label, (depth, parked, oldest) in named.items():
            self._queue_depth.labels(label).set(depth)
            self._parked_jobs.labels(label).set(parked)
            self._oldest_job.labels(label).set(oldest)

    def text(self) -> bytes:
        """Return all series in Prometheus' text form."""
        return generate_latest(self.registry)


class ApiMetrics:
    """All series of an API process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bounded = _BoundedLabels().value
        self._enqueued = Counter(
            "synapse_runs_enqueued",
            "Runs that this process has enqueued, by tenant and orchestration",
            ["tenant_id", "orch_id"],
            registry=self.registry,
        )
        self._runs_completed = Counter(
            "synapse_runs_completed",
            "Runs that ended here while they waited, by tenant and status",
            ["tenant_id", "status"],
            registry=self.registry,
        )
        self._refused = Counter(
            "synapse_api_refusals", "Requests that were refused, by reason", ["reason"], registry=self.registry
        )
        self._answered = Histogram(
            "synapse_api_request_seconds",
            "Seconds until an answer has ended, by method, route and status",
            ["method", "route", "status"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self.streams = Gauge(
            "synapse_api_streams", "Streams of events that clients of this process follow", registry=self.registry
        )
        self._active_workers = Gauge(
            "synapse_active_workers", "Workers that are online, of all processes", registry=self.registry
        )
        self._active_runs = Gauge("synapse_active_runs", "Jobs that are leased, of all queues", registry=self.registry)
        self._queue_depth = Gauge(
            "synapse_queue_depth", "Jobs that wait in a queue", ["queue_name"], registry=self.registry
        )

    def enqueued(self, tenant_id: str, orchestration_id: str) -> None:
        """Count a run that was enqueued."""
        tenant, orchestration = self._bounded("tenant_id", tenant_id), self._bounded("orch_id", orchestration_id)
        self._enqueued.labels(tenant, orchestration).inc()

    def runs_completed(self, tenant_id: str, status: str) -> None:
        """Count a run that ended while it waited."""
        self._runs_completed.labels(self._bounded("tenant_id", tenant_id), status).inc()

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""
        self._refused.labels(reason).inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Observe an answer; whoever asks chooses the method, with or without a key."""
        method = method if method in _METHODS else _OTHER
        self._answered.labels(method, route, str(status)).observe(seconds)

    def installation(self, *, workers: int, active: int, waiting: Mapping[str, int]) -> None:
        """Set what is true of the whole installation.

        Args:
            waiting: name of each queue with jobs -> how many of them wait.
        """
        self._active_workers.set(workers)
        self._active_runs.set(active)
        self._queue_depth.clear()
        named: dict[str, int] = {}
        for name, jobs in waiting.items():
            label = self._bounded("queue_name", name)
            named[label] = named.get(label, 0) + jobs
        for label, jobs in named.items():
            self._queue_depth.labels(label).set(jobs)

    def text(self) -> bytes:
        """Return all series in Prometheus' text form."""
        return generate_latest(self.registry)
