"""The ledger's open jobs, and runs it knows nothing of, as the sweeps see them.

Claims and ends are in `claims` and `runs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store.database import Database, Transaction

_SWEEP_LOCK = 7_203_419_552_118_202


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A job without an outcome, its run's tenant, and its payload as it goes to Redis."""

    job_id: str
    queue: str
    tenant_id: str
    envelope: bytes


async def lock_sweep(transaction: Transaction) -> bool:
    """Take the sweep's lock until the transaction ends; False when another process has it."""
    rows = await transaction.fetch("SELECT pg_try_advisory_xact_lock($1) AS taken", _SWEEP_LOCK)
    return bool(rows[0]["taken"])


async def overdue(transaction: Transaction, seconds: float, *, after: str, limit: int) -> list[OpenJob]:
    """Return open jobs that were enqueued or claimed over `seconds` ago, by id, behind `after`.

    A job that somebody runs is among them; its lease in Redis tells them apart. Runs that wait for a human, or that
    another job has taken over, are not.
    """
    rows = await transaction.fetch(
        """
        SELECT l.job_id, l.queue, r.tenant_id, l.envelope
          FROM job_ledger l JOIN orchestration_runs r USING (run_id)
         WHERE l.outcome IS NULL AND l.envelope IS NOT NULL AND l.job_id > $2
           AND greatest(l.enqueued_at, l.claimed_at) < now() - make_interval(secs => $1)
           AND (r.status = 'queued' OR (r.status = 'running' AND r.job_id = l.job_id))
         ORDER BY l.job_id LIMIT $3
        """,
        seconds,
        after,
        limit,
    )
    return [OpenJob(row["job_id"], row["queue"], row["tenant_id"], row["envelope"]) for row in rows]


@dataclass(frozen=True, slots=True)
class UnknownRun:
    """A queued run without a ledger row; `job_id` is the job that its producer named, else the run's own id."""

    run_id: str
    job_id: str
    orchestration_id: str


async def unknown_queued(database: Database, seconds: float, *, after: str, limit: int) -> list[UnknownRun]:
    """Return runs queued for over `seconds` of which the ledger has no job, by id, behind `after`."""
    rows = await database.fetch(
        """
        SELECT run_id, coalesce(job_id, run_id) AS job_id, orchestration_id FROM orchestration_runs r
         WHERE status = 'queued' AND root_run_id IS NULL AND run_id > $2
           AND created_at < now() - make_interval(secs => $1)
           AND NOT EXISTS (SELECT 1 FROM job_ledger l WHERE l.job_id IN (r.job_id, r.run_id))
         ORDER BY run_id LIMIT $3
        """,
        seconds,
        after,
        limit,
    )
    return [UnknownRun(row["run_id"], row["job_id"], row["orchestration_id"]) for row in rows]
