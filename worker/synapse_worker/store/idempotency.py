"""Idempotency-Key headers: the job that a request was given, for whoever sends the same request again.

A key is noted before anything else is written for its request, and with the id that the job will have. So a request
that is repeated, at whatever point the first one broke off, goes on with the same id, and one id is enqueued once.
"""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store.database import Database

_REMEMBERED = "interval '24 hours'"


@dataclass(frozen=True, slots=True)
class Remembered:
    """`job_id`: of the first request with the key; `same`: whether that was the same request."""

    job_id: str
    same: bool


async def remember(database: Database, tenant_id: str, key: str, *, request_hash: str, job_id: str) -> Remembered:
    """Note a key of a tenant, unless it was noted within the last 24 hours; returns what holds for it."""
    while True:
        rows = await database.fetch(
            f"""
            WITH noted AS (
              INSERT INTO idempotency_keys AS k (tenant_id, key, request_hash, run_id, created_at)
              VALUES ($1, $2, $3, $4, now())
              ON CONFLICT (tenant_id, key) DO UPDATE
                 SET request_hash = EXCLUDED.request_hash, run_id = EXCLUDED.run_id, created_at = now()
               WHERE k.created_at < now() - {_REMEMBERED}
              RETURNING request_hash, run_id)
            SELECT request_hash, run_id FROM noted
            UNION ALL
            SELECT request_hash, run_id FROM idempotency_keys
             WHERE tenant_id = $1 AND key = $2 AND created_at >= now() - {_REMEMBERED}
               AND NOT EXISTS (SELECT 1 FROM noted)
            """,  # noqa: S608 - no value in it
            tenant_id,
            key,
            request_hash,
            job_id,
        )
        if rows:  # else another request has noted it since this statement began
            return Remembered(rows[0]["run_id"], rows[0]["request_hash"] == request_hash)


async def forget_old(database: Database) -> int:
    """Delete keys that are older than 24 hours; returns how many."""
    return await database.execute(f"DELETE FROM idempotency_keys WHERE created_at < now() - {_REMEMBERED}")  # noqa: S608
