"""Which runs still lack a log object, and what goes into it.

The statement that ends or pauses a run adds a row to `run_logs` (`due`), so that none is forgotten. Who writes logs
(`synapse_worker.run_logs`) leases rows by moving `next_at`, writes the objects and removes the rows. A log is made from
`run_steps` alone, so any process can write it, at any time, and writes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from synapse_worker.store.database import Database

_PAGE_ROWS = 1_000
_PAGE_BYTES = 4_000_000


def due(source: str, name: str = "logs") -> str:
    """Return a CTE for a statement that ends or pauses runs.

    Args:
        source: the CTE before it, which returns run_id, tenant_id, claim, status, error and ended_at of these runs.
        name: the CTE's own.
    """
    return f"""
{name} AS (
  INSERT INTO run_logs (run_id, claim, status, tenant_id, error, ended_at, next_at)
  SELECT run_id, coalesce(claim, 0), status, tenant_id, error, coalesce(ended_at, now()), now() FROM {source}
  ON CONFLICT (run_id, claim, status) DO UPDATE
     SET error = EXCLUDED.error, ended_at = EXCLUDED.ended_at, next_at = EXCLUDED.next_at)"""  # noqa: S608 - the name of a CTE of ours


@dataclass(frozen=True, slots=True)
class DueLog:
    """A run that ended or paused, under which claim, and what its row says besides.

    Attributes:
        claim: the last owner's; 0 = nobody has ever run it.
        ended_at: when it ended or paused.
        lease: names this lease; whoever takes the row later has another.
        facts: more columns of the run's row, as JSON text; None = the row is gone.
    """

    run_id: str
    claim: int
    status: str
    tenant_id: str
    error: str | None
    ended_at: datetime
    lease: datetime
    facts: str | None


async def lease(database: Database, *, limit: int, seconds: float) -> list[DueLog]:
    """Take rows that are due, those of the longest ago first; nobody else gets them for so many seconds."""
    rows = await database.fetch(
        """
        WITH taken AS (
          UPDATE run_logs l SET next_at = now() + make_interval(secs => $2)
            FROM (SELECT run_id, claim, status FROM run_logs WHERE next_at <= now()
                   ORDER BY next_at LIMIT $1 FOR UPDATE SKIP LOCKED) d
           WHERE l.run_id = d.run_id AND l.claim = d.claim AND l.status = d.status
          RETURNING l.*)
        SELECT t.*, (SELECT json_build_object('orchestration_id', r.orchestration_id, 'session_id', r.session_id,
                 'worker_id', r.worker_id, 'created_at', r.created_at, 'started_at', r.started_at,
                 'total_tokens_used', r.total_tokens_used, 'total_cost_usd', r.total_cost_usd)::text
                 FROM orchestration_runs r WHERE r.run_id = t.run_id) AS facts
          FROM taken t
        """,
        limit,
        seconds,
    )
    return [
        DueLog(
            row["run_id"],
            row["claim"],
            row["status"],
            row["tenant_id"],
            row["error"],
            row["ended_at"],
            row["next_at"],
            row["facts"],
        )
        for row in rows
    ]


async def settle(database: Database, written: Sequence[DueLog]) -> None:
    """Remove rows whose logs are written, but for those that are due anew since."""
    await database.execute(
        """
        DELETE FROM run_logs l USING unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[])
                                  AS w (run_id, claim, status, next_at)
         WHERE l.run_id = w.run_id AND l.claim = w.claim AND l.status = w.status AND l.next_at = w.next_at
        """,
        [log.run_id for log in written],
        [log.claim for log in written],
        [log.status for log in written],
        [log.lease for log in written],
    )


async def give_up(database: Database, *, older_than_days: int) -> int:
    """Remove rows whose logs could not be written for so many days; returns how many."""
    return await database.execute(
        "DELETE FROM run_logs WHERE ended_at < now() - make_interval(days => $1)", older_than_days
    )


@dataclass(frozen=True, slots=True)
class StepLine:
    """A finished step as a line of JSON, with its place in the run."""

    run_id: str
    ordinal: int
    claim: int
    line: str


async def steps(database: Database, run_ids: Sequence[str], *, after: int = 0) -> list[StepLine]:
    """Return a page of the runs' steps, in order; an empty one when there are no more.

    A page ends after 1,000 steps or some megabytes, and holds one step at least.

    Args:
        database: where.
        run_ids: whose.
        after: ordinal of the last step that is known already; for one run.
    """
    rows = await database.fetch(
        """
        SELECT * FROM (
          SELECT s.*, sum(size) OVER (ORDER BY run_id, ordinal ROWS UNBOUNDED PRECEDING) - size AS before FROM (
            SELECT run_id, ordinal, step_id, visit, claim, started_at, ended_at, tokens, cost_usd, delta::text,
                   entry::text, events::text,
                   pg_column_size(delta) + pg_column_size(entry) + pg_column_size(events) AS size
              FROM run_steps WHERE run_id = ANY($1::text[]) AND ordinal > $2 ORDER BY run_id, ordinal LIMIT $3) s) p
         WHERE before < $4 ORDER BY run_id, ordinal
        """,
        list(run_ids),
        after,
        _PAGE_ROWS,
        _PAGE_BYTES,
    )
    return [StepLine(row["run_id"], row["ordinal"], row["claim"], _line(row)) for row in rows]


async def is_due(database: Database, run_id: str) -> bool:
    """Return whether a log of a run is still to be written."""
    return await database.fetchrow("SELECT 1 FROM run_logs WHERE run_id = $1 LIMIT 1", run_id) is not None


def _line(row: asyncpg.Record) -> str:
    """Return a step as a line; what is JSON in the table stays as it is there."""
    numbers = f'"visit":{row["visit"]},"ordinal":{row["ordinal"]},"claim":{row["claim"]}'
    times = f'"started_at":"{row["started_at"].isoformat()}","ended_at":"{row["ended_at"].isoformat()}"'
    tokens, cost = ("null" if row[name] is None else row[name] for name in ("tokens", "cost_usd"))
    return (
        f'{{"type":"step",{numbers},{times},"tokens":{tokens},"cost_usd":{cost},'
        f'"entry":{row["entry"]},"output":{row["delta"]},"events":{row["events"]}}}\n'
    )
