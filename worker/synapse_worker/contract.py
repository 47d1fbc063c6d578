"""What the worker image promises to whoever starts it: its environment, queues and timing formulas.

This module exists so that the operator's renderer, the worker's settings and docs/environment.md
read one table. It holds data and pure rules only (standard library, no client, clock or environment);
`settings` reads the environment by it, `queueing.keys` holds the names of Redis keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_QUEUE = "default"
"""The shard that is served whatever the topology says: upstream main instances enqueue there."""

TENANT_POOL = "tenants"
"""The value of WORKER_QUEUE_SHARD that stands for the pool serving all tenant queues."""

MAX_SHARDS = 64

PROCESS_MARGIN_SECONDS = 15
"""Seconds between the end of a worker's drain and the kubelet's kill: hand-back, last writes, exit."""

TENANT_ID_MAX_LENGTH = 255


class Kind(StrEnum):
    """How a variable's text is parsed."""

    TEXT = "text"
    INTEGER = "integer"
    SWITCH = "switch"
    URL = "url"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the image.

    Attributes:
        name: the variable's name.
        default: the text that stands for "unset"; None = required.
        kind: how it is parsed; INTEGER has `minimum` and `maximum` (inclusive), CHOICE has `choices`.
        meaning: one sentence with the unit.
        secret: its value is never printed.
        stored: the key of `scale_settings` whose value stands in when the variable is unset, if any.
    """

    name: str
    default: str | None
    kind: Kind
    meaning: str
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False
    stored: str | None = None

    @property
    def accepts(self) -> str:
        """What the variable accepts, as the end of a sentence."""
        if self.kind is Kind.INTEGER:
            return f"a whole number from {self.minimum} to {self.maximum}"
        if self.kind is Kind.SWITCH:
            return "0 or 1"
        if self.kind is Kind.CHOICE:
            return "one of " + ", ".join(self.choices)
        if self.kind is Kind.URL:
            return "a connection URL"
        return "text"


def _integer(name: str, default: int, low: int, high: int, meaning: str, *, stored: str | None = None) -> Variable:
    return Variable(name, str(default), Kind.INTEGER, meaning, low, high, stored=stored)


def _text(name: str, default: str, meaning: str, *, secret: bool = False, stored: str | None = None) -> Variable:
    return Variable(name, default, Kind.TEXT, meaning, secret=secret, stored=stored)


VARIABLES: tuple[Variable, ...] = (
    Variable("REDIS_URL", None, Kind.URL, "Redis: redis://host:6379/0, redis://:password@host:6379/0, rediss://host:6380/0 (TLS), or a cluster: redis+cluster://host:6379,host:6379 (rediss+cluster:// with TLS), without a database", secret=True),
    Variable("SCALE_POSTGRES_URL", None, Kind.URL, "PostgreSQL: postgresql://user:password@host:5432/dbname, with ?sslmode=require where wanted; a dedicated database", secret=True),
    _integer("WORKER_CONCURRENCY", 10, 1, 100, "jobs that one process runs at once", stored="worker_concurrency"),
    _integer("WORKER_JOB_TIMEOUT", 3600, 1, 604_800, "active seconds until a job is cancelled and its run marked failed", stored="job_timeout"),
    _integer("WORKER_MAX_RETRIES", 3, 0, 100, "retries after a failed execution before the dead-letter queue (3 = up to 4 executions)", stored="max_retries"),
    _integer("WORKER_HEALTH_PORT", 9000, 1, 65_535, "port of the HTTP health and metrics endpoints"),
    _text("WORKER_QUEUE_SHARD", DEFAULT_QUEUE, "shards to serve: `default`, an index 0 to 63, a tenant id, or `tenants` (the pool that serves the queues of all tenants without workers of their own); comma-separated for several"),
    _integer("NUM_QUEUE_SHARDS", 1, 1, MAX_SHARDS, "queue shards that commands of this image enqueue to; the table scale_topology wins where it has a row"),
    _text("DEFAULT_TENANT_ID", "default", "tenant of a run or a request that names none"),
    Variable("ENABLE_TENANT_ISOLATION", "0", Kind.SWITCH, "1 = commands of this image enqueue to a queue of each tenant's own; the table scale_topology wins where it has a row"),
    Variable("PGBOUNCER_MODE", "0", Kind.SWITCH, "1 = no connection pool and no prepared statements, for PgBouncer in transaction mode"),
    _text("S3_BUCKET", "", "bucket for vault files and run logs, which must exist; empty = the folder SYNAPSE_DATA_DIR of the local disk", stored="s3_bucket"),
    _text("S3_REGION", "us-east-1", "region of the bucket", stored="s3_region"),
    _text("S3_PREFIX", "synapse", "prefix of all objects: <prefix>/vault/... and <prefix>/logs/...; at most 128 bytes", stored="s3_prefix"),
    _text("S3_ACCESS_KEY_ID", "", "access key, given together with the secret key; both empty = the ambient credential chain", secret=True, stored="s3_access_key_id"),
    _text("S3_SECRET_ACCESS_KEY", "", "secret key, given together with the access key; both empty = the ambient credential chain", secret=True, stored="s3_secret_access_key"),
    _text("S3_ENDPOINT_URL", "", "http:// or https:// URL of an S3-compatible store; empty = AWS", stored="s3_endpoint_url"),
    _text("OTLP_ENDPOINT", "", "OTLP gRPC endpoint, http://host:4317 (plain) or https://host (TLS); empty = tracing off. The standard OTEL_* variables are honoured: headers, certificate, resource attributes, sampling"),
    _text("METRICS_TOKEN", "", "bearer token of /metrics and of the V2 API's /api/v2/metrics; empty = open", secret=True),
    Variable("K8S_MODE", "0", Kind.SWITCH, "1 = probes and shutdown for Kubernetes"),
    _integer("PUBSUB_EVENT_TTL", 3600, 60, 2_592_000, "seconds that step events stay replayable", stored="event_ttl"),
    _integer("RUNS_RETENTION_DAYS", 90, 1, 3650, "days that ended runs are kept", stored="runs_retention_days"),
    _integer("MAX_GLOBAL_QUEUE_DEPTH", 1_000_000, 1, 100_000_000, "queued plus active jobs over all tenants; the V2 API answers 503 to more", stored="max_queue_depth"),
    _integer("RATE_LIMIT_PER_TENANT_RPS", 1000, 1, 1_000_000, "requests of the V2 API per second and tenant; more are 429", stored="rate_limit_per_tenant"),
    _integer("WORKER_LEASE_SECONDS", 30, 3, 600, "seconds that a claim holds without a heartbeat"),
    _integer("WORKER_DRAIN_SECONDS", 20, 0, 86_400, "seconds after SIGTERM until what still runs is interrupted and handed back"),
    _text("REDIS_CA_FILE", "", "PEM file with the CA of rediss:// and rediss+cluster://; empty = the system's"),
    _text("POSTGRES_CA_FILE", "", "PEM file with the CA of PostgreSQL; empty = the system's"),
    _text("SYNAPSE_DATA_DIR", "/data", "folder of vault files and run logs where there is no bucket"),
    _text("SYNAPSE_DEFINITIONS_DIR", "", "folder of definitions that `synapse-worker sync` and the V2 API's sync read when they are given none"),
    _integer("API_PORT", 8765, 1, 65_535, "port of the V2 API"),
    Variable("API_AUTH", "keys", Kind.CHOICE, "how the V2 API authenticates: API keys, or not at all", choices=("keys", "off")),
    _text("WEBHOOK_ALLOW", "", "networks (CIDR), addresses and host names that webhooks may reach although they are not public; comma-separated"),
    Variable("LOG_LEVEL", "info", Kind.CHOICE, "least severe log lines written", choices=("debug", "info", "warning", "error")),
    Variable("LOG_FORMAT", "json", Kind.CHOICE, "form of log lines", choices=("json", "console")),
)  # fmt: skip
"""Every variable of the image; the order is the order of docs/environment.md."""

OTLP_HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"
"""The one of OpenTelemetry's own variables that holds a secret, and that the operator therefore knows."""

BY_NAME: dict[str, Variable] = {variable.name: variable for variable in VARIABLES}


@dataclass(frozen=True, slots=True)
class ProbeTiming:
    """Numbers of one Kubernetes probe, in seconds (and failures)."""

    period: int
    timeout: int
    failures: int

    @property
    def patience(self) -> int:
        """Seconds until a probe that never succeeds has failed for good."""
        return self.period * self.failures


STARTUP_PROBE = ProbeTiming(period=2, timeout=2, failures=60)
READINESS_PROBE = ProbeTiming(period=5, timeout=3, failures=2)
LIVENESS_PROBE = ProbeTiming(period=10, timeout=5, failures=3)

LIVENESS_BOUND_SECONDS = LIVENESS_PROBE.patience
"""A loop or claim turn older than this is stuck; every store call times out well below it."""

STORE_TIMEOUT_SECONDS = 10.0
"""Longest wait for one call to Redis or Postgres; shorter than the liveness bound by design."""


def grace_period_seconds(drain_seconds: int) -> int:
    """Return a pod's termination grace period (seconds) for a worker that drains for `drain_seconds`."""
    return drain_seconds + PROCESS_MARGIN_SECONDS
