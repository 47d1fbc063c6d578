"""Runs that wait for a human: how they come to wait, who has waited for too long, and how an answer queues them.

Taking a run up again is `claims`', as for every other job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synapse_worker.store import run_logs
from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.database import Database, from_jsonb, to_jsonb, to_text
from synapse_worker.store.runs import Folded


@dataclass(frozen=True, slots=True)
class Question:
    """What a run waits for.

    Attributes:
        fields: to fill in, each {name, type, label}; none where a text is wanted.
        context: what the answer may be about.
        nested_run_id: the run inside this one that asks, if it is not this one itself; so with its orchestration.
    """

    step_id: str
    prompt: str
    fields: Sequence[Mapping[str, object]]
    context: str | None = None
    nested_run_id: str | None = None
    nested_orchestration_id: str | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """All that is written when a run begins to wait.

    Attributes:
        cursor: as it is stored, with what is asked.
        definition: the snapshot to keep, if the run has none yet.
        timeout_seconds: how long an answer may take; None = no limit.
    """

    question: Question
    cursor: State
    engine_version: int
    definition: State
    folded: Folded
    timeout_seconds: float | None


async def pause(database: Database, run: OwnedRun, pause: Pause, *, active_seconds: float) -> bool:
    """Let a run wait: its row and its job's outcome, all or nothing. A pause tells no webhook.

    Returns:
        False when another claim owns the run: nothing was written. True also when a call whose answer got lost had
        paused it already.
    """
    row = await database.fetchrow(
        f"""
        WITH owned AS (
          UPDATE orchestration_runs
             SET status = 'paused', waiting_for_human = true, human_prompt = $3, human_fields = $4::jsonb,
                 current_step_id = $5, cursor = $6::jsonb, engine_version = $7,
                 definition_snapshot = coalesce(definition_snapshot, $8::jsonb),
                 human_deadline = now() + make_interval(secs => $9),
                 nested_run_id = $10, nested_orch_id = $11,
                 shared_state = $12::jsonb, step_history = $13::jsonb, folded_steps = $14
           WHERE run_id = $1 AND claim = $2 AND status = 'running'
          RETURNING run_id, tenant_id, claim, status, error, ended_at),
        {run_logs.due("owned")},
        ledger AS (
          UPDATE job_ledger l
             SET outcome = 'paused', owner = NULL, ended_at = now(), active_seconds = l.active_seconds + $16
            FROM owned o WHERE l.job_id = $15 AND l.claim = o.claim)
        SELECT EXISTS (SELECT 1 FROM owned) OR EXISTS (
          SELECT 1 FROM orchestration_runs WHERE run_id = $1 AND claim = $2 AND status = 'paused') AS paused
        """,  # noqa: S608 - no value in it
        run.run_id,
        run.claim,
        to_text(pause.question.prompt),
        to_jsonb([dict(field) for field in pause.question.fields]),
        pause.question.step_id,
        to_jsonb(pause.cursor),
        pause.engine_version,
        to_jsonb(pause.definition),
        pause.timeout_seconds,
        pause.question.nested_run_id,
        pause.question.nested_orchestration_id,
        to_jsonb(pause.folded.state),
        to_jsonb(list(pause.folded.history)),
        pause.folded.steps,
        run.job_id,
        active_seconds,
    )
    return bool(row and row["paused"])


async def paused_runs(database: Database, *, after: str, limit: int) -> list[str]:
    """Return the ids of runs that wait for a human, by id, behind `after`."""
    rows = await database.fetch(
        """
        SELECT run_id FROM orchestration_runs
         WHERE status = 'paused' AND root_run_id IS NULL AND run_id > $1 ORDER BY run_id LIMIT $2
        """,
        after,
        limit,
    )
    return [row["run_id"] for row in rows]


async def waiting(database: Database, run_id: str) -> tuple[int, Question] | None:
    """Return what a run waits for, and the claim that let it wait; None when it does not wait."""
    row = await database.fetchrow(
        """
        SELECT claim, current_step_id, human_prompt, human_fields::text, nested_run_id, nested_orch_id
          FROM orchestration_runs
         WHERE run_id = $1 AND status = 'paused'
        """,
        run_id,
    )
    if row is None:
        return None
    fields: list[dict[str, object]] = from_jsonb(row["human_fields"], [])
    question = Question(
        row["current_step_id"] or "",
        row["human_prompt"] or "",
        fields,
        nested_run_id=row["nested_run_id"],
        nested_orchestration_id=row["nested_orch_id"],
    )
    return row["claim"] or 0, question
