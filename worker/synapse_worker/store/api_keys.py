"""Keys of the V2 API: made, listed, revoked, found. A token is shown once, when it is made; only its hash is kept.

Rows with a manager are an operator's, from the Secret of its SynapseScale; those made here have none. Who may do what
with a key is the API's business.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from pydantic import SecretStr

from synapse_worker.store.database import Database

_PREFIX = "syn_"
_ID_LENGTH = 12


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as listings show it.

    Attributes:
        key_id: names it where the token must not be seen: the beginning of its hash.
        tenant_id: the only tenant that it may speak for; None = any.
        managed_by: UID of the SynapseScale whose Secret names it; None = made by the command line.
    """

    key_id: str
    name: str
    tenant_id: str | None
    managed_by: str | None
    created_at: datetime | None


def hash_of(token: str) -> str:
    """Return what is stored of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


async def create(database: Database, *, name: str, tenant_id: str | None) -> tuple[ApiKey, SecretStr]:
    """Make a key; the token that is returned can never be read again."""
    token = _PREFIX + secrets.token_urlsafe(32)
    row = await database.fetchrow(
        "INSERT INTO api_keys (hash, name, tenant_id, created_at) VALUES ($1, $2, $3, now())"
        " RETURNING hash, name, tenant_id, managed_by, created_at",
        hash_of(token),
        name,
        tenant_id,
    )
    assert row is not None  # noqa: S101 - the row was just inserted
    return _key(row), SecretStr(token)


async def list_all(database: Database) -> list[ApiKey]:
    """Return all keys, oldest first."""
    rows = await database.fetch(
        "SELECT hash, name, tenant_id, managed_by, created_at FROM api_keys ORDER BY created_at, hash"
    )
    return [_key(row) for row in rows]


async def revoke(database: Database, key_id: str) -> int:
    """Delete the keys that nobody manages and whose id this is; returns how many."""
    return await database.execute(
        "DELETE FROM api_keys WHERE left(hash, $2) = $1 AND managed_by IS NULL", key_id, _ID_LENGTH
    )


async def find(database: Database, token: str) -> ApiKey | None:
    """Return the key that a token belongs to, or None."""
    wanted = hash_of(token)
    row = await database.fetchrow(
        "SELECT hash, name, tenant_id, managed_by, created_at FROM api_keys WHERE hash = $1", wanted
    )
    return _key(row) if row is not None and hmac.compare_digest(row["hash"], wanted) else None


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(row["hash"][:_ID_LENGTH], row["name"], row["tenant_id"], row["managed_by"], row["created_at"])
