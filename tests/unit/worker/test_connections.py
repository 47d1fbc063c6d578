"""URLs: every form of the page is accepted, everything else is one sentence, and no password is in it."""

from __future__ import annotations

import ssl

import pytest
from pydantic import SecretStr

from synapse_worker.connections import open_database, open_redis
from synapse_worker.errors import ConfigurationError
from synapse_worker.redis_cluster import ClusterClient


@pytest.mark.parametrize(
    ("url", "port", "database", "tls"),
    [
        ("redis://hostname:6379/0", 6379, 0, False),
        ("redis://hostname", 6379, 0, False),
        ("redis://:password@hostname:6379/3", 6379, 3, False),
        ("rediss://hostname:6380/0", 6380, 0, True),
    ],
)
async def test_redis_urls_of_the_page_are_accepted(url: str, port: int, database: int, tls: bool) -> None:
    client = open_redis(SecretStr(url))
    options = client.connection_pool.connection_kwargs
    assert options.get("port", 6379) == port
    assert int(options.get("db") or 0) == database
    assert options.get("ssl_check_hostname", False) is tls
    await client.aclose()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://hush@host", "has the scheme 'http'"),
        ("redis://:hush@host:6379/db", "ends in a database that is not a number"),
        ("redis://:hush@host:port/0", "cannot be read as a URL"),
        ("host:6379", "names no host"),
        ("", "names no host"),
    ],
)
def test_redis_urls_that_cannot_work_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_redis(SecretStr(url))
    assert sentence in str(caught.value)
    assert "redis://host:6379/0" in str(caught.value) or "/0 to /15" in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "seeds", "credentials", "tls"),
    [
        (
            "redis+cluster://node1:6379,node2:6380,node3:6379",
            [("node1", 6379), ("node2", 6380), ("node3", 6379)],
            (None, None),
            False,
        ),
        ("redis+cluster://:p%40ss@node1,node1", [("node1", 6379)], (None, "p@ss"), False),
        (
            "rediss+cluster://user:password@[::1]:7000, node2",
            [("::1", 7000), ("node2", 6379)],
            ("user", "password"),
            True,
        ),
        ("redis+cluster://node1?client_name=a@b", [("node1", 6379)], (None, None), False),
    ],
)
async def test_urls_of_a_cluster_are_accepted(
    url: str, seeds: list[tuple[str, int]], credentials: tuple[str | None, str | None], tls: bool
) -> None:
    client = open_redis(SecretStr(url))
    assert isinstance(client, ClusterClient)
    assert list(client.nodes) == seeds
    for (host, port), node in client.nodes.items():
        options = node.connection_pool.connection_kwargs
        assert (options["host"], options["port"], options.get("db")) == (host, port, None)
        assert (options.get("username"), options.get("password")) == credentials
        assert options.get("ssl_check_hostname", False) is tls
    await client.aclose()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis+cluster://:hush@a:6379,b:6379/1", "names a database, and a Redis Cluster has only one"),
        ("redis+cluster://:hush@a:6379/0", "names a database, and a Redis Cluster has only one"),
        ("redis+cluster://:hush@a:6379?db=2", "names a database, and a Redis Cluster has only one"),
        ("redis+cluster://:hush@a:6379/x", "ends in a database that is not a number"),
        ("redis+cluster://:hush@a:6379,,b:6379", "names no host"),
        ("redis+cluster://:hush@", "names no host"),
        ("redis+cluster://:hush@a:6379,b:port", "cannot be read as a URL"),
        ("rediss+cluster://:hu/sh@a:6379", "cannot be read as a URL"),
        ("http+cluster://:hush@a:6379", "has the scheme 'http+cluster'"),
    ],
)
def test_urls_of_a_cluster_that_cannot_work_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_redis(SecretStr(url))
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "hu/sh" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:password@host:5432/dbname",
        "postgres://user:password@host/dbname",
        "postgresql+asyncpg://user@host:6432/dbname",
        "postgresql://user:password@host:5432/dbname?sslmode=require&channel_binding=require",
    ],
)
async def test_postgres_urls_of_the_page_are_accepted(url: str) -> None:
    await open_database(SecretStr(url)).close()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://u:hush@h/db", "has the scheme 'mysql'"),
        ("postgresql://u:hush@h:5432", "names no database"),
        (
            "postgresql://u:hu/sh@h/db",
            "cannot be read as a URL (special characters of a password must be percent-encoded)",
        ),
        ("postgresql://u:hush@h/db?sslmode=maybe", "has sslmode=maybe; accepted: disable, allow"),
    ],
)
def test_postgres_urls_that_cannot_work_are_refused(url: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_database(SecretStr(url))
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "hu/sh" not in str(caught.value)


def test_a_ca_file_that_is_none_is_named() -> None:
    with pytest.raises(ConfigurationError, match="POSTGRES_CA_FILE names a file that cannot be read as PEM: /nowhere"):
        open_database(SecretStr("postgresql://h/db?sslmode=verify-full"), ca_file="/nowhere")
    with pytest.raises(ConfigurationError, match="REDIS_CA_FILE names a file without a certificate in it"):
        open_redis(SecretStr("rediss://h"), ca_file="pyproject.toml")


def test_require_encrypts_without_verifying_as_libpq_does() -> None:
    from synapse_worker.connections import _postgres_tls

    require = _postgres_tls("require", "", "X")
    full = _postgres_tls("verify-full", "", "X")
    assert isinstance(require, ssl.SSLContext)
    assert isinstance(full, ssl.SSLContext)
    assert (require.verify_mode, full.verify_mode, full.check_hostname) == (ssl.CERT_NONE, ssl.CERT_REQUIRED, True)
