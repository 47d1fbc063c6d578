"""SynapseScale: one Redis, one PostgreSQL, and the workers that serve them.

The settings page of a cluster as a Kubernetes resource. Descriptions here are `kubectl explain` and the
reference page; ranges and defaults that the workers know too come from `synapse_worker.contract`.
A field with a counterpart among the settings stored in Postgres has no default here: a default would become
an environment variable and hide the stored value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from synapse_operator.api.common import (
    ApiModel,
    Condition,
    FreeForm,
    JsonObject,
    LocalObjectReference,
    ObjectMeta,
    PrinterColumn,
    Resource,
    ScaleSubresource,
    SecretKeySelector,
    first_problem,
    rule,
)
from synapse_operator.api.observability import ObservabilitySpec
from synapse_operator.api.overlay import PodOverlay
from synapse_operator.api.reasons import ConditionType
from synapse_operator.api.storage import StorageSpec
from synapse_operator.api.tier import ApiTierSpec, ApiTierStatus
from synapse_operator.api.workers import PoolSpec, WorkersOverride, WorkersSpec, accepted
from synapse_operator.naming import SCALE_KIND, SCALE_PLURAL, SYNC_LABEL, SYNC_NOW_ANNOTATION
from synapse_worker.contract import BY_NAME, MAX_SHARDS, TENANT_ID_MAX_LENGTH
from synapse_worker.routing import HIGHEST_PRIORITY

URL_MAX_LENGTH = 2048

EVENT_TTL = BY_NAME["PUBSUB_EVENT_TTL"]
RUN_DAYS = BY_NAME["RUNS_RETENTION_DAYS"]
MAX_DEPTH = BY_NAME["MAX_GLOBAL_QUEUE_DEPTH"]
RATE_LIMIT = BY_NAME["RATE_LIMIT_PER_TENANT_RPS"]

MAX_SHARD_ENTRIES = 512
MAX_SOURCES = 32
MAX_SYNC_ERRORS = 20
MAX_SYNC_MESSAGE = 1000
MAX_SYNC_NOW = 253

# A colon and later an @: a password. Without the second pattern, a URL with host and port and an @ in its
# query would count too. A password with an unencoded / or ? in it makes the URL invalid, but it would be
# readable all the same, so the first pattern takes those as well.
_SHOWS_CREDENTIALS = (
    "(self.matches('://[^@]*:[^@]*@') && !self.matches('^[a-z+]+://[^@:/?#]+(:[0-9]+)?(/[^@?#]*)?[?#]'))"
    " || self.matches('(?i)[?&](ssl)?password=')"
)
_NO_CREDENTIALS = rule(
    f"!({_SHOWS_CREDENTIALS})",
    "an inline URL with a password puts the password where everybody who may view the resource reads it: "
    "put the URL in a Secret and name it in urlSecretRef",
)


def _exactly_one_url(store: str) -> ConfigDict:
    message = f"{store}: give exactly one of urlSecretRef and url"
    return ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [rule("has(self.url) != has(self.urlSecretRef)", message)]}
    )


def _scheme(store: str, pattern: str, accepted: str) -> JsonObject:
    return rule(f"self.matches('{pattern}')", f"{store}: url must start with {accepted}")


class RedisSpec(ApiModel):
    """The Redis that holds queues, leases and events; version 6.2 or newer, a single node or a Redis Cluster."""

    model_config = _exactly_one_url("redis")

    url_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description=(
            "Key of a Secret that holds the connection URL, for example `redis://:password@redis:6379/0`, "
            "`rediss://` for TLS, or `redis+cluster://:password@node1:6379,node2:6379` for a Redis Cluster "
            "(`rediss+cluster://` with TLS). When its value changes, the workers are rolled within about a minute. "
            "No default; give this or url."
        ),
    )
    url: str | None = Field(
        default=None,
        min_length=1,
        max_length=URL_MAX_LENGTH,
        description=(
            "Connection URL without a password, for example `redis://redis:6379/0`, `rediss://` for TLS, or "
            "`redis+cluster://node1:6379,node2:6379` for a Redis Cluster (`rediss+cluster://` with TLS); "
            f"1 to {URL_MAX_LENGTH} characters. No default; give this or urlSecretRef."
        ),
        json_schema_extra={
            "x-kubernetes-validations": [
                _scheme(
                    "redis",
                    "^rediss?([+]cluster)?://",
                    "redis://, rediss://, redis+cluster:// or rediss+cluster://",
                ),
                _NO_CREDENTIALS,
            ]
        },
    )
    ca_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description=(
            "Key of a Secret that holds the certificates (PEM) that the server's certificate is checked with, when "
            "it is not signed by a public authority. Unset: those of the system."
        ),
    )


class PostgresSpec(ApiModel):
    """The PostgreSQL database that holds definitions, runs and settings; a database of its own is best."""

    model_config = _exactly_one_url("postgres")

    url_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description=(
            "Key of a Secret that holds the connection URL, for example "
            "`postgresql://user:password@postgres:5432/synapse?sslmode=require`. When its value changes, the "
            "workers are rolled within about a minute. No default; give this or url."
        ),
    )
    url: str | None = Field(
        default=None,
        min_length=1,
        max_length=URL_MAX_LENGTH,
        description=(
            "Connection URL without a password, for example `postgresql://synapse@postgres:5432/synapse`; "
            f"1 to {URL_MAX_LENGTH} characters. No default; give this or urlSecretRef."
        ),
        json_schema_extra={
            "x-kubernetes-validations": [
                _scheme("postgres", "^postgres(ql)?://", "postgresql:// or postgres://"),
                _NO_CREDENTIALS,
            ]
        },
    )
    ca_secret_ref: SecretKeySelector | None = Field(
        default=None,
        description=(
            "Key of a Secret that holds the certificates (PEM) that the server's certificate is checked with, when "
            "it is not signed by a public authority. Unset: those of the system."
        ),
    )
    pgbouncer: bool = Field(
        default=False,
        description=(
            "Set true when the URL leads to PgBouncer in transaction mode: workers then keep no connections and "
            "prepare no statements. Default: false."
        ),
    )


class RouteSpec(ApiModel):
    """Jobs that go to a shard of their own."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "(has(self.tenants) && size(self.tenants) > 0) || has(self.minPriority)",
                    "queue.routes: give tenants, minPriority or both; a route of neither would take every job",
                )
            ]
        }
    )

    shard: int = Field(
        ge=0, le=MAX_SHARDS - 1, description=f"Index of the shard. Range: 0 to {MAX_SHARDS - 1}. No default."
    )
    tenants: tuple[
        Annotated[str, Field(min_length=1, max_length=TENANT_ID_MAX_LENGTH, description="A tenant id.")], ...
    ] = Field(
        default=(),
        max_length=256,
        description="Tenants whose jobs go there. Default: those of every tenant.",
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
    min_priority: int | None = Field(
        default=None,
        ge=0,
        le=HIGHEST_PRIORITY,
        description=f"Lowest priority of jobs that go there. Range: 0 to {HIGHEST_PRIORITY}. Unset: every priority.",
    )


_SHARD_INDEXES = "[" + ", ".join(str(shard) for shard in range(MAX_SHARDS)) + "]"


class QueueSpec(ApiModel):
    """How jobs are spread over queues."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.routes) || self.routes.all(route, route.shard < self.shards)",
                    "queue.routes: a route names a shard that does not exist; the shards are 0 to queue.shards - 1",
                ),
                rule(
                    "!has(self.routes) || size(self.routes) == 0"
                    f" || {_SHARD_INDEXES}.exists(shard, shard < self.shards"
                    " && !self.routes.exists(route, route.shard == shard))",
                    "queue.routes: every shard is named by a route; leave one at least for all other jobs, or raise "
                    "queue.shards",
                ),
            ]
        }
    )

    shards: int = Field(
        default=1,
        ge=1,
        le=MAX_SHARDS,
        description=(
            "Number of queues, each with a Deployment of its own. Jobs are spread over them by run; the queue "
            "`default`, which main instances enqueue to, is served by shard 0 always. When it is lowered, the shards "
            f"above are emptied before their workers go. Range: 1 to {MAX_SHARDS}. Default: 1."
        ),
    )
    max_depth: int | None = Field(
        default=None,
        ge=MAX_DEPTH.minimum,
        le=MAX_DEPTH.maximum,
        description=(
            "Jobs, waiting and running, over all queues; the V2 API answers 503 to more. "
            f"Range: {MAX_DEPTH.minimum} to {MAX_DEPTH.maximum}. Unset: the setting stored in Postgres, else "
            f"{MAX_DEPTH.default}."
        ),
    )
    routes: tuple[RouteSpec, ...] = Field(
        default=(),
        max_length=MAX_SHARDS,
        description=(
            "Jobs that go to shards of their own, which all other jobs keep away from; the first route that takes a "
            "job wins. Default: none."
        ),
    )


class TenancySpec(ApiModel):
    """Whose runs these are, and whether each tenant has a queue of its own."""

    isolation: bool = Field(
        default=False,
        description=(
            "Whether each tenant has a queue of its own, which the tenant pool serves by turns: a tenant with many "
            "jobs holds up nobody else. When it is switched off, the queues are emptied before the pool goes. "
            "Default: false."
        ),
    )
    pool: WorkersOverride = Field(
        default_factory=WorkersOverride,
        description=(
            "The workers of the tenant pool, where they are otherwise than spec.workers says. Default: as spec.workers."
        ),
        json_schema_extra={"default": {}},
    )

    default_tenant_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=TENANT_ID_MAX_LENGTH,
        description=(
            f"Tenant of a run that names none; 1 to {TENANT_ID_MAX_LENGTH} characters. "
            f"Unset: `{BY_NAME['DEFAULT_TENANT_ID'].default}`."
        ),
    )

    rate_limit_rps: int | None = Field(
        default=None,
        ge=RATE_LIMIT.minimum,
        le=RATE_LIMIT.maximum,
        description=(
            "Requests a second to the V2 API for each tenant; more are refused with 429. "
            f"Range: {RATE_LIMIT.minimum} to {RATE_LIMIT.maximum}. Unset: the setting stored in Postgres, else "
            f"{RATE_LIMIT.default}."
        ),
    )


class RetentionSpec(ApiModel):
    """How long what is over is kept."""

    event_ttl_seconds: int | None = Field(
        default=None,
        ge=EVENT_TTL.minimum,
        le=EVENT_TTL.maximum,
        description=(
            "Seconds that the events of a run stay in Redis, where clients that reconnect read them. "
            f"{accepted(EVENT_TTL)} Unset: the setting stored in Postgres (`{EVENT_TTL.stored}`), else "
            f"{EVENT_TTL.default}."
        ),
    )
    run_days: int | None = Field(
        default=None,
        ge=RUN_DAYS.minimum,
        le=RUN_DAYS.maximum,
        description=(
            "Days that ended runs stay in Postgres, with their steps; then they are removed, unless a dead letter of "
            f"theirs is not dealt with. {accepted(RUN_DAYS)} Unset: the setting stored in Postgres "
            f"(`{RUN_DAYS.stored}`), else {RUN_DAYS.default}."
        ),
    )


class NetworkPolicySpec(ApiModel):
    """Who may talk to the workers, and to whom they may talk."""

    enabled: bool = Field(
        default=False,
        description=(
            "Whether workers and the V2 API get a NetworkPolicy: in, only the port of probes and metrics, and of the "
            "API where it is served; out, only DNS, the hosts' "
            "ports of both stores, of storage.s3.endpointUrl and of the collector of traces, cloud credentials "
            "(169.254.169.254, 169.254.170.2, 169.254.170.23) and port 443. It needs a network plugin that enforces "
            "policies. Default: false."
        ),
    )
    extra_egress: tuple[FreeForm, ...] = Field(
        default=(),
        max_length=64,
        description=(
            "More that workers may reach, as in `egress` of a NetworkPolicy, for example a model server in the "
            "cluster; checked when applied. Default: none."
        ),
    )


class PodDisruptionBudgetSpec(ApiModel):
    """How many workers an eviction may take at once."""

    enabled: bool = Field(
        default=True,
        description=(
            "Whether each shard, and the V2 API, has a PodDisruptionBudget that lets one pod go at a time, and any "
            "that is not ready. Default: true."
        ),
    )


class SyncSource(ApiModel):
    """A ConfigMap or a Secret that holds definitions and settings."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "has(self.configMapRef) != has(self.secretRef)",
                    "sync.sources: give exactly one of configMapRef and secretRef",
                )
            ]
        }
    )

    config_map_ref: LocalObjectReference | None = Field(
        default=None,
        description=(
            "ConfigMap whose keys (.json, .yaml, .yml or without a suffix) hold definitions and settings that are no "
            "secrets. No default; give this or secretRef."
        ),
    )
    secret_ref: LocalObjectReference | None = Field(
        default=None,
        description=(
            "Secret whose keys hold the same, and model keys and tokens. No default; give this or configMapRef."
        ),
    )


class SyncSpec(ApiModel):
    """What the operator syncs into PostgreSQL."""

    auto: bool = Field(
        default=True,
        description=(
            "true: synced at each resync (60 seconds), and within seconds when a ConfigMap labelled "
            f"`{SYNC_LABEL}: <name of the SynapseScale>` changes. false: only when the annotation "
            f"`{SYNC_NOW_ANNOTATION}` of the SynapseScale changes. Default: true."
        ),
    )
    sources: tuple[SyncSource, ...] = Field(
        default=(),
        max_length=MAX_SOURCES,
        description=(
            "Where definitions and settings come from; where two define the same, the first one counts. What is no "
            f"longer in them is taken back. 0 to {MAX_SOURCES}. Default: none."
        ),
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class SynapseScaleSpec(ApiModel):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.pools) || self.pools.all(a, self.pools.all(b, a.name == b.name"
                    " || !sets.intersects(a.shards, b.shards)))",
                    "pools: a shard is in two pools; each shard is in one at most",
                )
            ]
        }
    )

    enabled: bool = Field(
        default=True,
        description=(
            "Scale mode. false: workers finish what runs and what is queued, then go to 0; nothing is cancelled, and "
            "a job that still arrives brings one worker back. Default: true."
        ),
    )
    image: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        pattern=r"^\S+$",
        description=(
            "Image of the workers, by tag or digest, from any registry; takes the place of "
            "`synapseorchai/synapse-ai-worker` and reads the same variables. Unset: the worker image of the operator's "
            "release."
        ),
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent",
        description="When a node pulls the image: Always, IfNotPresent or Never. Default: IfNotPresent.",
    )
    image_pull_secrets: tuple[LocalObjectReference, ...] = Field(
        default=(),
        max_length=16,
        description="Secrets of type kubernetes.io/dockerconfigjson for the registry; 0 to 16, by name. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    redis: RedisSpec = Field(
        description=(
            "The Redis that holds queues, leases and events: version 6.2 or newer, a single node or a Redis Cluster. "
            "Required."
        )
    )
    postgres: PostgresSpec = Field(
        description="The PostgreSQL database that holds definitions, runs and settings; best one of its own. Required."
    )
    queue: QueueSpec = Field(
        default_factory=QueueSpec,
        description="How jobs are spread over queues. Default: one queue, `default`.",
        json_schema_extra={"default": {}},
    )
    workers: WorkersSpec = Field(
        default_factory=WorkersSpec,
        description="The workers of each shard. Default: one worker.",
        json_schema_extra={"default": {}},
    )
    sync: SyncSpec = Field(
        default_factory=SyncSpec,
        description=(
            "Orchestrations, agents, tools, MCP servers and settings that the operator keeps in PostgreSQL as "
            "ConfigMaps and Secrets say. Default: none; definitions come from a main instance or the command line."
        ),
        json_schema_extra={"default": {}},
    )
    pools: tuple[PoolSpec, ...] = Field(
        default=(),
        max_length=16,
        description="Shards whose workers are otherwise than spec.workers says. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    tenancy: TenancySpec = Field(
        default_factory=TenancySpec,
        description="Whose runs these are. Default: those of the tenant `default`.",
        json_schema_extra={"default": {}},
    )
    retention: RetentionSpec = Field(
        default_factory=RetentionSpec,
        description="How long what is over is kept. Default: as stored in Postgres, else as the image has it.",
        json_schema_extra={"default": {}},
    )
    observability: ObservabilitySpec = Field(
        default_factory=ObservabilitySpec,
        description="Traces and metrics of the workers. Default: no traces, and metrics behind a generated token.",
        json_schema_extra={"default": {}},
    )
    storage: StorageSpec = Field(
        default_factory=StorageSpec,
        description="Where vault files and run logs are. Default: on each worker's own disk.",
        json_schema_extra={"default": {}},
    )
    api: ApiTierSpec = Field(
        default_factory=ApiTierSpec,
        description=(
            "The V2 API, served by pods of the workers' image, with workers.template laid over them. Default: off."
        ),
        json_schema_extra={"default": {}},
    )
    network_policy: NetworkPolicySpec = Field(
        default_factory=NetworkPolicySpec,
        description="Who may talk to the workers, and to whom they may talk. Default: no NetworkPolicy.",
        json_schema_extra={"default": {}},
    )
    pod_disruption_budget: PodDisruptionBudgetSpec = Field(
        default_factory=PodDisruptionBudgetSpec,
        description="How many workers of a shard an eviction may take at once. Default: one.",
        json_schema_extra={"default": {}},
    )

    @property
    def overlays(self) -> tuple[PodOverlay, ...]:
        """What is laid over the pods of any workers."""
        others = (self.tenancy.pool.template, *(pool.template for pool in self.pools))
        return (self.workers.template, *(overlay for overlay in others if overlay is not None))

    def pool_of(self, shard: int) -> PoolSpec | None:
        """Return the pool that a shard is in; None = the workers of `workers`."""
        return next((pool for pool in self.pools if shard in pool.shards), None)

    def workers_of(self, shard: int) -> WorkersSpec:
        """Return what the workers of a shard are like."""
        pool = self.pool_of(shard)
        return self.workers if pool is None else self.workers.overridden(pool)


class WorkersStatus(ApiModel):
    """The workers as they are."""

    desired: int = Field(ge=0, description="Worker pods that are wanted now, over all shards.")
    ready: int = Field(ge=0, description="Worker pods that answer their readiness probe.")
    summary: str = Field(max_length=32, description="`ready/desired`, for the WORKERS column.")
    capacity: int | None = Field(
        default=None,
        ge=0,
        description="Jobs that the workers which are online can run at once. Absent: PostgreSQL cannot be asked.",
    )
    active: int | None = Field(
        default=None,
        ge=0,
        description="Jobs that the workers run, by their last heartbeat. Absent: PostgreSQL cannot be asked.",
    )


class EffectiveValue(ApiModel):
    """A setting as workers that start now get it."""

    value: int = Field(description="The value.")
    source: Literal["Spec", "Stored", "Default"] = Field(
        description="Spec: the field. Stored: the setting saved in PostgreSQL. Default: that of the image."
    )


class EffectiveStatus(ApiModel):
    """Settings that may come from several places. Absent: the spec is silent and PostgreSQL cannot be asked."""

    concurrency: EffectiveValue | None = Field(default=None, description="Jobs that one worker runs at once.")
    job_timeout_seconds: EffectiveValue | None = Field(
        default=None, description="Seconds of work until a job is cancelled."
    )
    max_retries: EffectiveValue | None = Field(default=None, description="Retries after a failed execution.")
    event_ttl_seconds: EffectiveValue | None = Field(
        default=None, description="Seconds that the events of a run stay in Redis."
    )
    run_days: EffectiveValue | None = Field(default=None, description="Days that ended runs stay in Postgres.")


class ShardStatus(ApiModel):
    """One shard as it is."""

    name: str = Field(
        max_length=63,
        description=(
            "Index of the shard, `tenants` for the pool of tenants' queues, or `tenant-` and a hash for the workers of "
            "a single SynapseTenant."
        ),
    )
    queue: str = Field(max_length=255, description="Queues that its workers serve, as in WORKER_QUEUE_SHARD.")
    pool: str | None = Field(default=None, max_length=63, description="Its pool. Absent: workers as in spec.workers.")
    desired: int = Field(ge=0, description="Worker pods that are wanted.")
    ready: int = Field(ge=0, description="Worker pods that answer their readiness probe.")
    queued: int | None = Field(
        default=None, ge=0, description="Jobs that wait for a worker. Absent: Redis cannot be asked."
    )
    active: int | None = Field(
        default=None, ge=0, description="Jobs that a worker holds a lease on. Absent: Redis cannot be asked."
    )
    state: Literal["Active", "Draining", "Idle"] = Field(
        description=(
            "Active: new jobs come here. Draining: none do any more; what is here is worked off, then the workers go. "
            "Idle: none do yet, as its workers or those of other new shards are not ready."
        )
    )


class QueueStatus(ApiModel):
    """The queues as they are, written at most every 15 seconds. Absent: the store could not be asked."""

    queued: int | None = Field(
        default=None, ge=0, description="Jobs that wait for a worker. Absent: Redis cannot be asked."
    )
    active: int | None = Field(
        default=None, ge=0, description="Jobs that a worker holds a lease on. Absent: Redis cannot be asked."
    )
    parked: int | None = Field(
        default=None,
        ge=0,
        description=(
            "Jobs of `queued` that wait because their tenants run as many as they may. Absent: Redis cannot be asked."
        ),
    )
    oldest_seconds: int | None = Field(
        default=None,
        ge=0,
        description="Seconds that the first waiting job has been due. Absent: nothing waits, or Redis cannot be asked.",
    )
    dead_lettered: int | None = Field(
        default=None,
        ge=0,
        description="Unresolved dead letters, that is jobs that failed for good. Absent: PostgreSQL cannot be asked.",
    )


class SyncError(ApiModel):
    """One thing that was not synced."""

    source: str = Field(max_length=300, description="Kind and name of the source.")
    key: str | None = Field(
        default=None, max_length=253, description="Key of the source. Absent: the source as a whole."
    )
    line: int | None = Field(default=None, ge=1, description="Line of the key's text. Absent: no line is to blame.")
    message: str = Field(max_length=MAX_SYNC_MESSAGE, description="What is wrong and what is accepted.")


class SyncStatus(ApiModel):
    """The last sync."""

    last_sync_time: str = Field(
        json_schema_extra={"format": "date-time"},
        description="When a sync last changed something in PostgreSQL, or found something else than the one before.",
    )
    total_synced: int = Field(ge=0, description="Definitions and settings that PostgreSQL holds as the sources say.")
    errors: tuple[SyncError, ...] = Field(
        default=(),
        max_length=MAX_SYNC_ERRORS,
        description=f"What was not synced, the first {MAX_SYNC_ERRORS}; the condition counts all.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
    sync_now: str | None = Field(
        default=None,
        max_length=MAX_SYNC_NOW,
        description=f"Value of the annotation `{SYNC_NOW_ANNOTATION}` that was carried out.",
    )


class SynapseScaleStatus(ApiModel):
    """What is the case, written by the operator only."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="metadata.generation of the spec that this status was made for."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description=(
            "Ready, Reconciling, Stalled (as kstatus reads them), RedisReachable, RedisSafe, PostgresReachable, "
            "BackendExclusive, ChildrenApplied, DefinitionsSynced, StorageShared, ApiReady and Paused; reasons: "
            "docs/crd-reference.md."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    replicas: int | None = Field(
        default=None, ge=0, description="Worker pods for each shard as they are; what the scale subresource reports."
    )
    selector: str | None = Field(
        default=None,
        max_length=1024,
        description="Label selector of the worker pods; what the scale subresource reports.",
    )
    workers: WorkersStatus | None = Field(default=None, description="The workers as they are.")
    queue: QueueStatus | None = Field(
        default=None, description="The queues taken together, written at most every 15 seconds."
    )
    sync: SyncStatus | None = Field(
        default=None, description="The last sync of definitions. Absent: there was none, or no source is named."
    )
    shards: tuple[ShardStatus, ...] = Field(
        default=(),
        max_length=MAX_SHARD_ENTRIES,
        description=(
            "The shards one by one, figures at most every 15 seconds; tenants with workers of their own come last, "
            f"{MAX_SHARD_ENTRIES} entries at most."
        ),
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    unserved_queues: tuple[Annotated[str, Field(max_length=255, description="Name of a queue.")], ...] = Field(
        default=(),
        max_length=1024,
        description="Queues that hold jobs and are to have no worker: an order of the spec, such as replicas 0.",
    )
    effective: EffectiveStatus | None = Field(
        default=None,
        description="Settings that the spec, the stored ones or the image decide, for workers of no pool.",
    )
    api: ApiTierStatus | None = Field(
        default=None,
        description=("The V2 API as it is. Absent: spec.api is off, and no key of its Secret is left in PostgreSQL."),
    )
    image: str | None = Field(default=None, max_length=1024, description="Image that the workers are given.")


class SynapseScale(ApiModel):
    """One Redis, one PostgreSQL, and the workers that serve them.

    `status` is not read from here: whoever writes a status compares it with the JSON that is stored.
    """

    metadata: ObjectMeta
    spec: SynapseScaleSpec

    @property
    def terminating(self) -> bool:
        """Whether it is being deleted: its children go by their owner references, nothing is to be done."""
        return self.metadata.deletion_timestamp is not None


@dataclass(frozen=True, slots=True)
class InvalidScale:
    """A stored object that breaks the present schema, as an older CRD may have let in.

    Attributes:
        metadata: which object.
        sentence: the first thing that is wrong, and where.
    """

    metadata: ObjectMeta
    sentence: str


def read_scale(body: Mapping[str, object]) -> SynapseScale | InvalidScale:
    """Read a SynapseScale as the API server sent it (its defaults are in it)."""
    metadata = ObjectMeta.model_validate(body["metadata"])
    try:
        return SynapseScale(metadata=metadata, spec=SynapseScaleSpec.model_validate(body.get("spec") or {}))
    except ValidationError as error:
        return InvalidScale(metadata, first_problem(error))


def sync_asked(metadata: ObjectMeta, status: JsonObject) -> str | None:
    """Return the value of the sync-now annotation, as the status keeps it, when it has not been carried out yet."""
    asked = metadata.annotations.get(SYNC_NOW_ANNOTATION, "")[:MAX_SYNC_NOW]
    done = (status.get("sync") or {}).get("syncNow")
    return asked if asked and asked != done else None


def _condition_column(name: str, condition: str, field: str, description: str, *, wide: bool = True) -> PrinterColumn:
    path = f'.status.conditions[?(@.type=="{condition}")].{field}'
    return PrinterColumn(name, "string", path, description, wide=wide)


SCALE_RESOURCE = Resource(
    kind=SCALE_KIND,
    plural=SCALE_PLURAL,
    short_names=("sscale",),
    description=f"{SCALE_KIND}: one Redis, one PostgreSQL, and the workers that run the orchestrations in them.",
    spec=SynapseScaleSpec,
    status=SynapseScaleStatus,
    scale=ScaleSubresource(".spec.workers.replicas", ".status.replicas", ".status.selector"),
    columns=(
        _condition_column("Ready", ConditionType.READY, "status", "Whether all is well.", wide=False),
        PrinterColumn("Shards", "integer", ".spec.queue.shards", "Number of queues."),
        PrinterColumn("Workers", "string", ".status.workers.summary", "Workers that are ready / wanted."),
        PrinterColumn("Queued", "integer", ".status.queue.queued", "Jobs that wait; empty: Redis cannot be asked."),
        PrinterColumn("Active", "integer", ".status.queue.active", "Jobs that run; empty: Redis cannot be asked."),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp", "Time since it was created."),
        _condition_column("Redis", ConditionType.REDIS_REACHABLE, "status", "Whether Redis answers the operator."),
        _condition_column(
            "Postgres", ConditionType.POSTGRES_REACHABLE, "status", "Whether PostgreSQL answers the operator."
        ),
        PrinterColumn("Image", "string", ".status.image", "Image that the workers are given.", wide=True),
        _condition_column("Reason", ConditionType.READY, "reason", "Why it is ready or not."),
    ),
)
"""What the CRD says beside the schema."""
