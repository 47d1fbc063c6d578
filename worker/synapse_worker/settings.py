"""The worker's settings, and the only place that reads the environment.

`contract` says which variables exist; here their text becomes typed values, and a value that cannot be
used stops the process with one line that names the variable, the problem and what is accepted.
Values stored in `scale_settings` stand in for variables that are not set (`with_stored`).
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from pydantic import SecretStr

from synapse_worker import contract, tracing
from synapse_worker.contract import BY_NAME, Kind, Variable
from synapse_worker.egress_policy import Allowed
from synapse_worker.errors import BlobRefused, ConfigurationError
from synapse_worker.routing import Topology
from synapse_worker.store.blobs import PREFIX_MAX_BYTES, S3Settings, checked_path

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_RESERVED_SHARD = re.compile(r"[{}]")


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What one process runs with. Units: seconds, unless the name says otherwise."""

    redis_url: SecretStr
    postgres_url: SecretStr
    redis_ca_file: str
    postgres_ca_file: str
    pgbouncer_mode: bool
    concurrency: int
    job_timeout: int
    max_retries: int
    shards: tuple[str, ...]
    topology: Topology
    """NUM_QUEUE_SHARDS and ENABLE_TENANT_ISOLATION: what holds where no row of `scale_topology` says otherwise."""
    default_tenant_id: str
    health_port: int
    metrics_token: SecretStr
    otlp_endpoint: str
    """With its port; "" = tracing is off."""
    k8s_mode: bool
    event_ttl: int
    retention_days: int
    max_queue_depth: int
    rate_limit: int
    """Requests of the V2 API per second and tenant."""
    api_port: int
    api_auth: str
    lease_seconds: int
    drain_seconds: int
    definitions_dir: str
    s3: S3Settings
    data_dir: str
    webhook_allow: Allowed
    log_level: str
    log_format: str
    worker_id: str
    from_environment: frozenset[str]
    """Names of the variables that were set; the others may still come from `scale_settings`."""

    def with_stored(self, stored: Mapping[str, object]) -> Settings:
        """Return these settings with stored values where the environment said nothing.

        Args:
            stored: rows of `scale_settings`, key -> decoded JSON value.

        Raises:
            ConfigurationError: a stored value is out of range.
        """
        changes: dict[str, object] = {"s3": self._s3_with(stored)}
        for field, name in _STORED_FIELDS.items():
            variable = BY_NAME[name]
            if name in self.from_environment or variable.stored is None or variable.stored not in stored:
                continue
            where = f"the stored setting {variable.stored}"
            changes[field] = _integer(variable, str(stored[variable.stored]), where)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # each has its field's type

    def _s3_with(self, stored: Mapping[str, object]) -> S3Settings:
        """Return the S3 settings with stored values; the two keys come from one place, since they are a pair."""
        given = set(self.from_environment)
        if given & set(_S3_KEYS):
            given |= set(_S3_KEYS)
        found = {
            name: value
            for name in _S3
            if name not in given and isinstance(value := stored.get(BY_NAME[name].stored or ""), str) and value
        }
        if not found:
            return self.s3
        kept = {name: _plain(getattr(self.s3, field)) for name, field in _S3.items()}
        return _s3({**kept, **found}, {name: f"the stored setting {BY_NAME[name].stored}" for name in found})


_STORED_FIELDS = {
    "concurrency": "WORKER_CONCURRENCY",
    "job_timeout": "WORKER_JOB_TIMEOUT",
    "max_retries": "WORKER_MAX_RETRIES",
    "event_ttl": "PUBSUB_EVENT_TTL",
    "retention_days": "RUNS_RETENTION_DAYS",
    "max_queue_depth": "MAX_GLOBAL_QUEUE_DEPTH",
    "rate_limit": "RATE_LIMIT_PER_TENANT_RPS",
}

_S3 = {
    "S3_BUCKET": "bucket",
    "S3_REGION": "region",
    "S3_PREFIX": "prefix",
    "S3_ACCESS_KEY_ID": "access_key_id",
    "S3_SECRET_ACCESS_KEY": "secret_access_key",
    "S3_ENDPOINT_URL": "endpoint_url",
}
"""Variable -> field of `S3Settings`."""
_S3_KEYS = ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")
_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from `environment` (default: the process's own).

    Raises:
        ConfigurationError: a required variable is missing, or a value is not accepted.
    """
    env = os.environ if environment is None else environment
    given = frozenset(name for name in BY_NAME if env.get(name, "") != "")

    def text(name: str) -> str:
        variable = BY_NAME[name]
        value = env.get(name, "")
        if value != "":
            return value
        if variable.default is None:
            raise ConfigurationError(f"{name} is not set; it is required: {variable.meaning}.")
        return variable.default

    def integer(name: str) -> int:
        return _integer(BY_NAME[name], text(name), name)

    def switch(name: str) -> bool:
        value = text(name).strip().lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ConfigurationError(f"{name} is {value!r}; accepted: {BY_NAME[name].accepts}.")

    def choice(name: str) -> str:
        value = text(name).strip().lower()
        if value not in BY_NAME[name].choices:
            raise ConfigurationError(f"{name} is {value!r}; accepted: {BY_NAME[name].accepts}.")
        return value

    for variable in contract.VARIABLES:  # also what this process does not use must be well-formed
        if variable.kind is Kind.INTEGER:
            integer(variable.name)
        elif variable.kind is Kind.SWITCH:
            switch(variable.name)
        elif variable.kind is Kind.CHOICE:
            choice(variable.name)
    return Settings(
        redis_url=SecretStr(text("REDIS_URL")),
        postgres_url=SecretStr(text("SCALE_POSTGRES_URL")),
        redis_ca_file=text("REDIS_CA_FILE"),
        postgres_ca_file=text("POSTGRES_CA_FILE"),
        pgbouncer_mode=switch("PGBOUNCER_MODE"),
        concurrency=integer("WORKER_CONCURRENCY"),
        job_timeout=integer("WORKER_JOB_TIMEOUT"),
        max_retries=integer("WORKER_MAX_RETRIES"),
        shards=parse_shards(text("WORKER_QUEUE_SHARD")),
        topology=Topology(integer("NUM_QUEUE_SHARDS"), switch("ENABLE_TENANT_ISOLATION")),
        default_tenant_id=text("DEFAULT_TENANT_ID"),
        health_port=integer("WORKER_HEALTH_PORT"),
        metrics_token=SecretStr(text("METRICS_TOKEN").strip()),
        otlp_endpoint=tracing.endpoint_of(text("OTLP_ENDPOINT"), "OTLP_ENDPOINT"),
        k8s_mode=switch("K8S_MODE"),
        event_ttl=integer("PUBSUB_EVENT_TTL"),
        retention_days=integer("RUNS_RETENTION_DAYS"),
        max_queue_depth=integer("MAX_GLOBAL_QUEUE_DEPTH"),
        rate_limit=integer("RATE_LIMIT_PER_TENANT_RPS"),
        api_port=integer("API_PORT"),
        api_auth=choice("API_AUTH"),
        lease_seconds=integer("WORKER_LEASE_SECONDS"),
        drain_seconds=integer("WORKER_DRAIN_SECONDS"),
        definitions_dir=text("SYNAPSE_DEFINITIONS_DIR"),
        s3=_s3({name: text(name) for name in _S3}, {}),
        data_dir=text("SYNAPSE_DATA_DIR"),
        webhook_allow=Allowed.parse(text("WEBHOOK_ALLOW")),
        log_level=choice("LOG_LEVEL"),
        log_format=choice("LOG_FORMAT"),
        worker_id=socket.gethostname() if switch("K8S_MODE") else f"{socket.gethostname()}-{os.getpid()}",
        from_environment=given,
    )


def parse_shards(text: str) -> tuple[str, ...]:
    """Split WORKER_QUEUE_SHARD into shard names, in order, without doubles.

    Raises:
        ConfigurationError: none is named, an index is above 63, or a name cannot be a queue's.
    """
    shards: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if part == "":
            continue
        if part.isdecimal() and (int(part) >= contract.MAX_SHARDS or str(int(part)) != part):
            raise ConfigurationError(
                f"WORKER_QUEUE_SHARD names shard {part}; accepted indexes: 0 to {contract.MAX_SHARDS - 1}."
            )
        if _RESERVED_SHARD.search(part) or len(part) > contract.TENANT_ID_MAX_LENGTH:
            raise ConfigurationError(
                "WORKER_QUEUE_SHARD names a queue with braces or over 255 characters; those are refused."
            )
        if part not in shards:
            shards.append(part)
    if not shards:
        raise ConfigurationError(
            "WORKER_QUEUE_SHARD names no shard; accepted: " + BY_NAME["WORKER_QUEUE_SHARD"].meaning + "."
        )
    return tuple(shards)


def _s3(values: Mapping[str, str], where: Mapping[str, str]) -> S3Settings:
    """Check the S3 settings, by the names of their variables.

    Args:
        values: what was given, or the default.
        where: where a value is from, for those that are not from their variable.

    Raises:
        ConfigurationError: one of them cannot be used, or only one of the keys is there.
    """

    def refuse(name: str, accepted: str) -> ConfigurationError:
        return ConfigurationError(f"{where.get(name, name)} is {values[name]!a}; accepted: {accepted}.")

    bucket, region, endpoint = values["S3_BUCKET"], values["S3_REGION"], values["S3_ENDPOINT_URL"]
    if bucket and not _BUCKET.fullmatch(bucket):
        raise refuse("S3_BUCKET", "the name of a bucket, 3 to 255 letters, digits, dots, hyphens and underscores")
    if not _REGION.fullmatch(region):
        raise refuse("S3_REGION", "the name of a region, such as us-east-1")
    prefix = values["S3_PREFIX"].strip("/")
    try:
        if len(checked_path(prefix).encode()) > PREFIX_MAX_BYTES:
            raise BlobRefused("too long")
    except BlobRefused:
        accepted = f"a path of at most {PREFIX_MAX_BYTES} bytes, such as synapse or teams/synapse"
        raise refuse("S3_PREFIX", accepted) from None
    if endpoint and not _is_endpoint(endpoint):
        # It may hold a password, which is one of the reasons to refuse it.
        raise ConfigurationError(
            f"{where.get('S3_ENDPOINT_URL', 'S3_ENDPOINT_URL')} cannot be used; accepted: an http:// or https:// URL of"
            " a host, without user name, path and query, such as http://minio:9000."
        )
    missing = [name for name in _S3_KEYS if not values[name]]
    if len(missing) == 1:
        (given,) = (name for name in _S3_KEYS if values[name])
        raise ConfigurationError(
            f"{where.get(given, given)} is set and {missing[0]} is not; accepted: both, or neither (then the ambient"
            " credential chain is used: instance profile, ECS role, IRSA)."
        )
    return S3Settings(
        bucket=bucket,
        region=region,
        prefix=prefix,
        access_key_id=SecretStr(values["S3_ACCESS_KEY_ID"]),
        secret_access_key=SecretStr(values["S3_SECRET_ACCESS_KEY"]),
        endpoint_url=endpoint.rstrip("/"),
    )


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not rest


def _plain(value: str | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _integer(variable: Variable, value: str, where: str) -> int:
    try:
        number = int(value.strip())
    except ValueError:
        raise ConfigurationError(f"{where} is {value!r}; accepted: {variable.accepts}.") from None
    if (
        variable.minimum is not None
        and variable.maximum is not None
        and not variable.minimum <= number <= variable.maximum
    ):
        raise ConfigurationError(f"{where} is {number}; accepted: {variable.accepts}.")
    return number
