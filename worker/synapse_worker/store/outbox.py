"""The webhook outbox: one row for each end of a run that wants to be told of it, written with that end.

The row and the end are one statement, so neither exists without the other, and a run without a webhook_url costs
nothing. Sending is not built yet: rows wait. What a delivery needs besides (state, secret) is in the run's own row.
"""

from __future__ import annotations

from synapse_worker.store.run_logs import due


def outbox(source: str) -> str:
    """Return the CTEs `outbox` and `logs` for a statement that ends runs.

    Args:
        source: the CTE before it, which returns run_id, orchestration_id, tenant_id, webhook_url, claim, status, error
            and ended_at of the runs it has ended.
    """
    return f"""
outbox AS (
  INSERT INTO webhook_outbox (id, run_id, orchestration_id, tenant_id, status, error, url, attempts, created_at,
      next_attempt_at)
  SELECT gen_random_uuid(), run_id, orchestration_id, tenant_id, status, error, webhook_url, 0, ended_at, ended_at
    FROM {source} WHERE webhook_url <> ''),
{due(source)}"""  # noqa: S608 - the name of a CTE of ours


_ENDED = ("run_id", "orchestration_id", "tenant_id", "webhook_url", "claim", "status", "error", "ended_at")


def ended(table: str) -> str:
    """Return what the CTE that ends rows of `table`, an alias of orchestration_runs, has to return."""
    return ", ".join(f"{table}.{column}" for column in _ENDED)


ENDED = ", ".join(_ENDED)
"""The same where the statement names one table only."""
