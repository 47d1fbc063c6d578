"""The few totals that an operator or a dashboard asks of Postgres."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store.database import Database
from synapse_worker.store.schema_version import SCHEMA_VERSION, is_migrated
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


async def overview(database: Database) -> Overview:
    """Read the totals: two small statements."""
    if not await is_migrated(database):
        return Overview(0, 0, 0, 0, 0, None)
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
        return Overview(0, 0, 0, 0, 0, None)
    return Overview(
        dead_letters=row["dead_letters"],
        workers_online=row["online"],
        slots=row["slots"],
        active_jobs=row["active"],
        open_jobs=row["open_jobs"],
        schema_version=SCHEMA_VERSION,
    )
