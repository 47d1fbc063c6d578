"""The few totals that an operator or a dashboard asks of Postgres."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store.database import Database
from synapse_worker.store.retention import NOT_NEEDED
from synapse_worker.store.schema_version import SCHEMA_VERSION, version_there
from synapse_worker.store.workers import SILENT_SECONDS


@dataclass(frozen=True, slots=True)
class Overview:
    """Totals of one installation; all zero while `schema_version` is None (nobody has migrated yet)."""

    dead_letters: int
    workers_online: int
    slots: int
    active_jobs: int
    open_jobs: int
    schema_version: int | None


_NOTHING = Overview(0, 0, 0, 0, 0, None)


async def overview(database: Database) -> Overview | None:
    """Read the totals: two small statements; None = the tables are of an older release, and cannot be asked."""
    version = await version_there(database)
    if version is None:
        return _NOTHING
    if version < SCHEMA_VERSION:
        return None
    row = await database.fetchrow(
        """
        SELECT (SELECT count(*) FROM dead_letter_queue WHERE resolved IS NOT TRUE) AS dead_letters,
               (SELECT count(*) FROM job_ledger WHERE outcome IS NULL) AS open_jobs,
               count(*) AS online, coalesce(sum(max_jobs), 0) AS slots, coalesce(sum(active_jobs), 0) AS active
          FROM workers
         WHERE role IS NULL AND status = 'online' AND last_heartbeat > now() - make_interval(secs => $1)
        """,
        float(SILENT_SECONDS),
    )
    if row is None:  # an aggregate always has a row; kept for the type
        return _NOTHING
    return Overview(
        dead_letters=row["dead_letters"],
        workers_online=row["online"],
        slots=row["slots"],
        active_jobs=row["active"],
        open_jobs=row["open_jobs"],
        schema_version=SCHEMA_VERSION,
    )


async def work_due(database: Database, run_days: int) -> bool:
    """Return whether there is work that no job stands for and only a worker does.

    That is a webhook to send, a waiting run whose time is over, or runs that should have been removed a day ago. Failed
    runs are not asked for: most are kept for their letters, and what is kept must not be counted each time.

    Args:
        run_days: how long ended runs are kept.
    """
    row = await database.fetchrow(_WORK_DUE, run_days + 1)
    return row is not None and bool(row["due"])


_WORK_DUE = f"""
SELECT EXISTS (SELECT 1 FROM webhook_outbox WHERE delivered_at IS NULL AND next_attempt_at <= now())
    OR EXISTS (SELECT 1 FROM orchestration_runs WHERE deadline < now() AND status IN ('queued', 'paused'))
    OR EXISTS (SELECT 1 FROM orchestration_runs p
                WHERE status = 'completed' AND ended_at < now() - make_interval(days => $1) AND {NOT_NEEDED})
    OR EXISTS (SELECT 1 FROM orchestration_runs p
                WHERE status = 'cancelled' AND ended_at < now() - make_interval(days => $1) AND {NOT_NEEDED}) AS due
"""  # noqa: S608 - no value in it
