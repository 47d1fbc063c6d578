"""The dead-letter queue: jobs that failed for good, kept whole until somebody retries or discards them.

Upstream's table, upstream's way: a retry enqueues the same function with the same arguments as a new job, and the
run goes on behind its last checkpoint. Letters are written in `runs`, with the end of their run.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from synapse_worker.store.database import Database, from_jsonb
from synapse_worker.store.topology import EPOCH_NOW

REDACTED = "(hidden)"
_SECRET_ARGUMENTS = ("webhook_secret",)


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter; `payload` is exactly the function's keyword arguments."""

    id: str
    run_id: str | None
    orchestration_id: str | None
    function: str
    payload: Mapping[str, object]
    error: str
    attempts: int
    failed_at: datetime | None
    resolved: bool
    tenant_id: str | None = None

    @property
    def shown_payload(self) -> dict[str, object]:
        """The payload as it may be shown: secrets are hidden."""
        return {key: REDACTED if key in _SECRET_ARGUMENTS and value else value for key, value in self.payload.items()}


_COLUMNS = """
SELECT id::text, run_id, orchestration_id, job_function, job_payload::text, error_message, attempt_count,
       last_failed_at, coalesce(resolved, false) AS resolved, tenant_id
  FROM (SELECT d.*, coalesce(r.tenant_id, d.job_payload->>'tenant_id') AS tenant_id
          FROM dead_letter_queue d LEFT JOIN orchestration_runs r USING (run_id)) AS letters
"""


async def unresolved(database: Database, *, limit: int, tenant_id: str | None = None) -> list[Letter]:
    """Return the newest letters that nobody has dealt with; of one tenant's jobs, or of all."""
    rows = await database.fetch(
        _COLUMNS
        + " WHERE resolved IS NOT TRUE AND ($2::text IS NULL OR tenant_id = $2)"
        + " ORDER BY last_failed_at DESC NULLS LAST LIMIT $1",
        limit,
        tenant_id,
    )
    return [_letter(row) for row in rows]


async def get(database: Database, letter_id: str) -> Letter | None:
    """Return one letter by its id, or None; text that is no UUID names none."""
    try:
        key = uuid.UUID(letter_id)
    except ValueError:
        return None
    row = await database.fetchrow(_COLUMNS + " WHERE id = $1", key)
    return None if row is None else _letter(row)


async def discard(database: Database, letter_id: str) -> bool:
    """Mark a letter as dealt with; False when it was already."""
    touched = await database.execute(
        "UPDATE dead_letter_queue SET resolved = true WHERE id = $1 AND resolved IS NOT TRUE", uuid.UUID(letter_id)
    )
    return touched == 1


async def requeue(
    database: Database, letter: Letter, *, job_id: str, queue: str, envelope: bytes, epoch: int
) -> bool | None:
    """Turn a letter into an open job and its run into a queued one, all or nothing; the queue entry comes after.

    Args:
        epoch: of the topology by which `queue` was chosen.

    Returns:
        False when somebody has dealt with the letter already, None when the topology has another epoch now: nothing
        was written.
    """
    row = await database.fetchrow(
        f"""
        WITH letter AS (
          UPDATE dead_letter_queue SET resolved = true
           WHERE id = $1 AND resolved IS NOT TRUE AND {EPOCH_NOW} = $5 RETURNING run_id),
        run AS (
          UPDATE orchestration_runs
             SET status = 'queued', job_id = $2::text, ended_at = NULL, error = NULL, deadline = NULL
           WHERE run_id = (SELECT run_id FROM letter) AND status IN ('failed', 'cancelled')),
        job AS (
          INSERT INTO job_ledger (job_id, run_id, queue, envelope, enqueued_at)
          SELECT $2::text, run_id, $3, $4, now() FROM letter)
        SELECT EXISTS (SELECT 1 FROM letter) AS done, {EPOCH_NOW} = $5 AS by_this_epoch
        """,  # noqa: S608 - no value in it
        uuid.UUID(letter.id),
        job_id,
        queue,
        envelope,
        epoch,
    )
    return bool(row["done"]) if row and row["by_this_epoch"] else None


def _letter(row: asyncpg.Record) -> Letter:
    return Letter(
        id=row["id"],
        run_id=row["run_id"],
        orchestration_id=row["orchestration_id"],
        function=row["job_function"] or "unknown",
        payload=from_jsonb(row["job_payload"], {}),
        error=row["error_message"] or "",
        attempts=row["attempt_count"] or 0,
        failed_at=row["last_failed_at"],
        resolved=row["resolved"],
        tenant_id=row["tenant_id"],
    )
