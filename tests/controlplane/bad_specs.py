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


def _longer(path: str, maximum: int) -> str:
    return f"{path}: Too long: may not be more than {maximum} bytes"


_ONE_REDIS_URL = "redis: give exactly one of urlSecretRef and url"
_ONE_POSTGRES_URL = "postgres: give exactly one of urlSecretRef and url"
_ONE_SOURCE = "sync.sources: give exactly one of configMapRef and secretRef"
_REDIS_SCHEME = "redis: url must start with redis://, rediss://, redis+cluster:// or rediss+cluster://"
_POSTGRES_SCHEME = "postgres: url must start with postgresql:// or postgres://"
_REFERENCE = {"name": "stores", "key": "url"}
_COLLECTOR = "observability: otlpEndpoint is http://host:4317 (plain) or https://host (TLS), without path"
_HEADERS_FOR_NOTHING = "observability: otlpHeadersSecretRef needs otlpEndpoint"
_TOKEN = "observability: metricsTokenSecretRef is given with metricsAuth SecretRef, and only with that"
_OWN_LABELS = (
    "workers.template.labels: the labels app.kubernetes.io/name, app.kubernetes.io/instance, "
    "app.kubernetes.io/part-of, app.kubernetes.io/managed-by, scale.synapseorch.com/scale, "
    "scale.synapseorch.com/role, scale.synapseorch.com/shard are the operator's"
)
_OWN_VARIABLE = "workers.template.env: the operator sets this variable; use the field of the spec that stands for it"
_OWN_VOLUMES = "workers.template.volumes: the names tmp, data, redis-ca, postgres-ca are the operator's"
_OWN_PATHS = (
    "workers.template.volumeMounts: /tmp, /data, /etc/synapse/redis-ca, /etc/synapse/postgres-ca are the operator's"
)
_ONE_ENVIRONMENT_SOURCE = "workers.template.envFrom: give exactly one of secretRef and configMapRef"
_ONE_VALUE_SOURCE = "workers.template.env: give exactly one of secretKeyRef, configMapKeyRef and fieldRef"
_SHARED_ACCOUNT = (
    "template.serviceAccountAnnotations: all workers share one ServiceAccount; give them in workers.template, or name "
    "another one in serviceAccountName"
)
_NO_SUCH_SHARD = "queue.routes: a route names a shard that does not exist; the shards are 0 to queue.shards - 1"
_NO_SHARD_LEFT = (
    "queue.routes: every shard is named by a route; leave one at least for all other jobs, or raise queue.shards"
)
_NO_MAXIMUM = "autoscaling: mode BuiltIn needs maxReplicas, the most workers that a shard may get"
_MAXIMUM_BELOW = "autoscaling: maxReplicas is less than minReplicas; give the same or more"
_TWO_POOLS = "pools: a shard is in two pools; each shard is in one at most"


def _template(**template: Any) -> JsonObject:
    return {"workers": {"template": template}}


def _autoscaling(**autoscaling: Any) -> JsonObject:
    return {"workers": {"autoscaling": autoscaling}}


def _routes(shards: int, *routes: JsonObject) -> JsonObject:
    return {"queue": {"shards": shards, "routes": list(routes)}}


def _pools(*pools: JsonObject) -> JsonObject:
    return {"queue": {"shards": 8}, "pools": list(pools)}


def _s3(**s3: Any) -> JsonObject:
    return {"storage": {"s3": {"bucket": "vault", **s3}}}


_ENDPOINT = "storage.s3: endpointUrl must be http:// or https:// and a host, without user name, path and query"

BAD_SPECS: tuple[BadSpec, ...] = (
    BadSpec("s3-without-bucket", {"storage": {"s3": {}}}, "spec.storage.s3.bucket: Required value"),
    BadSpec("s3-bucket-url", _s3(bucket="s3://vault"), "spec.storage.s3.bucket in body should match"),
    BadSpec("s3-bucket-short", _s3(bucket="ab"), "spec.storage.s3.bucket in body should be at least 3 chars long"),
    BadSpec("s3-prefix-absolute", _s3(prefix="/synapse"), "spec.storage.s3.prefix in body should match"),
    BadSpec("s3-region-blank", _s3(region="eu central"), "spec.storage.s3.region in body should match"),
    BadSpec("s3-endpoint-scheme", _s3(endpointUrl="minio:9000"), _ENDPOINT),
    BadSpec("s3-endpoint-password", _s3(endpointUrl="http://key:secret@minio:9000"), _ENDPOINT),
    BadSpec("s3-endpoint-path", _s3(endpointUrl="https://minio/bucket"), _ENDPOINT),
    BadSpec(
        "s3-credentials-without-name",
        _s3(credentialsSecretRef={"accessKeyIdKey": "id"}),
        "spec.storage.s3.credentialsSecretRef.name: Required value",
    ),
    BadSpec("overlay-s3-variable", _template(env=[{"name": "S3_BUCKET", "value": "x"}]), _OWN_VARIABLE),
    BadSpec("shards-65", {"queue": {"shards": 65}}, _above("spec.queue.shards", 64)),
    BadSpec("shards-0", {"queue": {"shards": 0}}, _below("spec.queue.shards", 1)),
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
    BadSpec("events-for-59-s", {"retention": {"eventTtlSeconds": 59}}, _below("spec.retention.eventTtlSeconds", 60)),
    BadSpec(
        "events-for-over-a-month",
        {"retention": {"eventTtlSeconds": 2_592_001}},
        _above("spec.retention.eventTtlSeconds", 2_592_000),
    ),
    BadSpec("runs-for-no-day", {"retention": {"runDays": 0}}, _below("spec.retention.runDays", 1)),
    BadSpec("runs-for-over-ten-years", {"retention": {"runDays": 3651}}, _above("spec.retention.runDays", 3650)),
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
    BadSpec("image-empty", {"image": ""}, "spec.image in body should be at least 1 chars long"),
    BadSpec("image-of-1025-characters", {"image": "a" * 1025}, _longer("spec.image", 1024)),
    BadSpec(
        "shards-as-text", {"queue": {"shards": "2"}}, ".spec.queue.shards: expected numeric", "must be of type integer"
    ),
    BadSpec(
        "secret-name-of-254",
        {"redis": {"urlSecretRef": {"name": "a" * 254, "key": "url"}}},
        _longer("spec.redis.urlSecretRef.name", 253),
    ),
    BadSpec(
        "secret-name-in-unicode",
        {"redis": {"urlSecretRef": {"name": "größe", "key": "url"}}},
        "spec.redis.urlSecretRef.name in body should match",
    ),
    BadSpec(
        "secret-key-with-slash",
        {"redis": {"urlSecretRef": {"name": "a", "key": "a/b"}}},
        "spec.redis.urlSecretRef.key in body should match",
    ),
    BadSpec("url-of-2049-characters", {"redis": {"url": "redis://" + "a" * 2041}}, _longer("spec.redis.url", 2048)),
    BadSpec(
        "ca-without-key",
        {"redis": {**REDIS, "caSecretRef": {"name": "ca"}}},
        "spec.redis.caSecretRef.key: Required value",
    ),
    BadSpec("health-port-0", {"workers": {"healthPort": 0}}, _below("spec.workers.healthPort", 1)),
    BadSpec("health-port-65536", {"workers": {"healthPort": 65_536}}, _above("spec.workers.healthPort", 65_535)),
    BadSpec(
        "tenant-of-256-characters",
        {"tenancy": {"defaultTenantId": "ä" * 256}},
        _longer("spec.tenancy.defaultTenantId", 255),
    ),
    BadSpec(
        "empty-tenant",
        {"tenancy": {"defaultTenantId": ""}},
        "spec.tenancy.defaultTenantId in body should be at least 1 chars long",
    ),
    BadSpec("own-label", _template(labels={"scale.synapseorch.com/shard": "1"}), _OWN_LABELS),
    BadSpec("managed-by", _template(labels={"app.kubernetes.io/managed-by": "me"}), _OWN_LABELS),
    BadSpec("label-value-of-64", _template(labels={"a": "b" * 64}), _longer("spec.workers.template.labels.a", 63)),
    BadSpec(
        "label-value-in-unicode",
        _template(labels={"a": "größe"}),
        "spec.workers.template.labels.a in body should match",
    ),
    BadSpec(
        "too-many-labels",
        _template(labels={f"l{number}": "" for number in range(65)}),
        "spec.workers.template.labels: Too many: 65: must have at most 64 items",
    ),
    BadSpec(
        "own-annotation",
        _template(annotations={"scale.synapseorch.com/config-hash": "1"}),
        "workers.template.annotations: scale.synapseorch.com/config-hash, scale.synapseorch.com/stored-settings, "
        "scale.synapseorch.com/template-secrets are the operator's",
    ),
    BadSpec("own-variable", _template(env=[{"name": "REDIS_URL", "value": "x"}]), _OWN_VARIABLE),
    BadSpec("own-setting", _template(env=[{"name": "WORKER_CONCURRENCY", "value": "3"}]), _OWN_VARIABLE),
    BadSpec(
        "variable-twice",
        _template(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        '.spec.workers.template.env: duplicate entries for key [name="A"]',
        'spec.workers.template.env[1]: Duplicate value: {"name":"A"}',
    ),
    BadSpec(
        "variable-of-two-values",
        _template(env=[{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]),
        "workers.template.env: give one of value and valueFrom, not both",
    ),
    BadSpec("variable-from-nothing", _template(env=[{"name": "A", "valueFrom": {}}]), _ONE_VALUE_SOURCE),
    BadSpec(
        "variable-from-two",
        _template(env=[{"name": "A", "valueFrom": {"secretKeyRef": _REFERENCE, "configMapKeyRef": _REFERENCE}}]),
        _ONE_VALUE_SOURCE,
    ),
    BadSpec(
        "variable-with-space",
        _template(env=[{"name": "A B", "value": "1"}]),
        "spec.workers.template.env[0].name in body should match",
    ),
    BadSpec("variables-from-nothing", _template(envFrom=[{"prefix": "A"}]), _ONE_ENVIRONMENT_SOURCE),
    BadSpec(
        "variables-from-two",
        _template(envFrom=[{"secretRef": {"name": "a"}, "configMapRef": {"name": "a"}}]),
        _ONE_ENVIRONMENT_SOURCE,
    ),
    BadSpec("own-volume", _template(volumes=[{"name": "data", "emptyDir": {}}]), _OWN_VOLUMES),
    BadSpec(
        "volume-without-name",
        _template(volumes=[{"emptyDir": {}}]),
        ".spec.workers.template.volumes: element 0: associative list with keys has an element that omits all key",
        "spec.workers.template.volumes[0].name: Required value",
    ),
    BadSpec("own-path", _template(volumeMounts=[{"name": "a", "mountPath": "/data"}]), _OWN_PATHS),
    BadSpec(
        "relative-path",
        _template(volumeMounts=[{"name": "a", "mountPath": "models"}]),
        "spec.workers.template.volumeMounts[0].mountPath in body should match",
    ),
    BadSpec(
        "toleration-effect",
        _template(tolerations=[{"effect": "Never"}]),
        'spec.workers.template.tolerations[0].effect: Unsupported value: "Never": supported values: "NoSchedule", '
        '"PreferNoSchedule", "NoExecute"',
    ),
    BadSpec(
        "spread-without-key",
        _template(topologySpreadConstraints=[{"maxSkew": 1}]),
        "spec.workers.template.topologySpreadConstraints[0].topologyKey: Required value",
    ),
    BadSpec(
        "skew-0",
        _template(topologySpreadConstraints=[{"topologyKey": "a", "maxSkew": 0}]),
        _below("spec.workers.template.topologySpreadConstraints[0].maxSkew", 1),
    ),
    BadSpec(
        "quantity-as-list",
        _template(resources={"limits": {"cpu": ["1"]}}),
        "spec.workers.template.resources.limits.cpu in body must be of type integer,string",
    ),
    BadSpec(
        "quantity-in-words",
        _template(resources={"limits": {"cpu": "lots"}}),
        "spec.workers.template.resources.limits.cpu in body should match",
    ),
    BadSpec(
        "quantity-below-0",
        _template(resources={"requests": {"memory": "-1Gi"}}),
        "spec.workers.template.resources.requests.memory in body should match",
    ),
    BadSpec(
        "claims",
        _template(resources={"claims": []}),
        ".spec.workers.template.resources.claims: field not declared in schema",
        'unknown field "spec.workers.template.resources.claims"',
    ),
    BadSpec(
        "container-field",
        _template(command=["sh"]),
        ".spec.workers.template.command: field not declared in schema",
        'unknown field "spec.workers.template.command"',
    ),
    BadSpec(
        "role-of-a-foreign-account",
        _template(serviceAccountName="a", serviceAccountAnnotations={"b": "c"}),
        "workers.template: serviceAccountAnnotations are for the ServiceAccount that the operator makes; annotate your "
        "own yourself, or leave serviceAccountName out",
    ),
    BadSpec(
        "route-of-no-job",
        _routes(2, {"shard": 1}),
        "queue.routes: give tenants, minPriority or both; a route of neither would take every job",
    ),
    BadSpec("route-to-no-shard", _routes(2, {"shard": 2, "minPriority": 1}), _NO_SUCH_SHARD),
    BadSpec(
        "route-to-shard-64", _routes(64, {"shard": 64, "minPriority": 1}), _above("spec.queue.routes[0].shard", 63)
    ),
    BadSpec("routes-to-the-only-shard", _routes(1, {"shard": 0, "minPriority": 1}), _NO_SHARD_LEFT),
    BadSpec(
        "routes-to-all-shards",
        _routes(2, {"shard": 0, "minPriority": 1}, {"shard": 1, "tenants": ["a"]}),
        _NO_SHARD_LEFT,
    ),
    BadSpec(
        "route-priority-10", _routes(2, {"shard": 1, "minPriority": 10}), _above("spec.queue.routes[0].minPriority", 9)
    ),
    BadSpec(
        "route-tenant-twice",
        _routes(2, {"shard": 1, "tenants": ["a", "a"]}),
        '.spec.queue.routes[0].tenants: duplicate entries for key [="a"]',
        "spec.queue.routes[0].tenants[1]: Duplicate value",
    ),
    BadSpec("shard-in-two-pools", _pools({"name": "a", "shards": [1, 2]}, {"name": "b", "shards": [2]}), _TWO_POOLS),
    BadSpec(
        "shard-twice-in-a-pool",
        _pools({"name": "a", "shards": [1, 1]}),
        "spec.pools",
        "spec.pools[0].shards[1]: Duplicate value",
    ),
    BadSpec(
        "pool-twice",
        _pools({"name": "a", "shards": [1]}, {"name": "a", "shards": [2]}),
        '.spec.pools: duplicate entries for key [name="a"]',
        'spec.pools[1]: Duplicate value: {"name":"a"}',
    ),
    BadSpec("pool-without-shards", _pools({"name": "a"}), "spec.pools[0].shards: Required value"),
    BadSpec(
        "pool-of-no-shard",
        _pools({"name": "a", "shards": []}),
        "spec.pools[0].shards in body should have at least 1 items",
    ),
    BadSpec("pool-of-shard-64", _pools({"name": "a", "shards": [64]}), _above("spec.pools[0].shards[0]", 63)),
    BadSpec("pool-name-of-64", _pools({"name": "a" * 64, "shards": [1]}), _longer("spec.pools[0].name", 63)),
    BadSpec(
        "pool-with-cloud-role",
        _pools({"name": "a", "shards": [1], "template": {"serviceAccountAnnotations": {"a": "b"}}}),
        _SHARED_ACCOUNT,
    ),
    BadSpec(
        "pool-concurrency-101",
        _pools({"name": "a", "shards": [1], "concurrency": 101}),
        _above("spec.pools[0].concurrency", 100),
    ),
    BadSpec(
        "pool-with-a-port-of-its-own",
        _pools({"name": "a", "shards": [1], "healthPort": 9100}),
        '.spec.pools[name="a"].healthPort: field not declared in schema',
        'unknown field "spec.pools[0].healthPort"',
    ),
    BadSpec(
        "seventeen-pools",
        _pools(*({"name": f"p{number}", "shards": [number]} for number in range(17))),
        "spec.pools: Too many: 17: must have at most 16 items",
    ),
    BadSpec("collector-without-scheme", {"observability": {"otlpEndpoint": "jaeger:4317"}}, _COLLECTOR),
    BadSpec("collector-with-path", {"observability": {"otlpEndpoint": "http://jaeger:4317/v1/traces"}}, _COLLECTOR),
    BadSpec("collector-with-key", {"observability": {"otlpEndpoint": "https://key:secret@collector"}}, _COLLECTOR),
    BadSpec("headers-without-collector", {"observability": {"otlpHeadersSecretRef": _REFERENCE}}, _HEADERS_FOR_NOTHING),
    BadSpec("token-unnamed", {"observability": {"metricsAuth": "SecretRef"}}, _TOKEN),
    BadSpec("token-twice", {"observability": {"metricsTokenSecretRef": _REFERENCE}}, _TOKEN),
    BadSpec("token-and-none", {"observability": {"metricsAuth": "None", "metricsTokenSecretRef": _REFERENCE}}, _TOKEN),
    BadSpec(
        "metrics-auth",
        {"observability": {"metricsAuth": "Basic"}},
        'spec.observability.metricsAuth: Unsupported value: "Basic": supported values: "Generated"',
    ),
    BadSpec(
        "egress-as-text",
        {"networkPolicy": {"extraEgress": ["all"]}},
        ".spec.networkPolicy.extraEgress[0]",
        "spec.networkPolicy.extraEgress[0] in body must be of type object",
    ),
    BadSpec(
        "autoscaling-mode",
        _autoscaling(mode="On"),
        'spec.workers.autoscaling.mode: Unsupported value: "On": supported values: "Off", "BuiltIn", "External"',
    ),
    BadSpec("autoscaling-without-maximum", _autoscaling(mode="BuiltIn"), _NO_MAXIMUM),
    BadSpec("autoscaling-maximum-below", _autoscaling(mode="BuiltIn", minReplicas=3, maxReplicas=2), _MAXIMUM_BELOW),
    BadSpec(
        "autoscaling-minimum-below-0", _autoscaling(minReplicas=-1), _below("spec.workers.autoscaling.minReplicas", 0)
    ),
    BadSpec(
        "autoscaling-minimum-1001", _autoscaling(minReplicas=1001), _above("spec.workers.autoscaling.minReplicas", 1000)
    ),
    BadSpec("autoscaling-maximum-0", _autoscaling(maxReplicas=0), _below("spec.workers.autoscaling.maxReplicas", 1)),
    BadSpec(
        "autoscaling-maximum-1001", _autoscaling(maxReplicas=1001), _above("spec.workers.autoscaling.maxReplicas", 1000)
    ),
    BadSpec(
        "autoscaling-target-0",
        _autoscaling(targetJobsPerWorker=0),
        _below("spec.workers.autoscaling.targetJobsPerWorker", 1),
    ),
    BadSpec(
        "autoscaling-window-over-an-hour",
        _autoscaling(scaleDownStabilizationSeconds=3601),
        _above("spec.workers.autoscaling.scaleDownStabilizationSeconds", 3600),
    ),
    BadSpec(
        "pool-autoscaling-without-maximum",
        _pools({"name": "a", "shards": [1], "autoscaling": {"mode": "BuiltIn"}}),
        _NO_MAXIMUM,
    ),
    BadSpec(
        "tenant-pool-autoscaling-without-maximum",
        {"tenancy": {"pool": {"autoscaling": {"mode": "BuiltIn"}}}},
        _NO_MAXIMUM,
    ),
    BadSpec("no-depth", {"queue": {"maxDepth": 0}}, _below("spec.queue.maxDepth", 1)),
    BadSpec("no-requests", {"tenancy": {"rateLimitRps": 0}}, _below("spec.tenancy.rateLimitRps", 1)),
    BadSpec("101-api-pods", {"api": {"replicas": 101}}, _above("spec.api.replicas", 100)),
    BadSpec("api-port-0", {"api": {"service": {"port": 0}}}, _below("spec.api.service.port", 1)),
    BadSpec(
        "api-service-of-no-type", {"api": {"service": {"type": "ExternalName"}}}, 'Unsupported value: "ExternalName"'
    ),
    BadSpec("keys-of-no-name", {"api": {"keysSecretRef": {}}}, "spec.api.keysSecretRef.name: Required value"),
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

GOOD_SPECS: tuple[JsonObject, ...] = (
    {"queue": {"shards": 64}},
    _routes(2, {"shard": 1, "tenants": ["acme", "größe", "a b"], "minPriority": 0}),
    _routes(64, *({"shard": shard, "minPriority": 9} for shard in range(63))),
    {"pools": [{"name": f"p{number}", "shards": [number, number + 32]} for number in range(16)]},
    {"pools": [{"name": "a" * 63, "shards": list(range(64)), "replicas": 0, "concurrency": 100}]},
    _autoscaling(mode="BuiltIn", minReplicas=0, maxReplicas=1, scaleDownStabilizationSeconds=0),
    _autoscaling(mode="BuiltIn", minReplicas=1000, maxReplicas=1000, targetJobsPerWorker=10_000, paused=True),
    _autoscaling(mode="External"),
    _pools({"name": "a", "shards": [1], "autoscaling": {"mode": "BuiltIn", "maxReplicas": 2}}),
    {"tenancy": {"defaultTenantId": "ä" * 127, "rateLimitRps": 1_000_000}, "queue": {"maxDepth": 100_000_000}},
    {"api": {"enabled": True, "replicas": 0, "keysSecretRef": {"name": "a"}, "service": {"type": "NodePort"}}},
    {"workers": {"healthPort": 65_535}},
    {"redis": {"urlSecretRef": {"name": "a" * 253, "key": "b" * 253}}},
    _template(
        labels={"team": "b" * 63, "empty": ""},
        annotations={"note": "größe"},
        resources={"requests": {"cpu": 1, "memory": "1.5Gi", "nvidia.com/gpu": 2}, "limits": {"cpu": "1500m"}},
        nodeSelector={"disk": "ssd"},
        tolerations=[{"operator": "Exists"}],
        affinity={"nodeAffinity": {}},
        env=[{"name": "LOG_LEVEL", "value": "debug"}],
        envFrom=[{"secretRef": {"name": "a"}}],
        volumes=[{"name": "b" * 63, "emptyDir": {}}],
        volumeMounts=[{"name": "b" * 63, "mountPath": "/models"}],
        topologySpreadConstraints=[{"topologyKey": "rack"}],
    ),
    {"networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": 8000}]}]}},
    {"observability": {"otlpEndpoint": "https://api.honeycomb.io", "otlpHeadersSecretRef": _REFERENCE}},
    {"observability": {"otlpEndpoint": "http://[::1]:4317/", "metricsAuth": "None", "podMonitor": {"enabled": True}}},
    {"observability": {"metricsAuth": "SecretRef", "metricsTokenSecretRef": _REFERENCE}},
)
"""What is accepted, at the limits; each replaces fields of `GOOD`."""


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
    BadTenant("negative-drain", {"drainTimeoutSeconds": -1}, _below("spec.drainTimeoutSeconds", 0)),
    BadTenant("drain-over-a-week", {"drainTimeoutSeconds": 604_801}, _above("spec.drainTimeoutSeconds", 604_800)),
    BadTenant("no-requests", {"rateLimitRps": 0}, _below("spec.rateLimitRps", 1)),
    BadTenant("autoscaling-without-maximum", {"workers": {"autoscaling": {"mode": "BuiltIn"}}}, _NO_MAXIMUM),
    BadTenant("negative-workers", {"workers": {"replicas": -1}}, _below("spec.workers.replicas", 0)),
    BadTenant(
        "own-cloud-role",
        {"workers": {"template": {"serviceAccountAnnotations": {"a": "b"}}}},
        "template.serviceAccountAnnotations: all workers share one ServiceAccount",
    ),
)

GOOD_TENANTS: tuple[JsonObject, ...] = (
    {"tenantId": None},
    {"tenantId": "Größe: $(X) {b} / 'q' \\ \"z\""},
    {"tenantId": "default"},
    {"tenantId": "0"},
    {"tenantId": "ü" * 255},
    {"name": "A name", "maxQueuedRuns": 0, "maxConcurrentRuns": 0, "priority": 1000, "rateLimitRps": 1_000_000},
    {"drainTimeoutSeconds": 0, "workers": {}},
    {
        "drainTimeoutSeconds": 604_800,
        "workers": {"replicas": 1000, "autoscaling": {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 1}},
    },
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
