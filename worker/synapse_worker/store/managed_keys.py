"""API keys that an operator keeps, from a Secret: their rows in the table of keys, brought to what is wanted.

Keys without a manager (the command line makes such) are somebody else's. Only hashes come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synapse_worker.store.database import Database


@dataclass(frozen=True, slots=True)
class ManagedKey:
    """A key; `hash` is its token's, `tenant_id` the only tenant that it may speak for, None = any."""

    hash: str
    name: str
    tenant_id: str | None


async def bring_to(
    database: Database, wanted: Sequence[ManagedKey], *, managed_by: str, exclusive: bool
) -> frozenset[str]:
    """Create, correct and delete the keys of one manager in one statement; what is as wanted is not written.

    Args:
        wanted: at most one for each hash.
        managed_by: UID of the SynapseScale.
        exclusive: whether other managers are known to be gone: their keys are then taken over, or deleted.

    Returns:
        The hashes of wanted keys that are somebody else's, and were left alone.
    """
    rows = await database.fetch(
        """
        WITH wanted AS (
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (hash, name, tenant_id)
        ), free AS (
            SELECT hash FROM api_keys WHERE managed_by = $4 OR ($5 AND managed_by IS NOT NULL)
        ), due AS (
            SELECT w.* FROM wanted w LEFT JOIN api_keys k USING (hash)
             WHERE k.hash IS NULL
                OR (k.hash IN (SELECT hash FROM free)
                    AND (k.managed_by, k.name, k.tenant_id) IS DISTINCT FROM ($4, w.name, w.tenant_id))
        ), written AS (
            INSERT INTO api_keys AS k (hash, name, tenant_id, managed_by, created_at)
            SELECT hash, name, tenant_id, $4, now() FROM due
            -- Somebody may have made the row meanwhile.
            ON CONFLICT (hash) DO UPDATE
               SET name = EXCLUDED.name, tenant_id = EXCLUDED.tenant_id, managed_by = EXCLUDED.managed_by
             WHERE k.hash IN (SELECT hash FROM free)
        ), deleted AS (
            DELETE FROM api_keys
             WHERE hash IN (SELECT hash FROM free) AND hash NOT IN (SELECT hash FROM wanted)
        )
        SELECT w.hash FROM wanted w JOIN api_keys k USING (hash) WHERE w.hash NOT IN (SELECT hash FROM free)
        """,
        [key.hash for key in wanted],
        [key.name for key in wanted],
        [key.tenant_id for key in wanted],
        managed_by,
        exclusive,
    )
    return frozenset(row["hash"] for row in rows)
