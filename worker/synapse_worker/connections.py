"""Opening Redis and PostgreSQL from the URLs that users write, and the store of artifacts.

Everything that depends on the form of a URL is here; `store.database` and `queueing` are handed clients
that work, one node or a cluster of them (`redis_cluster`). All clients connect lazily, time out every call and
never print the URL they were given.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import redis.exceptions as redis_errors
from pydantic import SecretStr
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from synapse_worker.contract import STORE_TIMEOUT_SECONDS
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.redis_cluster import Address, ClusterClient
from synapse_worker.redis_connection import QuickConnection, QuickTlsConnection
from synapse_worker.store.blobs import Blobs, S3Settings
from synapse_worker.store.database import Database
from synapse_worker.store.local_blobs import LocalBlobs

REDIS_ACCEPTED = (
    "redis://host:6379/0, redis://:password@host:6379/0, rediss://host:6380/0"
    " and redis+cluster://host:6379,host:6379 (rediss+cluster:// with TLS)"
)
REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster")
POSTGRES_ACCEPTED = "postgresql://user:password@host:5432/dbname, with ?sslmode=require where wanted"
POSTGRES_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
MINIMUM_REDIS = (6, 2)
SAFE_EVICTION_POLICY = "noeviction"

_MAX_CONNECTIONS = 64
_DEFAULT_REDIS_PORT = 6379
_PROBED_KEYS = 16
_ANNOTATED = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What a Redis says of itself; of a cluster, the oldest version and the worst policy of its masters.

    Attributes:
        version: as text.
        maxmemory_policy: "" where it will not say.
        clustered: keys live in hash slots, so a script may touch those of one slot only.
        masters: how many it has; 0 = no cluster, or one whose nodes are hidden.
    """

    version: str
    maxmemory_policy: str
    clustered: bool = False
    masters: int = 0

    @property
    def old(self) -> bool:
        """Whether it is older than the commands our scripts use."""
        return _numbers(self.version) < MINIMUM_REDIS

    @property
    def may_drop_keys(self) -> bool:
        """Whether it may evict queue keys when its memory is full."""
        return self.maxmemory_policy not in ("", SAFE_EVICTION_POLICY)


def open_redis(
    url: SecretStr, *, ca_file: str = "", ca_text: str = "", timeout: float = STORE_TIMEOUT_SECONDS
) -> Redis:
    """Return a client for `url`; nothing is connected yet.

    Args:
        url: redis:// or rediss:// (TLS, host name checked) of a single node, redis+cluster:// or rediss+cluster://
            with one or several nodes of a cluster, comma-separated.
        ca_file: PEM file that signs the servers' certificates; "" = the system's.
        ca_text: what such a file holds, for whoever has no file of it.
        timeout: seconds for connecting and for each call.

    Raises:
        ConfigurationError: the URL is not of an accepted form.
    """
    scheme, _, rest = url.get_secret_value().strip().partition("://")
    if scheme in ("redis+cluster", "rediss+cluster"):
        return _open_cluster(scheme.removesuffix("+cluster"), rest, ca_file=ca_file, ca_text=ca_text, timeout=timeout)
    parts = _split(url, "REDIS_URL", REDIS_ACCEPTED)
    if parts.scheme not in REDIS_SCHEMES:
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
        elif ca_text:
            options["ssl_ca_data"] = _certificates(ca_text, "the CA of Redis")
    try:
        client: Redis = Redis.from_url(url.get_secret_value().strip(), **options)
    except ValueError:
        raise ConfigurationError(f"REDIS_URL cannot be read; accepted: {REDIS_ACCEPTED}.") from None
    client.connection_pool.connection_class = QuickTlsConnection if parts.scheme == "rediss" else QuickConnection
    return client


def _open_cluster(scheme: str, rest: str, *, ca_file: str, ca_text: str, timeout: float) -> ClusterClient:
    """Open what follows the scheme of a cluster's URL: [user[:password]@]host[:port],host[:port]...[?options].

    `scheme` is that of a single node. Every node, also one that the cluster names later, is opened as the first is.
    """
    authority, options = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    credentials, at, hosts = authority.rpartition("@")
    seeds: list[Address] = []
    for place in hosts.split(","):
        # Each alone, so that what is wrong with one is said as it is for a single node.
        parts = _split(SecretStr(f"{scheme}://{place.strip()}"), "REDIS_URL", REDIS_ACCEPTED)
        seeds.append((parts.hostname or "", parts.port or _DEFAULT_REDIS_PORT))
    first = open_redis(
        SecretStr(f"{scheme}://{credentials}{at}{hosts.split(',')[0].strip()}{options}"),
        ca_file=ca_file,
        ca_text=ca_text,
        timeout=timeout,
    )
    pool = first.connection_pool
    if pool.connection_kwargs.get("db") is not None:
        raise ConfigurationError(
            "REDIS_URL names a database, and a Redis Cluster has only one: leave out what picks it."
        )

    def connect(address: Address) -> Redis:
        settings = {**pool.connection_kwargs, "host": address[0], "port": address[1]}
        return Redis.from_pool(
            ConnectionPool(connection_class=pool.connection_class, max_connections=_MAX_CONNECTIONS, **settings)
        )

    return ClusterClient(list(dict.fromkeys(seeds)), connect)


@contextmanager
def redis_errors_as_ours() -> Iterator[None]:
    """Turn what redis-py raises into `StoreUnavailable` or `StoreRefused` (one sentence, no secret)."""
    try:
        yield
    except redis_errors.AuthenticationError:
        raise StoreUnavailable("Redis", "refuses the user name or password of its URL") from None
    except redis_errors.NoPermissionError as error:
        raise StoreRefused(f"Redis does not allow our user a command or key that we need: {_said(error)}") from None
    except redis_errors.TimeoutError:
        raise StoreUnavailable("Redis", "does not answer in time") from None
    except redis_errors.BusyLoadingError:
        raise StoreUnavailable("Redis", "is still loading its data") from None
    except redis_errors.ReadOnlyError:
        raise StoreUnavailable("Redis", "is a read-only replica now; waiting for the failover") from None
    except redis_errors.NoScriptError:
        raise StoreUnavailable("Redis", "lost the scripts that it was just given; it is tried again") from None
    except (redis_errors.ConnectionError, OSError) as error:
        if "certificate verify failed" in str(error):
            raise StoreUnavailable("Redis", f"shows a certificate that we cannot trust: {_short(error)}") from None
        raise StoreUnavailable("Redis", f"cannot be reached: {_short(error)}") from None
    except redis_errors.ResponseError as error:
        text = _said(error)
        if text.startswith(("NOAUTH", "WRONGPASS")) or "invalid username-password" in text:
            raise StoreUnavailable("Redis", "refuses the user name or password of its URL") from None
        if text.startswith(("MASTERDOWN", "UNKILLABLE", "CLUSTERDOWN", "TRYAGAIN", "BUSY ")):
            raise StoreUnavailable("Redis", f"cannot serve now: {text}") from None
        if text.startswith(("MOVED ", "ASK ")):
            raise StoreRefused(
                "Redis is a node of a Redis Cluster and sends us to others; write its URL as redis+cluster://host:port"
                " (rediss+cluster:// with TLS)"
            ) from None
        if text.startswith("OOM"):
            raise StoreUnavailable("Redis", "is out of memory and takes no writes") from None
        if "WRONGTYPE" in text:  # an old Redis puts the script's name in front
            raise WrongKeyType(
                "Redis holds a key of ours with another type; another program uses this database"
            ) from None
        raise StoreRefused(f"Redis refuses a command: {text}") from None


def refuses_several_slots(error: redis_errors.ResponseError) -> bool:
    """Whether a call was refused, and not begun, because its keys live in several hash slots of a cluster."""
    text = _said(error)
    return text.startswith("CROSSSLOT") or "same slot" in text.lower()


async def ping_redis(client: Redis) -> RedisFacts:
    """Ask Redis, or every master of a cluster, who it is.

    Raises:
        StoreUnavailable: it does not answer, refuses the password, or is a replica now.
        StoreRefused: it is no cluster and the URL says so, or the other way round.
    """
    with redis_errors_as_ours():
        if not isinstance(client, ClusterClient):
            facts = await _ask_node(client)
            if facts.clustered:
                await _probe_slots(client)
            return facts
        try:
            each = await asyncio.gather(*(_ask_node(master) for master in await client.masters()))
        except BaseException:  # also a caller that gives up waiting
            client.forget_layout()
            raise
    oldest = min(each, key=lambda facts: _numbers(facts.version))
    worst = max(each, key=lambda facts: (facts.may_drop_keys, facts.maxmemory_policy == ""))
    return RedisFacts(oldest.version, worst.maxmemory_policy, clustered=True, masters=len(each))


async def read_each(client: Redis, names: Sequence[str]) -> list[bytes | None]:
    """Return the values of string keys, wherever they live.

    Raises:
        StoreUnavailable, StoreRefused: Redis does not answer, or says no.
    """
    with redis_errors_as_ours():
        if not isinstance(client, ClusterClient):
            try:
                # A quarter of what as many GETs cost us, but it serves the keys of one slot only.
                return list(await client.mget(names))
            except redis_errors.ResponseError as error:
                if not refuses_several_slots(error):
                    raise
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.get(name)
        return await pipeline.execute()


async def _ask_node(node: Redis) -> RedisFacts:
    pipeline = node.pipeline(transaction=False)
    pipeline.info("server")
    pipeline.info("replication")
    pipeline.config_get("maxmemory-policy")
    server, replication, policy = await pipeline.execute(raise_on_error=False)
    if isinstance(server, Exception):
        raise server
    if not isinstance(replication, Exception) and replication.get("role") == "slave":
        # Behind the same name there may be another server by now: connect anew.
        await node.connection_pool.disconnect(inuse_connections=False)
        raise redis_errors.ReadOnlyError("it is a replica")
    return RedisFacts(
        version=str(server.get("redis_version", "")),
        # Managed services rename or forbid CONFIG.
        maxmemory_policy="" if isinstance(policy, Exception) else str(policy.get("maxmemory-policy", "")),
        clustered=server.get("redis_mode") == "cluster",
    )


async def _probe_slots(client: Redis) -> None:
    """Look at keys all over the slots: a node of a cluster sends us away, an endpoint that hides one does not."""
    pipeline = client.pipeline(transaction=False)
    for number in range(_PROBED_KEYS):
        pipeline.exists(f"synapse:probe:{number}")
    await pipeline.execute()


def open_database(
    url: SecretStr,
    *,
    pgbouncer: bool = False,
    pool_size: int = 5,
    ca_file: str = "",
    ca_text: str = "",
    timeout: float = STORE_TIMEOUT_SECONDS,
) -> Database:
    """Return a database for `url`; nothing is connected yet.

    Args:
        url: postgresql:// or postgres:// (postgresql+asyncpg:// is accepted too).
        pgbouncer: no pool and no prepared statements.
        pool_size: most connections held at once (ignored with `pgbouncer`).
        ca_file: PEM file that signs the server's certificate; "" = the system's.
        ca_text: what such a file holds, for whoever has no file of it.
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
    in_url = options.pop("sslrootcert", "")
    ca = ca_file or ("" if ca_text else in_url)
    # Asked for by some hosted services and not known to the driver, which always binds when it can.
    options.pop("channel_binding", None)
    plain = urlunsplit(SplitResult("postgresql", parts.netloc, parts.path, urlencode(options), ""))
    return Database(
        SecretStr(plain),
        tls=_postgres_tls(mode, ca, name, ca_text=ca_text),
        pgbouncer=pgbouncer,
        pool_size=pool_size,
        timeout=timeout,
    )


def open_blobs(s3: S3Settings, data_dir: str) -> Blobs:
    """Return the store of artifacts: the bucket if there is one, else the folder; nothing is connected yet."""
    if not s3.bucket:
        return LocalBlobs(Path(data_dir))
    from synapse_worker.store.s3_blobs import S3Blobs  # boto3 takes its time, and the operator has none

    return S3Blobs(s3)


def _postgres_tls(mode: str, ca_file: str, name: str, *, ca_text: str = "") -> ssl.SSLContext | str | bool:
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
    if ca_text:
        _certificates(ca_text, "the CA of PostgreSQL")
    context = ssl.create_default_context(cafile=ca_file or None, cadata=ca_text or None)
    if mode == "require" and not (ca_file or ca_text):
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


def _readable(path: str, name: str) -> None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{name} names a file that cannot be read as PEM: {path}.") from None
    if "BEGIN CERTIFICATE" not in text:
        raise ConfigurationError(f"{name} names a file without a certificate in it: {path}.")


def _certificates(text: str, what: str) -> str:
    """Return `text`, which must hold certificates that can be read."""
    try:
        ssl.create_default_context(cadata=text)
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(
            f"{what} is not a certificate in PEM form; give `-----BEGIN CERTIFICATE-----` and on."
        ) from None
    return text


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's first two numbers."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _said(error: redis_errors.RedisError) -> str:
    """Return what a server said, in one bounded line; in a pipeline redis-py puts our command around it."""
    text = _short(error)
    match = _ANNOTATED.match(str(error))
    return str(error)[match.end() :].removeprefix("('").removesuffix("',)").splitlines()[0][:200] if match else text


def _short(error: BaseException) -> str:
    """Return the first line of an error, bounded; client libraries name hosts in it, never passwords."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
