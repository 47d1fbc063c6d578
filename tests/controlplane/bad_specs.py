"""Specs that the API server has to refuse, with the sentences that it must say: the CRD's promises as data.

The sentences are those of a real kube-apiserver (1.37). A server-side apply and a create decode differently, so for
some mistakes the two say it in other words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

JsonObject = dict[str, Any]

REDIS: JsonObject = {"url": "redis://redis:6379/0"}
POSTGRES: JsonObject = {"url": "postgresql://synapse@postgres:5432/synapse"}
GOOD: JsonObject = {"redis": REDIS, "postgres": POSTGRES}
"""A spec that is accepted; the bad ones differ from it in one thing each."""

PASSWORD_SENTENCE = (
    "an inline URL with a password puts the password where everybody who may view the resource reads it: "
    "put the URL in a Secret and name it in urlSecretRef"
)


@dataclass(frozen=True, slots=True)
class BadSpec:
    """One spec and why it is refused.

    Attributes:
        name: what is wrong, as a test id.
        changes: fields that replace those of `GOOD`; None takes a field away.
        sentence: must be in the refusal of a server-side apply.
        create_sentence: must be in the refusal of a create with `fieldValidation=Strict`; "" = the same.
    """

    name: str
    changes: JsonObject
    sentence: str
    create_sentence: str = field(default="")
    good: ClassVar[JsonObject] = GOOD

    @property
    def spec(self) -> JsonObject:
        """The whole spec."""
        merged = {**self.good, **self.changes}
        return {key: value for key, value in merged.items() if value is not None}


GOOD_TENANT: JsonObject = {"scaleRef": {"name": "main"}, "tenantId": "acme"}
"""The same for tenants."""


class BadTenant(BadSpec):
    """The same for a SynapseTenant; `changes` replace fields of `GOOD_TENANT`."""

    good = GOOD_TENANT


def _above(path: str, maximum: int) -> str:
    return f"{path} in body should be less than or equal to {maximum}"


def _below(path: str, minimum: int) -> str:
    return f"{path} in body should be greater than or equal to {minimum}"


_ONE_REDIS_URL = "redis: give exactly one of urlSecretRef and url"
_ONE_POSTGRES_URL = "postgres: give exactly one of urlSecretRef and url"
_ONE_SHARD = "queue.shards: this release accepts 1 only, the queue `default`; spread the load with workers.replicas"
_ONE_SOURCE = "sync.sources: give exactly one of configMapRef and secretRef"
_REDIS_SCHEME = "redis: url must start with redis://, rediss://, redis+cluster:// or rediss+cluster://"
_POSTGRES_SCHEME = "postgres: url must start with postgresql:// or postgres://"
_REFERENCE = {"name": "stores", "key": "url"}

BAD_SPECS: tuple[BadSpec, ...] = (
    BadSpec("shards-65", {"queue": {"shards": 65}}, _above("spec.queue.shards", 64)),
    BadSpec("shards-0", {"queue": {"shards": 0}}, _below("spec.queue.shards", 1)),
    BadSpec("shards-2", {"queue": {"shards": 2}}, _ONE_SHARD),
    BadSpec("no-redis", {"redis": None}, "spec.redis: Required value"),
    BadSpec("no-postgres", {"postgres": None}, "spec.postgres: Required value"),
    BadSpec("redis-without-url", {"redis": {}}, _ONE_REDIS_URL),
    BadSpec("redis-with-both", {"redis": {**REDIS, "urlSecretRef": _REFERENCE}}, _ONE_REDIS_URL),
    BadSpec("postgres-without-url", {"postgres": {"pgbouncer": True}}, _ONE_POSTGRES_URL),
    BadSpec("postgres-with-both", {"postgres": {**POSTGRES, "urlSecretRef": _REFERENCE}}, _ONE_POSTGRES_URL),
    BadSpec("redis-password", {"redis": {"url": "redis://:hunter2@redis:6379/0"}}, PASSWORD_SENTENCE),
    BadSpec("redis-user-and-password", {"redis": {"url": "rediss://u:hunter2@redis:6379"}}, PASSWORD_SENTENCE),
    BadSpec("redis-password-with-slash", {"redis": {"url": "redis://:hun/ter2@redis"}}, PASSWORD_SENTENCE),
    BadSpec("redis-password-with-question-mark", {"redis": {"url": "redis://:hun?ter2@redis"}}, PASSWORD_SENTENCE),
    BadSpec("redis-password-in-query", {"redis": {"url": "redis://redis/0?password=hunter2"}}, PASSWORD_SENTENCE),
    BadSpec("postgres-password", {"postgres": {"url": "postgresql://u:hunter2@postgres/synapse"}}, PASSWORD_SENTENCE),
    BadSpec(
        "postgres-password-in-query",
        {"postgres": {"url": "postgres://u@postgres/synapse?sslmode=require&PASSWORD=hunter2"}},
        PASSWORD_SENTENCE,
    ),
    BadSpec("redis-scheme", {"redis": {"url": "http://redis:6379"}}, _REDIS_SCHEME),
    BadSpec("redis-other-cluster", {"redis": {"url": "redis-cluster://a:6379,b:6379"}}, _REDIS_SCHEME),
    BadSpec("cluster-password", {"redis": {"url": "redis+cluster://:hunter2@a:6379,b:6379"}}, PASSWORD_SENTENCE),
    BadSpec("cluster-user", {"redis": {"url": "rediss+cluster://u:hunter2@a:6379,b:6379"}}, PASSWORD_SENTENCE),
    BadSpec("cluster-query", {"redis": {"url": "redis+cluster://a,b?password=hunter2"}}, PASSWORD_SENTENCE),
    BadSpec("postgres-scheme", {"postgres": {"url": "mysql://postgres/synapse"}}, _POSTGRES_SCHEME),
    BadSpec("redis-empty-url", {"redis": {"url": ""}}, "spec.redis.url in body should be at least 1 chars long"),
    BadSpec(
        "secret-without-key", {"redis": {"urlSecretRef": {"name": "a"}}}, "spec.redis.urlSecretRef.key: Required value"
    ),
    BadSpec(
        "secret-with-impossible-name",
        {"redis": {"urlSecretRef": {"name": "A_b", "key": "url"}}},
        "spec.redis.urlSecretRef.name in body should match",
    ),
    BadSpec(
        "unknown-field",
        {"shards": 3},
        ".spec.shards: field not declared in schema",
        'unknown field "spec.shards"',
    ),
    BadSpec(
        "misspelt-field",
        {"workers": {"replica": 3}},
        ".spec.workers.replica: field not declared in schema",
        'unknown field "spec.workers.replica"',
    ),
    BadSpec("negative-replicas", {"workers": {"replicas": -1}}, _below("spec.workers.replicas", 0)),
    BadSpec("too-many-replicas", {"workers": {"replicas": 1001}}, _above("spec.workers.replicas", 1000)),
    BadSpec(
        "replicas-as-text",
        {"workers": {"replicas": "three"}},
        ".spec.workers.replicas: expected numeric (int or float), got string",
        'spec.workers.replicas in body must be of type integer: "string"',
    ),
    BadSpec("concurrency-0", {"workers": {"concurrency": 0}}, _below("spec.workers.concurrency", 1)),
    BadSpec("concurrency-101", {"workers": {"concurrency": 101}}, _above("spec.workers.concurrency", 100)),
    BadSpec("job-timeout-0", {"workers": {"jobTimeoutSeconds": 0}}, _below("spec.workers.jobTimeoutSeconds", 1)),
    BadSpec(
        "job-timeout-over-a-week",
        {"workers": {"jobTimeoutSeconds": 604_801}},
        _above("spec.workers.jobTimeoutSeconds", 604_800),
    ),
    BadSpec("negative-retries", {"workers": {"maxRetries": -1}}, _below("spec.workers.maxRetries", 0)),
    BadSpec("retries-101", {"workers": {"maxRetries": 101}}, _above("spec.workers.maxRetries", 100)),
    BadSpec("negative-drain", {"workers": {"drainTimeoutSeconds": -1}}, _below("spec.workers.drainTimeoutSeconds", 0)),
    BadSpec(
        "drain-over-a-day",
        {"workers": {"drainTimeoutSeconds": 86_401}},
        _above("spec.workers.drainTimeoutSeconds", 86_400),
    ),
    BadSpec(
        "enabled-as-text",
        {"enabled": "yes"},
        ".spec.enabled: expected boolean, got &{yes}",
        'must be of type boolean: "string"',
    ),
    BadSpec(
        "pull-policy",
        {"imagePullPolicy": "Sometimes"},
        'spec.imagePullPolicy: Unsupported value: "Sometimes": supported values: "Always", "IfNotPresent", "Never"',
    ),
    BadSpec("image-with-space", {"image": "worker: 1"}, "spec.image in body should match"),
    BadSpec(
        "pull-secret-twice",
        {"imagePullSecrets": [{"name": "a"}, {"name": "a"}]},
        '.spec.imagePullSecrets: duplicate entries for key [name="a"]',
        'spec.imagePullSecrets[1]: Duplicate value: {"name":"a"}',
    ),
    BadSpec("source-of-nothing", {"sync": {"sources": [{}]}}, _ONE_SOURCE),
    BadSpec(
        "source-of-both",
        {"sync": {"sources": [{"configMapRef": {"name": "a"}, "secretRef": {"name": "a"}}]}},
        _ONE_SOURCE,
    ),
    BadSpec(
        "33-sources", {"sync": {"sources": [{"secretRef": {"name": "a"}}] * 33}}, "spec.sync.sources: Too many: 33"
    ),
)

_NOT_BUILT = {
    "rateLimitRps": 10,
    "drainTimeoutSeconds": 60,
    "workers": {"replicas": 1},
}
"""Fields of a tenant that nobody reads yet."""

BAD_TENANTS: tuple[BadTenant, ...] = (
    BadTenant("no-scale", {"scaleRef": None}, "spec.scaleRef: Required value"),
    BadTenant("scale-without-name", {"scaleRef": {}}, "spec.scaleRef.name: Required value"),
    BadTenant(
        "scale-with-impossible-name",
        {"scaleRef": {"name": "A_b"}},
        "spec.scaleRef.name in body should match",
    ),
    BadTenant("empty-id", {"tenantId": ""}, "spec.tenantId in body should be at least 1 chars long"),
    BadTenant("long-id", {"tenantId": "ü" * 256}, "spec.tenantId: Too long: may not be more than 255 bytes"),
    BadTenant(
        "nul-in-id",
        {"tenantId": "a\0b"},
        "tenantId: the character NUL is not accepted, since PostgreSQL cannot store it",
    ),
    BadTenant(
        "nul-in-name",
        {"name": "a\0b"},
        "name: the character NUL is not accepted, since PostgreSQL cannot store it",
    ),
    BadTenant("negative-queued", {"maxQueuedRuns": -1}, _below("spec.maxQueuedRuns", 0)),
    BadTenant("too-many-queued", {"maxQueuedRuns": 100_000_001}, _above("spec.maxQueuedRuns", 100_000_000)),
    BadTenant("negative-concurrent", {"maxConcurrentRuns": -1}, _below("spec.maxConcurrentRuns", 0)),
    BadTenant("too-many-concurrent", {"maxConcurrentRuns": 100_000_001}, _above("spec.maxConcurrentRuns", 100_000_000)),
    BadTenant("negative-priority", {"priority": -1}, _below("spec.priority", 0)),
    BadTenant("priority-1001", {"priority": 1001}, _above("spec.priority", 1000)),
    *(
        BadTenant(
            f"not-built-{name}",
            {name: value},
            f".spec.{name}: field not declared in schema",
            f'unknown field "spec.{name}"',
        )
        for name, value in _NOT_BUILT.items()
    ),
)

GOOD_TENANTS: tuple[JsonObject, ...] = (
    {"tenantId": None},
    {"tenantId": "Größe: $(X) {b} / 'q' \\ \"z\""},
    {"tenantId": "default"},
    {"tenantId": "0"},
    {"tenantId": "ü" * 255},
    {"name": "A name", "maxQueuedRuns": 0, "maxConcurrentRuns": 0, "priority": 1000},
)
"""Tenants that are accepted; fields that replace those of `GOOD_TENANT`."""

CHANGED_TENANTS: tuple[BadTenant, ...] = (
    BadTenant(
        "other-scale",
        {"scaleRef": {"name": "other"}},
        "scaleRef.name cannot be changed, since the tenant's runs stay with their scale: create another SynapseTenant",
    ),
    *(
        BadTenant(
            f"{name}-id",
            {"tenantId": value},
            "tenantId cannot be set, changed or removed later, since the tenant's runs bear it: "
            "create another SynapseTenant",
        )
        for name, value in (("other", "other"), ("no", None))
    ),
)
"""What a tenant like `GOOD_TENANT` cannot become."""

GOOD_URLS: tuple[JsonObject, ...] = (
    {"redis": {"url": "redis://redis"}},
    {"redis": {"url": "redis://redis:6379"}},
    {"redis": {"url": "rediss://user@redis.example:6380/3"}},
    {"redis": {"url": "redis://[::1]:6379/0"}},
    {"redis": {"url": "redis://redis:6379/0?client_name=a@b"}},
    {"redis": {"url": "redis+cluster://a:6379,b:6379,c:6379"}},
    {"redis": {"url": "rediss+cluster://user@a.example:6379,[::1]:6379"}},
    {"redis": {"urlSecretRef": _REFERENCE}},
    {"postgres": {"url": "postgres://postgres/synapse?application_name=passwordless"}},
    {"postgres": {"url": "postgresql://user@postgres:5432/synapse?sslmode=require", "pgbouncer": True}},
    {"postgres": {"urlSecretRef": _REFERENCE}},
)
"""Stores that are accepted; each replaces those of `GOOD`."""
