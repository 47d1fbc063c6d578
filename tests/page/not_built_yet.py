"""Statements of the configuration page whose reader comes later, each with the letter of the issue that brings it.

What a user sets for one of them must not vanish silently: it is refused with a sentence, or docs/environment.md says
that it is not read yet. Which of the two is given with each statement, and test_not_built_yet.py checks it. Whoever
builds one takes it from here and writes its tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NotBuiltYet:
    """One statement, and what stands in for its reader; at least one of the last three is given.

    Attributes:
        section: the page's heading.
        statement: the page's words, shortened.
        issue: letter of the issue that builds it.
        variables: documented as not read yet in docs/environment.md.
        field: dotted path of the SynapseScale field that a manifest may not have yet.
        command: word that `synapse-worker` does not know yet.
    """

    section: str
    statement: str
    issue: str
    variables: tuple[str, ...] = ()
    field: str = ""
    command: str = ""


_S3 = ("S3_BUCKET", "S3_REGION", "S3_PREFIX", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL")

NOT_BUILT_YET: tuple[NotBuiltYet, ...] = (
    NotBuiltYet(
        "Enable Scale Mode",
        "All V2 API calls route jobs through the queue and return 202 Accepted with a run_id",
        "E",
        variables=("API_PORT", "API_AUTH"),
        command="api",
    ),
    NotBuiltYet(
        "Enable Scale Mode",
        "When disabled, the V2 API falls back to inline execution and blocks until the run completes",
        "E",
        variables=("API_PORT",),
        command="api",
    ),
    NotBuiltYet(
        "S3 storage",
        "Vault files and execution logs are stored in S3 and shared across all worker instances",
        "D",
        variables=_S3,
        field="storage",
    ),
    NotBuiltYet("S3 bucket", "The name of the S3 bucket to use", "D", variables=("S3_BUCKET",), field="storage"),
    NotBuiltYet("Region", "The AWS region where the bucket is located", "D", variables=("S3_REGION",)),
    NotBuiltYet("Key prefix", "All objects are stored under this prefix", "D", variables=("S3_PREFIX",)),
    NotBuiltYet(
        "Access key ID and secret access key",
        "Leave both fields blank to use the instance's IAM role instead",
        "D",
        variables=("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"),
    ),
    NotBuiltYet("Endpoint URL", "Set this to use an S3-compatible store", "D", variables=("S3_ENDPOINT_URL",)),
    NotBuiltYet(
        "OTLP endpoint",
        "Every orchestration run generates a distributed trace; leave blank to disable tracing",
        "E",
        variables=("OTLP_ENDPOINT",),
        field="observability",
    ),
    NotBuiltYet(
        "Metrics token",
        "Prometheus scrapes GET /api/v2/metrics with it",
        "E",
        variables=("API_PORT",),
        field="observability",
        command="api",
    ),
    NotBuiltYet(
        "Max global queue depth",
        "When this limit is exceeded, new job submissions return 503 Service Unavailable",
        "E",
        variables=("MAX_GLOBAL_QUEUE_DEPTH",),
    ),
    NotBuiltYet(
        "Rate limit per tenant",
        "Requests above this limit return 429 Too Many Requests",
        "E",
        variables=("RATE_LIMIT_PER_TENANT_RPS",),
    ),
    NotBuiltYet(
        "Adding a tenant",
        "max_queued_runs: submissions above this return 429; a tenant that is not created uses the global defaults",
        "E",
        command="api",
    ),
    NotBuiltYet(
        "Environment variables reference",
        "RUNS_RETENTION_DAYS: a cleanup job removes older records automatically",
        "D",
        variables=("RUNS_RETENTION_DAYS",),
        field="retention",
    ),
)
