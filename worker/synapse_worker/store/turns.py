"""The turns of steps that talk to models: a row for each model answer and tool result until the step has finished.

As all writes of a run they carry the claim number. What a turn cost goes into the totals of its run, and of the runs
that it is nested in, with the same statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.database import Database, from_jsonb, to_jsonb


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One finished turn, counted from 1; `value` is what it gave."""

    turn: int
    value: State
    tokens: int
    cost_usd: Decimal


@dataclass(frozen=True, slots=True)
class StoredTurns:
    """The turns of one visit that are done, by number, and what the runs that pay for it have cost so far, by id."""

    rows: Mapping[int, TurnRow]
    costs_usd: Mapping[str, Decimal]


async def read(database: Database, run: OwnedRun, step_id: str, visit: int, *, around: Sequence[str]) -> StoredTurns:
    """Return what former owners of a run did of a visit; `around` are the ids of the runs that it is nested in."""
    rows = await database.fetch(
        """
        SELECT r.run_id, r.total_cost_usd, t.turn, t.message::text, t.tokens, t.cost_usd
          FROM orchestration_runs r
          LEFT JOIN run_turns t ON t.run_id = r.run_id AND r.run_id = $1 AND t.step_id = $2 AND t.visit = $3
         WHERE r.run_id = ANY($4::text[])
        """,
        run.run_id,
        step_id,
        visit,
        [run.run_id, *around],
    )
    done = {
        row["turn"]: TurnRow(row["turn"], from_jsonb(row["message"], {}), row["tokens"] or 0, _usd(row["cost_usd"]))
        for row in rows
        if row["turn"] is not None
    }
    return StoredTurns(done, {row["run_id"]: _usd(row["total_cost_usd"]) for row in rows})


async def record(
    database: Database,
    run: OwnedRun,
    step_id: str,
    visit: int,
    turn: TurnRow,
    *,
    around: Sequence[str],
    definition: State | None,
) -> Mapping[str, Decimal] | None:
    """Store a finished turn.

    Args:
        database: where.
        run: whose it is.
        step_id: of the step, and `visit` of its visit.
        visit: see there.
        turn: what was done.
        around: ids of the runs that this one is nested in, which pay for it too.
        definition: the snapshot to keep where the run has none yet, so that the next owner goes on with the same.

    Returns:
        What each of these runs has cost, this turn included, by id; None when another claim owns one of them and
        nothing was written.
        Calling it again after an answer got lost counts nothing twice.
    """
    rows = await database.fetch(
        """
        WITH known AS (
          SELECT 1 FROM run_turns WHERE run_id = $1 AND step_id = $3 AND visit = $4 AND turn = $5),
        -- In order, the run around first, as everybody takes them: branches that pay for one run wait for each other.
        owned AS (
          SELECT run_id FROM orchestration_runs
           WHERE run_id = ANY($10::text[]) AND claim = $2 AND status = 'running'
           ORDER BY run_id COLLATE "C" FOR UPDATE),
        paid AS (
          UPDATE orchestration_runs r
             SET total_tokens_used = coalesce(total_tokens_used, 0) + CASE WHEN EXISTS (SELECT FROM known)
                                                                      THEN 0 ELSE $7::int END,
                 total_cost_usd = coalesce(total_cost_usd, 0) + CASE WHEN EXISTS (SELECT FROM known)
                                                                THEN 0 ELSE $8::float8 END,
                 definition_snapshot = CASE WHEN r.run_id = $1 THEN coalesce(definition_snapshot, $9::jsonb)
                                            ELSE definition_snapshot END
            FROM owned o
           WHERE r.run_id = o.run_id AND (SELECT count(*) FROM owned) = cardinality($10::text[])
          RETURNING r.run_id, r.total_cost_usd),
        turn AS (
          INSERT INTO run_turns (run_id, step_id, visit, turn, message, tokens, cost_usd, claim)
          SELECT run_id, $3, $4, $5, $6::jsonb, $7, $8, $2 FROM paid WHERE run_id = $1
          ON CONFLICT (run_id, step_id, visit, turn) DO NOTHING)
        SELECT run_id, total_cost_usd FROM paid
        """,
        run.run_id,
        run.claim,
        step_id,
        visit,
        turn.turn,
        to_jsonb(turn.value),
        turn.tokens,
        float(turn.cost_usd),
        None if definition is None else to_jsonb(definition),
        [run.run_id, *around],
    )
    return {row["run_id"]: _usd(row["total_cost_usd"]) for row in rows} or None


async def forget(database: Database, run: OwnedRun, step_id: str, visit: int) -> None:
    """Drop the turns of a visit that has finished, or that is to be done from its beginning the next time.

    A run without a checkpoint then reads its definitions anew, as one that has not begun.
    """
    await database.execute(
        """
        WITH owned AS (
          UPDATE orchestration_runs
             SET definition_snapshot = CASE WHEN cursor IS NULL THEN NULL ELSE definition_snapshot END
           WHERE run_id = $1 AND claim = $2 RETURNING run_id)
        DELETE FROM run_turns t USING owned WHERE t.run_id = owned.run_id AND t.step_id = $3 AND t.visit = $4
        """,
        run.run_id,
        run.claim,
        step_id,
        visit,
    )


def _usd(value: float | None) -> Decimal:
    return Decimal(0) if value is None else Decimal(str(value))
