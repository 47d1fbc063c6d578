"""Opening Redis and PostgreSQL from the URLs that users write.

Everything that depends on the form of a URL is here; `store.database` and `queueing` are handed clients
that work. Both clients connect lazily, time out every call and never print the URL they were given.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import redis.exceptions as redis_errors
from pydantic import SecretStr
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from synapse_worker.contract import STORE_TIMEOUT_SECONDS
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.store.database import Database

REDIS_ACCEPTED = "redis://host:6379/0, redis://:password@host:6379/0 and rediss://host:6380/0"
POSTGRES_ACCEPTED = "postgresql://user:password@host:5432/dbname, with ?sslmode=require where wanted"
POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
MINIMUM_REDIS = (6, 2)
SAFE_EVICTION_POLICY = "noeviction"

_MAX_CONNECTIONS = 64


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a Redis says of itself: `version` as text, `maxmemory_policy` ("" where it will not say)."""

    version: str
    maxmemory_policy: str

    @property
    def old(self) -> bool:
        """Whether it is older than the commands our scripts use."""
        parts = self.version.split(".")
        return tuple(int(part) for part in parts[:2] if part.isdecimal()) < MINIMUM_REDIS

    @property
    def may_drop_keys(self) -> bool:
        """Whether it may evict queue keys when its memory is full."""
        return self.maxmemory_policy not in ("", SAFE_EVICTION_POLICY)


def open_redis(url: SecretStr, *, ca_file: str = "", timeout: float = STORE_TIMEOUT_SECONDS) -> Redis:
    """Return a client for `url`; nothing is connected yet.

    Args:
        url: redis:// or rediss:// (TLS, host name checked).
        ca_file: PEM file that signs the server's certificate; "" = the system's.
        timeout: seconds for connecting and for each call.

    Raises:
        ConfigurationError: the URL is not of an accepted form.
    """
    if url.get_secret_value().strip().partition("://")[0] in ("redis+cluster", "rediss+cluster"):
        raise ConfigurationError(
            f"REDIS_URL names a Redis Cluster; this release accepts a single node: {REDIS_ACCEPTED}."
        )
    parts = _split(url, "REDIS_URL", REDIS_ACCEPTED)
    if parts.scheme not in ("redis", "rediss"):
        raise ConfigurationError(f"REDIS_URL has the scheme {parts.scheme!r}; accepted: {REDIS_ACCEPTED}.")
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        raise ConfigurationError(
            "REDIS_URL ends in a database that is not a number; accepted: /0 to /15, as far as the server has them."
        )
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, 5.0),
        "socket_keepalive": True,
        "health_check_interval": 15,
        "max_connections": _MAX_CONNECTIONS,
        # Queue entries are bytes that anybody may have written; ids that are no text must survive the way back.
        "encoding_errors": "surrogateescape",
        # A script that changed something must not be sent twice by the client; callers decide.
        "retry": Retry(NoBackoff(), 0),
    }
    if parts.scheme == "rediss":
        # redis-py leaves the host name unchecked unless told otherwise.
        options["ssl_check_hostname"] = True
        if ca_file:
            _readable(ca_file, "REDIS_CA_FILE")
            options["ssl_ca_certs"] = ca_file
    try:
        client: Redis = Redis.from_url(url.get_secret_value(), **options)
    except ValueError:
        raise ConfigurationError(f"REDIS_URL cannot be read; accepted: {REDIS_ACCEPTED}.") from None
    return client


@contextmanager
def redis_errors_as_ours() -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable` or `StoreRefused` (one sentence, no secret)."""
    try:
        yield
    except redis_errors.AuthenticationError:
        raise StoreUnavailable("Redis", "refuses the user name or password of its URL") from None
    except redis_errors.NoPermissionError as error:
        raise StoreRefused(f"Redis does not allow our user a command or key that we need: {error}") from None
    except redis_errors.TimeoutError:
        raise StoreUnavailable("Redis", "does not answer in time") from None
    except redis_errors.BusyLoadingError:
        raise StoreUnavailable("Redis", "is still loading its data") from None
    except redis_errors.ReadOnlyError:
        raise StoreUnavailable("Redis", "is a read-only replica now; waiting for the failover") from None
    except (redis_errors.ConnectionError, OSError) as error:
        if "certificate verify failed" in str(error):
            raise StoreUnavailable("Redis", f"shows a certificate that we cannot trust: {_short(error)}") from None
        raise StoreUnavailable("Redis", f"cannot be reached: {_short(error)}") from None
    except redis_errors.ResponseError as error:
        text = str(error)
        if text.startswith(("NOAUTH", "WRONGPASS")) or "invalid username-password" in text:
            raise StoreUnavailable("Redis", "refuses the user name or password of its URL") from None
        if text.startswith(("MASTERDOWN", "UNKILLABLE", "CLUSTERDOWN", "TRYAGAIN", "BUSY ")):
            raise StoreUnavailable("Redis", f"cannot serve now: {_short(error)}") from None
        if text.startswith("OOM"):
            raise StoreUnavailable("Redis", "is out of memory and takes no writes") from None
        if "WRONGTYPE" in text:  # an old Redis puts the script's name in front
            raise WrongKeyType(
                "Redis holds a key of ours with another type; another program uses this database"
            ) from None
        raise StoreRefused(f"Redis refuses a command: {_short(error)}") from None


async def ping_redis(client: Redis) -> RedisFacts:
    """Ask Redis who it is.

    Raises:
        StoreUnavailable: it does not answer, or refuses the password.
    """
    with redis_errors_as_ours():
        info = await client.info("server")
        try:
            policy = (await client.config_get("maxmemory-policy")).get("maxmemory-policy", "")
        except redis_errors.ResponseError:
            policy = ""  # managed services rename or forbid CONFIG
    version = str(info.get("redis_version", ""))
    return RedisFacts(version=version, maxmemory_policy=policy)


def open_database(
    url: SecretStr,
    *,
    pgbouncer: bool = False,
    pool_size: int = 5,
    ca_file: str = "",
    timeout: float = STORE_TIMEOUT_SECONDS,
) -> Database:
    """Return a database for `url`; nothing is connected yet.

    Args:
        url: postgresql:// or postgres:// (postgresql+asyncpg:// is accepted too).
        pgbouncer: no pool and no prepared statements.
        pool_size: most connections held at once (ignored with `pgbouncer`).
        ca_file: PEM file that signs the server's certificate; "" = the system's.
        timeout: seconds for connecting and for each statement.

    Raises:
        ConfigurationError: the URL is not of an accepted form.
    """
    name = "SCALE_POSTGRES_URL"
    parts = _split(url, name, POSTGRES_ACCEPTED)
    if parts.scheme not in POSTGRES_SCHEMES:
        raise ConfigurationError(f"{name} has the scheme {parts.scheme!r}; accepted: {POSTGRES_ACCEPTED}.")
    if parts.path.strip("/") == "":
        raise ConfigurationError(f"{name} names no database; accepted: {POSTGRES_ACCEPTED}.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    mode = options.pop("sslmode", options.pop("ssl", "prefer"))
    ca = ca_file or options.pop("sslrootcert", "")
    # Asked for by some hosted services and not known to the driver, which always binds when it can.
    options.pop("channel_binding", None)
    plain = urlunsplit(SplitResult("postgresql", parts.netloc, parts.path, urlencode(options), ""))
    return Database(
        SecretStr(plain), tls=_postgres_tls(mode, ca, name), pgbouncer=pgbouncer, pool_size=pool_size, timeout=timeout
    )


def _postgres_tls(mode: str, ca_file: str, name: str) -> ssl.SSLContext | str | bool:
    """Translate libpq's sslmode; `require` does not verify, as in libpq, unless a CA is given."""
    if mode == "disable":
        return False
    if mode in ("allow", "prefer"):
        return mode
    if mode not in ("require", "verify-ca", "verify-full"):
        raise ConfigurationError(
            f"{name} has sslmode={mode}; accepted: disable, allow, prefer, require, verify-ca, verify-full."
        )
    if ca_file:
        _readable(ca_file, "POSTGRES_CA_FILE")
    context = ssl.create_default_context(cafile=ca_file or None)
    if mode == "require" and not ca_file:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif mode != "verify-full":
        context.check_hostname = False
    return context


def _split(url: SecretStr, name: str, accepted: str) -> SplitResult:
    text = url.get_secret_value().strip()
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ConfigurationError(
            f"{name} cannot be read as a URL (special characters of a password must be percent-encoded);"
            f" accepted: {accepted}."
        ) from None
    if not parts.scheme or not parts.hostname:
        raise ConfigurationError(f"{name} names no host; accepted: {accepted}.")
    return parts


def has_password(url: str) -> bool:
    """Whether the URL carries a password (in its authority or as a query option)."""
    parts = urlsplit(url)
    return bool(parts.password) or any(key == "password" for key, _ in parse_qsl(parts.query))


def _readable(path: str, name: str) -> None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{name} names a file that cannot be read as PEM: {path}.") from None
    if "BEGIN CERTIFICATE" not in text:
        raise ConfigurationError(f"{name} names a file without a certificate in it: {path}.")


def _short(error: BaseException) -> str:
    """Return the first line of an error, bounded; client libraries name hosts in it, never passwords."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
