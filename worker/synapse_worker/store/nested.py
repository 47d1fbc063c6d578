"""Rows of runs that are nested in another one: they live in its job and under its claim, and have no ledger row.

`root_run_id` names the run that has the job, whatever the depth. Their checkpoints, pauses and ends are those of every
run; what is different is how they are taken, and that they end with their root.
"""

from __future__ import annotations

from dataclasses import dataclass

from synapse_worker.store import run_logs
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.database import Database, from_jsonb
from synapse_worker.store.runs import RunStatus


@dataclass(frozen=True, slots=True)
class Adopted:
    """A nested run as far as its row says, and whether it is completed already."""

    run: OwnedRun
    completed: bool


async def adopt(database: Database, root: OwnedRun, *, run_id: str, orchestration_id: str) -> Adopted | None:
    """Create a nested run, or take up the one that an earlier owner of the root has left.

    Returns:
        None when another claim owns the root. `claims.with_steps` adds the finished steps.
    """
    row = await database.fetchrow(
        """
        WITH root AS (
          SELECT run_id, claim, tenant_id, session_id, worker_id FROM orchestration_runs
           WHERE run_id = $1 AND claim = $2 AND status = 'running' FOR SHARE)
        INSERT INTO orchestration_runs AS r (run_id, root_run_id, orchestration_id, session_id, tenant_id, status,
            shared_state, step_history, waiting_for_human, total_tokens_used, total_cost_usd, created_at, started_at,
            claim, worker_id)
        SELECT $3, run_id, $4, session_id, tenant_id, 'running', '{}', '[]', false, 0, 0, now(), now(), claim, worker_id
          FROM root
        ON CONFLICT (run_id) DO UPDATE
           SET claim = EXCLUDED.claim, worker_id = EXCLUDED.worker_id,
               status = CASE WHEN r.status = 'completed' THEN r.status ELSE 'running' END,
               ended_at = CASE WHEN r.status = 'completed' THEN r.ended_at END, error = NULL,
               deadline = CASE WHEN r.status IN ('failed', 'cancelled') THEN NULL ELSE r.deadline END,
               waiting_for_human = false, human_prompt = NULL, human_fields = NULL
         WHERE r.root_run_id = EXCLUDED.root_run_id
        RETURNING r.status, r.current_step_id, r.cursor::text, r.definition_snapshot::text AS definition,
                  r.shared_state::text, r.step_history::text, coalesce(r.folded_steps, 0) AS folded_steps
        """,
        root.run_id,
        root.claim,
        run_id,
        orchestration_id,
    )
    if row is None:
        return None
    run = OwnedRun(
        run_id=run_id,
        job_id="",
        claim=root.claim,
        orchestration_id=orchestration_id,
        tenant_id=root.tenant_id,
        session_id=root.session_id,
        current_step_id=row["current_step_id"],
        cursor=from_jsonb(row["cursor"], None),
        definition=from_jsonb(row["definition"], None),
        state=from_jsonb(row["shared_state"], {}),
        history=from_jsonb(row["step_history"], []),
        steps_done=0,
        folded_steps=row["folded_steps"],
        failures=0,
        active_seconds=0.0,
        suspect=False,
        crashes=0,
    )
    return Adopted(run, row["status"] == RunStatus.COMPLETED)


async def end_with(database: Database, root: OwnedRun, status: RunStatus) -> None:
    """End what is still open inside a run that is about to end so itself, while its claim owns it.

    That is also what earlier owners began and this one had no need of: it stands under their claims.
    """
    await database.execute(
        f"""
        WITH root AS (
          SELECT run_id FROM orchestration_runs
           WHERE run_id = $1 AND claim = $2 AND status = 'running' FOR SHARE),
        ended AS (
          UPDATE orchestration_runs
             SET status = $3, error = 'the run that it is nested in has ended', ended_at = now(),
                 waiting_for_human = false
           WHERE root_run_id = (SELECT run_id FROM root) AND status IN ('running', 'paused')
          RETURNING run_id, tenant_id, claim, status, error, ended_at),
        {run_logs.due("ended")}
        SELECT 1
        """,  # noqa: S608 - no value in it
        root.run_id,
        root.claim,
        status.value,
    )
