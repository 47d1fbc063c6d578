"""Removing what nobody needs any more: statements that take away one bounded page each, the oldest first.

Every statement goes by an index, looks at so many rows at most, and never touches what is open: runs that have not
ended, jobs without an outcome, webhooks to be sent, letters that nobody has dealt with. Who calls them, and how often,
is `synapse_worker.retention`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from synapse_worker.store.database import Transaction

_LOCK = 7_203_419_552_118_203
_MOST_STEPS = 20_000
"""Steps whose rows one statement takes away, so that it ends well within a call's time."""

SETTLED_DAYS = 7
"""How long webhooks that were delivered or given up stay, unless runs are kept for less."""
SILENT_DAYS = 7
"""How long the row of a worker or producer stays that is silent."""
IDEMPOTENCY_HOURS = 24

ENDED = ("completed", "cancelled", "failed")
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Page:
    """What one statement did: rows looked at, rows removed, and the time behind which the next page begins."""

    seen: int
    removed: int
    after: datetime


async def lock(transaction: Transaction) -> bool:
    """Take the lock of those who remove, until the transaction ends; False when another process has it."""
    rows = await transaction.fetch("SELECT pg_try_advisory_xact_lock($1) AS taken", _LOCK)
    return bool(rows[0]["taken"])


NOT_NEEDED = """
         NOT EXISTS (SELECT 1 FROM dead_letter_queue d WHERE d.run_id = p.run_id AND d.resolved IS NOT TRUE)
     AND NOT EXISTS (SELECT 1 FROM webhook_outbox w WHERE w.run_id = p.run_id AND w.next_attempt_at IS NOT NULL)
     AND NOT EXISTS (SELECT 1 FROM job_ledger l WHERE l.job_id = p.job_id AND l.outcome IS NULL)
     AND NOT EXISTS (SELECT 1 FROM orchestration_runs r WHERE r.run_id = p.root_run_id)
"""
"""A condition on an ended run `p`: nothing needs it any more, once its log is written. What may need it is a letter,
whose retry goes on behind the run's last step; a webhook, signed with the run's secret; a job without an outcome; the
run that it is nested in, whose retry takes it up again."""

_LOGGED = "NOT EXISTS (SELECT 1 FROM run_logs g WHERE g.run_id = p.run_id)"
"""A condition on the same: no log is to be made of its steps. A run that lacks only that is work for a worker."""

# Kept rows are looked at too, page by page, so that a call costs the same however many are kept.
_RUNS = f"""
WITH old AS (
  SELECT run_id, job_id, root_run_id, ended_at, coalesce(folded_steps, 0) AS steps FROM orchestration_runs
   WHERE status = $1 AND ended_at < now() - make_interval(days => $2) AND ended_at > $3
   ORDER BY ended_at LIMIT $4 FOR UPDATE SKIP LOCKED),
page AS (
  SELECT run_id, job_id, root_run_id, ended_at FROM (
    SELECT *, sum(steps) OVER (ORDER BY ended_at, run_id) - steps AS before FROM old) counted
   WHERE before < $5),
free AS (
  SELECT p.run_id FROM page p WHERE {NOT_NEEDED} AND {_LOGGED}),
steps AS (DELETE FROM run_steps s USING free WHERE s.run_id = free.run_id),
turns AS (DELETE FROM run_turns t USING free WHERE t.run_id = free.run_id),
runs AS (DELETE FROM orchestration_runs r USING free WHERE r.run_id = free.run_id RETURNING r.run_id)
SELECT (SELECT count(*) FROM page) AS seen, (SELECT count(*) FROM runs) AS removed,
       (SELECT max(ended_at) FROM page) AS after
"""  # noqa: S608 - no value in it


async def remove_runs(transaction: Transaction, status: str, *, days: int, after: datetime, limit: int) -> Page:
    """Remove runs of one status that ended over `days` ago, with their steps and turns; a page behind `after`."""
    (row,) = await transaction.fetch(_RUNS, status, days, after, limit, _MOST_STEPS)
    return Page(row["seen"], row["removed"], row["after"] or after)


@dataclass(frozen=True, slots=True)
class OldJob:
    """A job that ended long ago; `needed` = its run is kept, or a webhook is to be signed with its payload's secret."""

    job_id: str
    ended_at: datetime
    needed: bool


async def old_jobs(transaction: Transaction, *, days: int, after: datetime, limit: int) -> list[OldJob]:
    """Return a page of jobs with an outcome that is over `days` old, behind `after`, the oldest first."""
    rows = await transaction.fetch(
        """
        SELECT l.job_id, l.ended_at,
               EXISTS (SELECT 1 FROM orchestration_runs r WHERE r.run_id = l.run_id)
               OR EXISTS (SELECT 1 FROM webhook_outbox w
                           WHERE w.run_id = l.job_id AND w.next_attempt_at IS NOT NULL) AS needed
          FROM job_ledger l
         WHERE l.outcome IS NOT NULL AND l.ended_at < now() - make_interval(days => $1) AND l.ended_at > $2
         ORDER BY l.ended_at LIMIT $3
        """,
        days,
        after,
        limit,
    )
    return [OldJob(row["job_id"], row["ended_at"], row["needed"]) for row in rows]


async def remove_jobs(transaction: Transaction, job_ids: Sequence[str]) -> None:
    """Remove the ledger's rows of jobs that have an outcome."""
    await transaction.fetch(
        "DELETE FROM job_ledger WHERE job_id = ANY($1::text[]) AND outcome IS NOT NULL", list(job_ids)
    )


async def remove_webhooks(transaction: Transaction, *, days: int, limit: int) -> int:
    """Remove a page of webhooks that were settled long ago; returns how many."""
    return await _remove(
        transaction,
        """
        DELETE FROM webhook_outbox WHERE id = ANY(ARRAY(
          SELECT id FROM webhook_outbox
           WHERE next_attempt_at IS NULL AND coalesce(delivered_at, given_up_at) < now() - make_interval(days => $1)
           ORDER BY coalesce(delivered_at, given_up_at) LIMIT $2)) RETURNING 1
        """,
        min(days, SETTLED_DAYS),
        limit,
    )


async def remove_letters(transaction: Transaction, *, days: int, limit: int) -> int:
    """Remove a page of dead letters that somebody has dealt with; returns how many."""
    return await _remove(
        transaction,
        """
        DELETE FROM dead_letter_queue WHERE id = ANY(ARRAY(
          SELECT id FROM dead_letter_queue
           WHERE resolved = true AND last_failed_at < now() - make_interval(days => $1)
           ORDER BY last_failed_at LIMIT $2)) RETURNING 1
        """,
        days,
        limit,
    )


async def remove_idempotency_keys(transaction: Transaction, *, limit: int) -> int:
    """Remove a page of Idempotency-Keys over a day old; returns how many."""
    return await _remove(
        transaction,
        """
        DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
          SELECT tenant_id, key FROM idempotency_keys WHERE created_at < now() - make_interval(hours => $1)
           ORDER BY created_at LIMIT $2) RETURNING 1
        """,
        IDEMPOTENCY_HOURS,
        limit,
    )


async def remove_workers(transaction: Transaction, *, limit: int) -> int:
    """Remove rows of workers and producers that were last heard of long ago; returns how many."""
    return await _remove(
        transaction,
        """
        DELETE FROM workers WHERE worker_id = ANY(ARRAY(
          SELECT worker_id FROM workers WHERE last_heartbeat < now() - make_interval(days => $1) LIMIT $2)) RETURNING 1
        """,
        SILENT_DAYS,
        limit,
    )


async def _remove(transaction: Transaction, statement: str, *arguments: object) -> int:
    return len(await transaction.fetch(statement, *arguments))
