"""The registry of workers: a row at start, a heartbeat, `offline` at exit.

Producers have rows there too (`topology.report`); they have a role, workers have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from synapse_worker.store.database import Database, from_jsonb, to_jsonb

SILENT_SECONDS = 90
"""A worker that has not beaten for this long counts as gone, whatever its row says."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """What a worker says of itself; `address` is the base URL of its health port."""

    worker_id: str
    hostname: str
    address: str
    status: str
    queues: tuple[str, ...]
    version: str
    active_jobs: int
    max_jobs: int


async def beat(database: Database, worker: WorkerRow) -> None:
    """Write the worker's row, now."""
    await database.execute(
        """
        INSERT INTO workers (worker_id, hostname, address, status, capabilities, active_jobs, max_jobs,
                             last_heartbeat, registered_at, mcp_disabled)
        VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7, now(), now(), '[]')
        ON CONFLICT (worker_id) DO UPDATE SET hostname = EXCLUDED.hostname, address = EXCLUDED.address,
            status = EXCLUDED.status, capabilities = EXCLUDED.capabilities, active_jobs = EXCLUDED.active_jobs,
            max_jobs = EXCLUDED.max_jobs, last_heartbeat = now()
        """,
        worker.worker_id,
        worker.hostname,
        worker.address,
        worker.status,
        to_jsonb({"queues": list(worker.queues), "version": worker.version}),
        worker.active_jobs,
        worker.max_jobs,
    )


async def mark_silent(database: Database) -> int:
    """Mark workers offline that have not beaten for `SILENT_SECONDS`; returns how many."""
    return await database.execute(
        "UPDATE workers SET status = 'offline'"
        " WHERE status <> 'offline' AND last_heartbeat < now() - make_interval(secs => $1)",
        float(SILENT_SECONDS),
    )


async def count_online(database: Database) -> int:
    """Return how many workers serve this database now."""
    row = await database.fetchrow(
        "SELECT count(*) AS online FROM workers"
        " WHERE role IS NULL AND status = 'online' AND last_heartbeat > now() - make_interval(secs => $1)",
        float(SILENT_SECONDS),
    )
    return 0 if row is None else int(row["online"])


@dataclass(frozen=True, slots=True)
class SeenWorker:
    """A worker as listings show it; `status` is offline for one that has been silent for `SILENT_SECONDS`."""

    worker_id: str
    hostname: str | None
    address: str | None
    status: str
    queues: list[str]
    active_jobs: int
    max_jobs: int
    last_heartbeat: datetime | None
    registered_at: datetime | None


async def list_all(database: Database, *, limit: int) -> list[SeenWorker]:
    """Return workers, those that were heard last first; producers are none."""
    rows = await database.fetch(
        """
        SELECT worker_id, hostname, address, capabilities->>'queues' AS queues, coalesce(active_jobs, 0) AS active_jobs,
               coalesce(max_jobs, 0) AS max_jobs, last_heartbeat, registered_at,
               CASE WHEN last_heartbeat > now() - make_interval(secs => $1) THEN coalesce(status, 'online')
                    ELSE 'offline' END AS status
          FROM workers WHERE role IS NULL ORDER BY last_heartbeat DESC NULLS LAST, worker_id LIMIT $2
        """,
        float(SILENT_SECONDS),
        limit,
    )
    return [SeenWorker(**{**row, "queues": from_jsonb(row["queues"], [])}) for row in rows]
