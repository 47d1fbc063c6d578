"""What a tenant may use, as the workers go by it; who writes the rows (upstream, the operator) is not ours."""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store.database import Database

_UPSTREAM_CONCURRENT_RUNS = 100
"""Upstream's default, where a row leaves it open."""


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
