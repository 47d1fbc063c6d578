"""The topology's row, which producers go by it already, and whose queues there may be.

The operator of the SynapseScale that owns the installation writes the row; whoever enqueues reads it, and its
statement writes nothing when the row has changed meanwhile (`EPOCH_NOW`). What the topology means for a job is in
`routing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import asyncpg

from synapse_worker.contract import MAX_SHARDS
from synapse_worker.errors import StoreRefused
from synapse_worker.routing import Route, Topology
from synapse_worker.store.database import Database, from_jsonb, to_jsonb
from synapse_worker.store.workers import SILENT_SECONDS

OWNER_SECONDS = 600
"""A row whose owner has been silent for so long may be taken over, as its mark in Redis may."""

_RENEW_SECONDS = 60

_COLUMNS = (
    "epoch, shards, isolation, enabled, routes::text, owner_uid,"
    f" coalesce(owner_seen_at < now() - interval '{OWNER_SECONDS} s', true) AS owner_gone"
)

EPOCH_NOW = "(SELECT coalesce(max(epoch), 0) FROM scale_topology)"
"""SQL: the epoch of the row, 0 without one."""


@dataclass(frozen=True, slots=True)
class TopologyRow:
    """The row.

    Attributes:
        epoch: one more with each change.
        enabled: scale mode, for the API.
        owner_uid: UID of the SynapseScale that writes it; "" = nobody's any more.
        owner_gone: whether that one has not been there for `OWNER_SECONDS`.
    """

    epoch: int
    topology: Topology
    enabled: bool
    owner_uid: str
    owner_gone: bool = False


class Role(StrEnum):
    """What a process with a row in `workers` is when it is no worker; a worker's column is NULL."""

    PRODUCER = "producer"
    API = "api"


async def read(database: Database) -> TopologyRow | None:
    """Return the row; None before anybody has written it.

    Raises:
        StoreRefused: it holds what cannot be a topology; somebody else than us has written it.
    """
    row = await database.fetchrow(f"SELECT {_COLUMNS} FROM scale_topology WHERE id = 1")  # noqa: S608
    return None if row is None else _row(row)


async def write(
    database: Database, was: TopologyRow | None, topology: Topology, *, enabled: bool, owner_uid: str
) -> TopologyRow | None:
    """Write the row with the next epoch, if it is still what its writer has seen.

    Args:
        was: the row as read before; None = there was none. One of another owner may be taken over: whether that
            owner is gone is the caller's to know.

    Returns:
        The new row; None when somebody else has written meanwhile: nothing was changed.
    """
    values = (
        topology.shards,
        topology.isolation,
        enabled,
        to_jsonb([_route_json(route) for route in topology.routes]),
        owner_uid,
    )
    if was is None:
        rows = await database.fetch(
            "INSERT INTO scale_topology"  # noqa: S608
            " (id, epoch, shards, isolation, enabled, routes, owner_uid, owner_seen_at)"
            f" VALUES (1, 1, $1, $2, $3, $4::jsonb, $5, now()) ON CONFLICT (id) DO NOTHING RETURNING {_COLUMNS}",
            *values,
        )
    else:
        rows = await database.fetch(
            "UPDATE scale_topology SET epoch = epoch + 1, shards = $1, isolation = $2, enabled = $3,"  # noqa: S608
            " routes = $4::jsonb, owner_uid = $5, owner_seen_at = now()"
            f" WHERE id = 1 AND epoch = $6 AND coalesce(owner_uid, '') = $7 RETURNING {_COLUMNS}",
            *values,
            was.epoch,
            was.owner_uid,
        )
    return _row(rows[0]) if rows else None


async def renew(database: Database, owner_uid: str) -> None:
    """Say that the row's owner is there; one that said so within the last minute writes nothing."""
    await database.execute(
        "UPDATE scale_topology SET owner_seen_at = now() WHERE id = 1 AND owner_uid = $1"
        " AND coalesce(owner_seen_at < now() - make_interval(secs => $2), true)",
        owner_uid,
        float(_RENEW_SECONDS),
    )


async def disown(database: Database, owner_uid: str) -> None:
    """Leave the row to whoever comes next; another's stays. What producers go by is not changed."""
    await database.execute("UPDATE scale_topology SET owner_uid = NULL WHERE id = 1 AND owner_uid = $1", owner_uid)


async def report(database: Database, producer_id: str, *, hostname: str, role: Role, epoch: int) -> None:
    """Say by which epoch a producer routes: no new job of its will go by an older one from now on."""
    await database.execute(
        """
        INSERT INTO workers (worker_id, hostname, role, topology_epoch, status, active_jobs, max_jobs, last_heartbeat,
                             registered_at)
        VALUES ($1, $2, $3, $4, 'online', 0, 0, now(), now())
        ON CONFLICT (worker_id) DO UPDATE SET role = EXCLUDED.role, topology_epoch = EXCLUDED.topology_epoch,
            status = EXCLUDED.status, last_heartbeat = now()
        """,
        producer_id,
        hostname,
        role.value,
        epoch,
    )


async def leave(database: Database, producer_id: str) -> None:
    """Forget a producer that enqueues nothing more."""
    await database.execute("DELETE FROM workers WHERE worker_id = $1 AND role IS NOT NULL", producer_id)


async def producers_behind(database: Database, epoch: int) -> list[str]:
    """Return the ids of live producers that may still enqueue by an epoch before this one; none = it is safe to drain.

    One that has been silent for `SILENT_SECONDS` counts as gone.
    """
    rows = await database.fetch(
        "SELECT worker_id FROM workers WHERE role IS NOT NULL AND status <> 'offline'"
        " AND last_heartbeat > now() - make_interval(secs => $1) AND coalesce(topology_epoch, 0) < $2"
        " ORDER BY worker_id",
        float(SILENT_SECONDS),
        epoch,
    )
    return [row["worker_id"] for row in rows]


KNOWN_TENANTS = """
        WITH RECURSIVE seen AS (
          (SELECT tenant_id FROM orchestration_runs ORDER BY tenant_id LIMIT 1)
          UNION ALL
          SELECT (SELECT r.tenant_id FROM orchestration_runs r WHERE r.tenant_id > seen.tenant_id
                   ORDER BY r.tenant_id LIMIT 1)
            FROM seen WHERE seen.tenant_id IS NOT NULL)
        SELECT tenant_id, dedicated FROM tenants
        UNION ALL
        SELECT tenant_id, false FROM seen
         WHERE EXISTS (SELECT 1 FROM orchestration_runs r
                        WHERE r.tenant_id = seen.tenant_id AND r.status IN ('queued', 'running'))
           AND NOT EXISTS (SELECT 1 FROM tenants t WHERE t.tenant_id = seen.tenant_id)"""
"""One step of the index for each tenant that ever had a run, however many runs there are."""


async def known_tenants(database: Database) -> Mapping[str, bool]:
    """Return every tenant that may have a queue: it has a row in `tenants`, or an open run.

    Returns:
        The id, and whether workers of its own serve its queue.
    """
    rows = await database.fetch(KNOWN_TENANTS)
    return {row["tenant_id"]: row["dedicated"] for row in rows}


async def dedicated_tenants(database: Database) -> frozenset[str]:
    """Return the tenants whose queues are served by workers of their own."""
    rows = await database.fetch("SELECT tenant_id FROM tenants WHERE dedicated")
    return frozenset(row["tenant_id"] for row in rows)


def _row(row: asyncpg.Record) -> TopologyRow:
    routes: object = from_jsonb(row["routes"], [])
    if not 1 <= row["shards"] <= MAX_SHARDS or not isinstance(routes, list):
        raise StoreRefused(
            f"the row of scale_topology names {row['shards']} shards, or routes that are no list; accepted: 1 to"
            f" {MAX_SHARDS} shards and a list"
        )
    topology = Topology(row["shards"], row["isolation"], tuple(_route(route) for route in routes))
    return TopologyRow(row["epoch"], topology, row["enabled"], row["owner_uid"] or "", row["owner_gone"])


def _route(value: object) -> Route:
    match value:
        case {"shard": int(shard), "tenants": list(tenants), "minPriority": int() | None as least}:
            if 0 <= shard < MAX_SHARDS and all(isinstance(tenant, str) for tenant in tenants):
                return Route(shard, tuple(tenants), least)
    raise StoreRefused(
        "a route of scale_topology cannot be read; accepted: an object of shard (0 to 63), tenants (list of ids) and"
        " minPriority (number or null)"
    )


def _route_json(route: Route) -> dict[str, object]:
    return {"shard": route.shard, "tenants": list(route.tenants), "minPriority": route.min_priority}
