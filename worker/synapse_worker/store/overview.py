"""The few totals that an operator or a dashboard asks of Postgres."""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg

from synapse_worker.store.database import Database
from synapse_worker.store.retention import NOT_NEEDED
from synapse_worker.store.schema_version import SCHEMA_VERSION, version_there
from synapse_worker.store.topology import KNOWN_TENANTS
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
    row = await database.fetchrow(f"SELECT {_TOTALS} {_ONLINE}", float(SILENT_SECONDS))
    return _NOTHING if row is None else _overview(row)  # an aggregate always has a row; kept for the type


async def work_due(database: Database, run_days: int) -> bool:
    """Return whether there is work that no job stands for and only a worker does.

    That is a webhook to send, a waiting run whose time is over, or runs that should have been removed a day ago. Failed
    runs are not asked for: most are kept for their letters, and what is kept must not be counted each time.

    Args:
        run_days: how long ended runs are kept.
    """
    row = await database.fetchrow(f"SELECT {_work_due('$1')}", run_days + 1)
    return row is not None and bool(row["due"])


@dataclass(frozen=True, slots=True)
class Pulse:
    """What `overview` and `work_due` say, the epoch of the topology (0 = nobody has written it), and who is known."""

    totals: Overview
    work_due: bool
    epoch: int
    tenants: frozenset[str]


async def pulse(database: Database, run_days: int) -> Pulse | None:
    """Read the same in one statement, for whoever asks every few seconds whether anything has changed.

    Args:
        run_days: how long ended runs are kept.

    Returns:
        None where the tables are of an older release.

    Raises:
        StoreRefused: there are no tables, or older ones than this statement names.
    """
    row = await database.fetchrow(
        f"SELECT {_TOTALS}, {_work_due('$2')}, (SELECT coalesce(max(epoch), 0) FROM scale_topology) AS epoch,"  # noqa: S608
        f" (SELECT max(version) FROM synapse_scale_schema) AS version,"
        f" ARRAY(SELECT tenant_id FROM ({KNOWN_TENANTS}) AS known) AS tenants {_ONLINE}",
        float(SILENT_SECONDS),
        run_days + 1,
    )
    if row is None or (row["version"] or 0) < SCHEMA_VERSION:
        return None
    return Pulse(_overview(row), bool(row["due"]), row["epoch"], frozenset(row["tenants"]))


def _overview(row: asyncpg.Record) -> Overview:
    return Overview(
        dead_letters=row["dead_letters"],
        workers_online=row["online"],
        slots=row["slots"],
        active_jobs=row["active"],
        open_jobs=row["open_jobs"],
        schema_version=SCHEMA_VERSION,
    )


_TOTALS = """
       (SELECT count(*) FROM dead_letter_queue WHERE resolved IS NOT TRUE) AS dead_letters,
       (SELECT count(*) FROM job_ledger WHERE outcome IS NULL) AS open_jobs,
       count(*) AS online, coalesce(sum(max_jobs), 0) AS slots, coalesce(sum(active_jobs), 0) AS active"""

_ONLINE = """
  FROM workers
 WHERE role IS NULL AND status = 'online' AND last_heartbeat > now() - make_interval(secs => $1)"""


def _work_due(days: str) -> str:
    """`days` is the placeholder of one day more than ended runs are kept."""
    return f"""
       EXISTS (SELECT 1 FROM webhook_outbox WHERE delivered_at IS NULL AND next_attempt_at <= now())
    OR EXISTS (SELECT 1 FROM orchestration_runs WHERE deadline < now() AND status IN ('queued', 'paused'))
    OR EXISTS (SELECT 1 FROM orchestration_runs p
                WHERE status = 'completed' AND ended_at < now() - make_interval(days => {days}) AND {NOT_NEEDED})
    OR EXISTS (SELECT 1 FROM orchestration_runs p
                WHERE status = 'cancelled' AND ended_at < now() - make_interval(days => {days}) AND {NOT_NEEDED})
    AS due"""  # noqa: S608 - no value in it
