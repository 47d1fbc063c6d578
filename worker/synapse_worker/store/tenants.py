"""The table of tenants: what a tenant may use, as the workers go by it, and the rows that an operator keeps there.

Rows without a manager (a settings page makes such) are only read. Which rows are wanted, and what becomes of a
tenant whose row belongs to somebody else, is the operator's business.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from synapse_worker.store.database import Database

_UPSTREAM_CONCURRENT_RUNS = 100
_UPSTREAM_QUEUED_RUNS = 1000
"""Upstream's defaults, where a row leaves them open."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """`concurrent_runs`: most runs at once; `priority`: the weight of its own queue is one more than that."""

    concurrent_runs: int
    priority: int = 0


async def read_all(database: Database) -> dict[str, Tenant]:
    """Return every tenant that has a row, by its id; others are not limited and have no priority."""
    rows = await database.fetch("SELECT tenant_id, max_concurrent_runs AS most, priority FROM tenants")
    return {
        row["tenant_id"]: Tenant(
            _UPSTREAM_CONCURRENT_RUNS if row["most"] is None else max(0, row["most"]), max(0, row["priority"] or 0)
        )
        for row in rows
    }


DELETING = "the tenant is being deleted: it finishes what it has and takes nothing new"
"""Why a new job of such a tenant is refused, wherever it is asked for."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant with a row may ask of the API.

    Attributes:
        queued_runs: most jobs that wait.
        rate: requests per second; None = as everybody.
        deleting: it only finishes what it has.
    """

    queued_runs: int
    rate: int | None
    deleting: bool


async def quota_of(database: Database, tenant_id: str) -> Quota | None:
    """Return what a tenant may ask; None = it has no row, and no limits of its own."""
    row = await database.fetchrow(
        "SELECT max_queued_runs AS most, rate_limit_rps AS rate, deleting FROM tenants WHERE tenant_id = $1", tenant_id
    )
    if row is None:
        return None
    return Quota(_UPSTREAM_QUEUED_RUNS if row["most"] is None else max(0, row["most"]), row["rate"], row["deleting"])


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A row as listings show it; `managed` = a SynapseTenant stands behind it."""

    tenant_id: str
    name: str | None
    max_concurrent_runs: int | None
    max_queued_runs: int | None
    rate_limit_rps: int | None
    priority: int | None
    dedicated: bool
    deleting: bool
    managed: bool


async def list_rows(database: Database, *, only: str | None, limit: int) -> list[TenantRow]:
    """Return the rows by id, or that of one tenant."""
    rows = await database.fetch(
        """
        SELECT tenant_id, name, max_concurrent_runs, max_queued_runs, rate_limit_rps, priority, dedicated, deleting,
               managed_by IS NOT NULL AS managed
          FROM tenants WHERE $1::text IS NULL OR tenant_id = $1 ORDER BY tenant_id LIMIT $2
        """,
        only,
        limit,
    )
    return [TenantRow(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class ManagedRow:
    """A row as its manager wants it.

    Attributes:
        managed_by: UID of the resource that it stands for.
        dedicated: whether workers of its own serve the tenant's queue, which the pool then leaves alone; None = as the
            row says already.
        deleting: whether new runs are refused, while what is queued is still run.
        rate_limit_rps: requests a second; None = as everybody.
    """

    tenant_id: str
    managed_by: str
    name: str | None
    max_concurrent_runs: int
    max_queued_runs: int
    priority: int
    dedicated: bool | None = None
    deleting: bool = False
    rate_limit_rps: int | None = None


@dataclass(frozen=True, slots=True)
class RowChanges:
    """Ids of the tenants whose rows were written."""

    created: frozenset[str]
    updated: frozenset[str]
    deleted: frozenset[str]


async def bring_to(
    database: Database, wanted: Sequence[ManagedRow], *, living: Collection[str], exclusive: bool
) -> RowChanges:
    """Create, correct and delete managed rows in one statement; what is as wanted is not written.

    A row that nobody manages, or that another living manager does, is left alone, also when its id is wanted.

    Args:
        wanted: at most one for each tenant id.
        living: UIDs of all resources that may manage a row here, wanted or not.
        exclusive: whether a UID that is not among `living` is known to be gone. If so, its rows are deleted, or given
            to who wants their ids now; if not, they are left alone.
    """
    rows = await database.fetch(
        """
        WITH asked AS (
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::int[], $6::int[],
                                 $9::boolean[], $10::boolean[], $11::int[])
                AS asked (tenant_id, managed_by, name, max_concurrent_runs, max_queued_runs, priority,
                          dedicated, deleting, rate_limit_rps)
        ), gone AS (
            SELECT tenant_id FROM tenants t
             WHERE $8 AND managed_by IS NOT NULL
               AND NOT EXISTS (SELECT 1 FROM unnest($7::text[]) AS living (uid) WHERE uid = t.managed_by)
        ), wanted AS (
            SELECT a.tenant_id, a.managed_by, a.name, a.max_concurrent_runs, a.max_queued_runs, a.priority,
                   coalesce(a.dedicated, t.dedicated, false) AS dedicated, a.deleting, a.rate_limit_rps
              FROM asked a LEFT JOIN tenants t USING (tenant_id)
        ), due AS (
            SELECT w.* FROM wanted w LEFT JOIN tenants t USING (tenant_id)
             WHERE t.tenant_id IS NULL
                OR ((t.managed_by = w.managed_by OR t.tenant_id IN (SELECT tenant_id FROM gone))
                    AND (t.managed_by, t.name, t.max_concurrent_runs, t.max_queued_runs, t.priority,
                         t.dedicated, t.deleting, t.rate_limit_rps)
                        IS DISTINCT FROM
                        (w.managed_by, w.name, w.max_concurrent_runs, w.max_queued_runs, w.priority,
                         w.dedicated, w.deleting, w.rate_limit_rps))
        ), written AS (
            INSERT INTO tenants AS t
                   (tenant_id, managed_by, name, max_concurrent_runs, max_queued_runs, priority, dedicated, deleting,
                    rate_limit_rps, created_at)
            SELECT tenant_id, managed_by, name, max_concurrent_runs, max_queued_runs, priority, dedicated, deleting,
                   rate_limit_rps, now()
              FROM due
            -- Somebody may have made the row meanwhile.
            ON CONFLICT (tenant_id) DO UPDATE
               SET managed_by = EXCLUDED.managed_by, name = EXCLUDED.name,
                   max_concurrent_runs = EXCLUDED.max_concurrent_runs, max_queued_runs = EXCLUDED.max_queued_runs,
                   priority = EXCLUDED.priority, dedicated = EXCLUDED.dedicated, deleting = EXCLUDED.deleting,
                   rate_limit_rps = EXCLUDED.rate_limit_rps
             WHERE t.managed_by = EXCLUDED.managed_by OR t.tenant_id IN (SELECT tenant_id FROM gone)
            RETURNING t.tenant_id
        ), deleted AS (
            DELETE FROM tenants
             WHERE tenant_id IN (SELECT tenant_id FROM gone) AND tenant_id NOT IN (SELECT tenant_id FROM wanted)
            RETURNING tenant_id
        )
        SELECT tenant_id, CASE WHEN before.tenant_id IS NULL THEN 'created' ELSE 'updated' END AS change
          FROM written LEFT JOIN tenants before USING (tenant_id)
         UNION ALL SELECT tenant_id, 'deleted' FROM deleted
        """,
        [row.tenant_id for row in wanted],
        [row.managed_by for row in wanted],
        [row.name for row in wanted],
        [row.max_concurrent_runs for row in wanted],
        [row.max_queued_runs for row in wanted],
        [row.priority for row in wanted],
        list(living),
        exclusive,
        [row.dedicated for row in wanted],
        [row.deleting for row in wanted],
        [row.rate_limit_rps for row in wanted],
    )
    created, updated, deleted = (
        frozenset(row["tenant_id"] for row in rows if row["change"] == change)
        for change in ("created", "updated", "deleted")
    )
    return RowChanges(created, updated, deleted)


@dataclass(frozen=True, slots=True)
class Standing:
    """How one tenant stands.

    Attributes:
        has_row: whether the table has it.
        managed_by: UID of the resource that its row stands for; None = nobody's, or there is no row.
        queued, active: its runs that wait for a worker, and that one runs.
        dedicated, deleting: as in its row; False without one.
    """

    has_row: bool
    managed_by: str | None
    queued: int
    active: int
    dedicated: bool = False
    deleting: bool = False


async def standing(database: Database, tenant_ids: Collection[str]) -> dict[str, Standing]:
    """Return how the given tenants stand, each of them, in one statement."""
    rows = await database.fetch(
        """
        SELECT asked.tenant_id, t.tenant_id IS NOT NULL AS has_row, t.managed_by,
               coalesce(t.dedicated, false) AS dedicated, coalesce(t.deleting, false) AS deleting,
               coalesce(runs.queued, 0) AS queued, coalesce(runs.active, 0) AS active
          FROM unnest($1::text[]) AS asked (tenant_id)
          LEFT JOIN tenants t ON t.tenant_id = asked.tenant_id
          LEFT JOIN (SELECT tenant_id, count(*) FILTER (WHERE status = 'queued') AS queued,
                            count(*) FILTER (WHERE status = 'running') AS active
                       FROM orchestration_runs
                      WHERE tenant_id = ANY($1::text[]) AND status IN ('queued', 'running')
                      GROUP BY tenant_id) AS runs ON runs.tenant_id = asked.tenant_id
        """,
        list(tenant_ids),
    )
    return {
        row["tenant_id"]: Standing(
            row["has_row"], row["managed_by"], row["queued"], row["active"], row["dedicated"], row["deleting"]
        )
        for row in rows
    }
