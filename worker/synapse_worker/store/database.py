"""PostgreSQL as the rest of the code sees it: a few calls, each with a timeout, errors of our own.

The driver is asyncpg; statements are written with its `$1` placeholders in the modules beside this one.
With PgBouncer in transaction mode a connection is opened for each call or transaction and nothing is prepared.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import TypeVar

import asyncpg
from pydantic import SecretStr

from synapse_worker import tracing
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable

T = TypeVar("T")

_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


class Database:
    """A lazily opened PostgreSQL. Safe to share between tasks of one loop.

    Every call raises `StoreUnavailable` when the server does not answer in `timeout` seconds or cannot be
    reached, and `StoreRefused` when it answers that the schema or a right is missing.
    """

    def __init__(
        self,
        dsn: SecretStr,
        *,
        tls: ssl.SSLContext | str | bool,
        pgbouncer: bool,
        pool_size: int,
        timeout: float,
    ) -> None:
        self._dsn = dsn
        self._tls = tls
        self._pgbouncer = pgbouncer
        self._pool_size = pool_size
        self._timeout = timeout
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        with tracing.sql(statement):
            async with self._connection() as connection:
                rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments, timeout=self._timeout)
                return rows

    async def fetchrow(self, statement: str, *arguments: object) -> asyncpg.Record | None:
        """Run one statement and return its first row, or None."""
        rows = await self.fetch(statement, *arguments)
        return rows[0] if rows else None

    async def execute(self, statement: str, *arguments: object) -> int:
        """Run one statement and return how many rows it touched (0 where that has no meaning)."""
        with tracing.sql(statement):
            async with self._connection() as connection:
                status: str = await connection.execute(statement, *arguments, timeout=self._timeout)
        last = status.rsplit(" ", 1)[-1]
        return int(last) if last.isdecimal() else 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a transaction; it commits when the block ends and rolls back when it raises."""
        async with self._connection() as connection, connection.transaction():
            yield Transaction(connection, self._timeout)

    async def ping(self) -> str:
        """Return the server's version, as it says it."""
        row = await self.fetchrow("SELECT current_setting('server_version') AS version")
        return str(row["version"]) if row else ""

    async def close(self) -> None:
        """Close the pool; calls that still run are given one timeout to end."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), self._timeout)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        with _errors_as_ours(self._timeout):
            if self._pgbouncer:
                connection = await asyncpg.connect(
                    self._dsn.get_secret_value(),
                    ssl=self._tls,
                    timeout=self._timeout,
                    command_timeout=self._timeout,
                    statement_cache_size=0,
                )
                try:
                    yield connection
                finally:
                    await connection.close(timeout=self._timeout)
            else:
                pool = await self._opened()
                async with pool.acquire(timeout=self._timeout) as connection:
                    yield connection

    async def _opened(self) -> asyncpg.Pool:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        self._dsn.get_secret_value(),
                        ssl=self._tls,
                        min_size=0,
                        max_size=self._pool_size,
                        timeout=self._timeout,
                        command_timeout=self._timeout,  # also of BEGIN and COMMIT
                        init=_init,
                        reset=_reset,
                    )
        return self._pool


class Transaction:
    """The calls of `Database` inside one transaction."""

    def __init__(self, connection: asyncpg.Connection, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    async def fetch(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement and return its rows."""
        rows: list[asyncpg.Record] = await self._connection.fetch(statement, *arguments, timeout=self._timeout)
        return rows

    async def execute(self, statement: str, *arguments: object) -> None:
        """Run one statement, or several without arguments."""
        await self._connection.execute(statement, *arguments, timeout=self._timeout)


async def _init(connection: asyncpg.Connection) -> None:
    """Have rows found by their keys, which every statement that a job depends on does.

    A prepared statement keeps its plan. One that was made while a table was empty would read the whole table, each
    time, until the next analyze; and the price put on what cannot be avoided would start the JIT compiler.
    """
    await connection.execute("SET enable_seqscan = off; SET jit = off")


async def _reset(connection: asyncpg.Connection) -> None:
    """Ready a connection for its next user: we set no session state, so only a transaction can be left."""
    if connection.is_in_transaction():
        await connection.execute("ROLLBACK")


@contextmanager
def _errors_as_ours(timeout: float) -> Iterator[None]:
    try:
        yield
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        raise StoreUnavailable("PostgreSQL", "refuses the user name or password of its URL") from None
    except asyncpg.InvalidCatalogNameError:
        raise StoreUnavailable("PostgreSQL", "has no database of the name that its URL gives") from None
    except asyncpg.TooManyConnectionsError:
        raise StoreUnavailable("PostgreSQL", "has no connection left (max_connections)") from None
    except (
        asyncpg.PostgresConnectionError,
        asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError,
        asyncpg.CrashShutdownError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.QueryCanceledError,
        asyncpg.DeadlockDetectedError,
        asyncpg.LockNotAvailableError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
    ) as error:
        raise StoreUnavailable("PostgreSQL", f"cannot serve now: {first_line(error)}") from None
    except TimeoutError:
        raise StoreUnavailable("PostgreSQL", f"does not answer within {timeout:g} s") from None
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
        raise StoreRefused(
            "PostgreSQL lacks our tables; run `synapse-worker migrate` once against this database"
        ) from None
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreRefused(f"PostgreSQL does not allow our user what it needs: {first_line(error)}") from None
    except ssl.SSLCertVerificationError as error:
        raise StoreUnavailable(
            "PostgreSQL", f"shows a certificate that we cannot trust: {error.verify_message}"
        ) from None
    except OSError as error:
        raise StoreUnavailable("PostgreSQL", f"cannot be reached: {first_line(error)}") from None
    except asyncpg.ClientConfigurationError as error:
        raise ConfigurationError(f"SCALE_POSTGRES_URL cannot be used: {first_line(error)}.") from None


def array(values: Sequence[str | float | datetime | None]) -> str:
    """Return values as the text of an array, for a parameter `$n::text::text[]` or of another element type.

    The driver's own arrays are looked at element by element, several times. An array without any value is empty:
    `unnest` of several arrays fills the shorter ones up with NULLs.
    """
    if values.count(None) == len(values):
        return "{}"
    try:
        text = '","'.join(values)  # type: ignore[arg-type] # most are texts, and most texts are ids
    except TypeError:
        return "{" + ",".join(["NULL" if value is None else _quoted(str(value)) for value in values]) + "}"
    if "\\" in text or text.count('"') > 2 * (len(values) - 1):
        return "{" + ",".join(map(_quoted, values)) + "}"  # type: ignore[arg-type]
    return '{"' + text + '"}'


def _quoted(text: str) -> str:
    """Within the quotes of an element, a backslash makes the character behind it an ordinary one."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def first_line(error: BaseException) -> str:
    """Return the first line of an error, bounded to 200 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def to_jsonb(value: object) -> str:
    """Return `value` as the text of a jsonb.

    What jsonb cannot hold is replaced, not refused, so that no run is lost by it: NUL and lone surrogates
    become U+FFFD. NaN and infinities are not JSON and raise ValueError.
    """
    if not value and isinstance(value, dict | list):  # as most runs begin; the encoder takes ten times as long
        return "[]" if isinstance(value, list) else "{}"
    text = _ENCODE(value)
    if "\\u0000" not in text and text.isascii():
        return text
    return _ENCODE(_clean(value))


def to_text(value: str) -> str:
    """Return `value` as a text column can hold it, replaced as in `to_jsonb`: users' code writes sentences too."""
    return value if value.isascii() and "\x00" not in value else str(_clean(value))


def from_jsonb(text: str | None, default: T) -> T:
    """Return the value of a jsonb column as text; NULL becomes `default`."""
    if text is None:
        return default
    value: T = json.loads(text)
    return default if value is None else value


def _clean(value: object) -> object:
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
