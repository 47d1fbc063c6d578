"""The environment of a worker, from the spec.

Names come from the worker's own table, so one that the image does not know fails at import. What the spec leaves
open is not rendered: a variable that is set hides the value stored in Postgres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.scale import SynapseScale
from synapse_operator.api.workers import DEFAULT_HEALTH_PORT, WorkersSpec
from synapse_operator.desired.observability import plain_variables
from synapse_operator.naming import POSTGRES_CA_PATH, REDIS_CA_PATH
from synapse_operator.observed import Child, Observed, Unknown
from synapse_worker.contract import BY_NAME, VARIABLES

REDIS_URL = BY_NAME["REDIS_URL"].name
POSTGRES_URL = BY_NAME["SCALE_POSTGRES_URL"].name
REDIS_CA = BY_NAME["REDIS_CA_FILE"].name
POSTGRES_CA = BY_NAME["POSTGRES_CA_FILE"].name

CA_FILE = "ca.crt"
"""Name of the file with a store's certificates, in its folder."""

_K8S_MODE = BY_NAME["K8S_MODE"].name
SHARDS_TO_SERVE = BY_NAME["WORKER_QUEUE_SHARD"].name
_CONCURRENCY = BY_NAME["WORKER_CONCURRENCY"].name
_JOB_TIMEOUT = BY_NAME["WORKER_JOB_TIMEOUT"].name
_MAX_RETRIES = BY_NAME["WORKER_MAX_RETRIES"].name
_DRAIN_SECONDS = BY_NAME["WORKER_DRAIN_SECONDS"].name
_PGBOUNCER = BY_NAME["PGBOUNCER_MODE"].name
_HEALTH_PORT = BY_NAME["WORKER_HEALTH_PORT"].name
_EVENT_TTL = BY_NAME["PUBSUB_EVENT_TTL"].name
_RUN_DAYS = BY_NAME["RUNS_RETENTION_DAYS"].name
S3_BUCKET = BY_NAME["S3_BUCKET"].name
_S3_REGION = BY_NAME["S3_REGION"].name
_S3_PREFIX = BY_NAME["S3_PREFIX"].name
_S3_ENDPOINT_URL = BY_NAME["S3_ENDPOINT_URL"].name
_S3_ACCESS_KEY_ID = BY_NAME["S3_ACCESS_KEY_ID"].name
_S3_SECRET_ACCESS_KEY = BY_NAME["S3_SECRET_ACCESS_KEY"].name
_DEFAULT_TENANT = BY_NAME["DEFAULT_TENANT_ID"].name
_MAX_DEPTH = BY_NAME["MAX_GLOBAL_QUEUE_DEPTH"].name
_RATE_LIMIT = BY_NAME["RATE_LIMIT_PER_TENANT_RPS"].name

_OF_THE_API = {_MAX_DEPTH, _RATE_LIMIT}
_OF_WORKERS = {_CONCURRENCY}


def worker_environment(scale: SynapseScale, workers: WorkersSpec, serves: Sequence[str]) -> dict[str, str]:
    """Return the variables that hold no secret, of workers that serve `serves`: queues, or the tenant pool.

    The topology is not among them: workers serve queues, and another number of shards must not roll them.
    """
    environment = {
        _K8S_MODE: "1",
        SHARDS_TO_SERVE: ",".join(serves),
        _DRAIN_SECONDS: str(workers.drain_timeout_seconds),
    }
    settings = {
        _CONCURRENCY: workers.concurrency,
        _JOB_TIMEOUT: workers.job_timeout_seconds,
        _MAX_RETRIES: workers.max_retries,
        _EVENT_TTL: scale.spec.retention.event_ttl_seconds,
        _RUN_DAYS: scale.spec.retention.run_days,
    }
    environment |= {name: str(value) for name, value in settings.items() if value is not None}
    if workers.health_port != DEFAULT_HEALTH_PORT:
        environment[_HEALTH_PORT] = str(workers.health_port)
    if scale.spec.postgres.pgbouncer:
        environment[_PGBOUNCER] = "1"
    if scale.spec.tenancy.default_tenant_id is not None:
        environment[_DEFAULT_TENANT] = scale.spec.tenancy.default_tenant_id
    if (s3 := scale.spec.storage.s3) is not None:
        given = {S3_BUCKET: s3.bucket, _S3_REGION: s3.region, _S3_PREFIX: s3.prefix, _S3_ENDPOINT_URL: s3.endpoint_url}
        environment |= {name: value for name, value in given.items() if value is not None}
    if scale.spec.redis.ca_secret_ref is not None:
        environment[REDIS_CA] = f"{REDIS_CA_PATH}/{CA_FILE}"
    if scale.spec.postgres.ca_secret_ref is not None:
        environment[POSTGRES_CA] = f"{POSTGRES_CA_PATH}/{CA_FILE}"
    return environment | plain_variables(scale)


def s3_keys(scale: SynapseScale) -> dict[str, SecretKeySelector]:
    """Return where the keys of the S3 user are, by variable; nothing when the spec names no Secret."""
    s3 = scale.spec.storage.s3
    ref = None if s3 is None else s3.credentials_secret_ref
    if ref is None:
        return {}
    return {
        _S3_ACCESS_KEY_ID: SecretKeySelector(name=ref.name, key=ref.access_key_id_key),
        _S3_SECRET_ACCESS_KEY: SecretKeySelector(name=ref.name, key=ref.secret_access_key_key),
    }


def api_environment(scale: SynapseScale) -> dict[str, str]:
    """Return the variables that hold no secret, of pods that serve the V2 API."""
    environment = worker_environment(scale, scale.spec.workers, ())
    for name in (SHARDS_TO_SERVE, _DRAIN_SECONDS, _CONCURRENCY, _HEALTH_PORT):
        environment.pop(name, None)
    if scale.spec.queue.max_depth is not None:
        environment[_MAX_DEPTH] = str(scale.spec.queue.max_depth)
    if scale.spec.tenancy.rate_limit_rps is not None:
        environment[_RATE_LIMIT] = str(scale.spec.tenancy.rate_limit_rps)
    return environment


def stored_settings(
    scale: SynapseScale,
    observed: Observed,
    workers: WorkersSpec,
    environment: Mapping[str, str],
    live: Child | None,
    hash_key: SecretStr,
    *,
    api: bool = False,
) -> str:
    """Return a hash of the stored settings that workers read at their start, since no variable says otherwise.

    Args:
        scale: the owner.
        observed: holds the settings.
        workers: what the workers are like; their overlay may set variables too.
        environment: the variables of the workers.
        live: their present Deployment, whose hash is kept while the settings cannot be read; None = there is none.
        hash_key: key of the fingerprint of those that are secrets.
        api: whether they serve the V2 API, whose limits no worker reads.
    """
    if isinstance(observed.stored, Unknown):
        template = live.raw["spec"]["template"]["metadata"] if live else {}
        kept = (template.get("annotations") or {}).get(naming.STORED_ANNOTATION)
        return str(kept) if kept else naming.content_hash({})
    given = {*environment, *s3_keys(scale), *(variable.name for variable in workers.template.env)}
    given |= _OF_WORKERS if api else _OF_THE_API
    open_ = {variable.stored for variable in VARIABLES if variable.stored and variable.name not in given}
    found = {key: value for key, value in observed.stored.items() if key in open_}
    plain = {key: value for key, value in found.items() if not isinstance(value, SecretStr)}
    secrets = {key: value for key, value in found.items() if isinstance(value, SecretStr)}
    if not secrets:
        return naming.content_hash(plain)
    fingerprint = naming.secret_fingerprint(secrets, scale_uid=scale.metadata.uid, key=hash_key)
    return naming.content_hash({"plain": plain, "secrets": fingerprint})


def template_secrets(
    scale: SynapseScale, observed: Observed, workers: WorkersSpec, live: Child | None, hash_key: SecretStr
) -> str:
    """Return a hash of the Secrets that the overlay's variables name; "" = it names none.

    Args:
        scale: the owner.
        observed: holds what is in them.
        workers: what the workers are like.
        live: their present Deployment, whose hash is kept while a Secret is missing or cannot be read: pods that start
            then could not run, and those that run need not be replaced.
        hash_key: key of the hash.
    """
    parts = workers.template.secrets
    if not parts:
        return ""
    values = {"/".join(part): observed.template_secrets[part] for part in parts if part in observed.template_secrets}
    if len(values) < len(parts) and live is not None:
        template = live.raw["spec"]["template"]["metadata"]
        kept = (template.get("annotations") or {}).get(naming.TEMPLATE_SECRETS_ANNOTATION)
        if kept:
            return str(kept)
    return naming.secret_fingerprint(values, scale_uid=scale.metadata.uid, key=hash_key)


def url_variable(name: str, reference: SecretKeySelector | None, url: str | None) -> JsonObject:
    """Return the entry of a container's `env` for a store's URL: exactly one of `reference` and `url` is given."""
    if reference is not None:
        selector = {"name": reference.name, "key": reference.key}
        return {"name": name, "valueFrom": {"secretKeyRef": selector}}
    return {"name": name, "value": literal(url or "")}


def literal(text: str) -> str:
    """Return `text` as the value of an `env` entry, in which Kubernetes would expand `$(NAME)`."""
    return text.replace("$(", "$$(")
