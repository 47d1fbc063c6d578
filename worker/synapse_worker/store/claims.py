"""Owning runs: what a claimed job writes before it may work, and how it gives its run back.

Every write of a run carries the claim number that `take` gave it; a statement that finds another number changes
nothing, so two processes never both write for one run. Steps and ends are in `runs`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import asyncpg

from synapse_worker.store.database import Database, array, from_jsonb

State = dict[str, object]


class Verdict(StrEnum):
    """What `take` found out about a claimed job."""

    OWNED = "owned"
    ENDED = "ended"
    """The job has an outcome already: only its lease is left to release."""
    SUPERSEDED = "superseded"
    """The run belongs to another job, or ended in a way that this job may not undo."""
    MISSING = "missing"
    """There is no run for this job to go on with."""


class ClaimRequest(NamedTuple):
    """A leased job whose payload could be read and names a run.

    `orchestration_id` is "" for a job that goes on with a run that exists; it creates none. A chat's turn has its
    agent's id there, and its own job's as `run_id`.
    """

    job_id: str
    run_id: str
    queue: str
    envelope: bytes
    enqueued_ms: int
    orchestration_id: str
    session_id: str | None
    tenant_id: str
    webhook_url: str | None
    webhook_secret: str | None
    alone: bool = False
    """Nothing else runs in this process, so a crash is this job's own."""
    answers: bool = False
    """The job brings a human's answer: it goes on with a paused run, and with no other that is not its own."""


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A finished step of a run, as it was checkpointed."""

    ordinal: int
    delta: State
    entry: State
    events: list[State]


class OwnedRun(NamedTuple):
    """A run that this process may write to, as far as the last checkpoint.

    `state` and `history` hold all finished steps; `cursor` is None for a run that has finished none;
    `steps_done` counts them; `folded_steps` of them are in the row's own shared_state already; `steps` are those of
    them that who goes on with the run needs.
    `suspect`: its last owner crashed and left no checkpoint; `crashes` counts those since the last checkpoint that
    happened while it ran alone, a try that has just begun (`ClaimRequest.alone`) included.
    """

    run_id: str
    job_id: str
    claim: int
    orchestration_id: str
    tenant_id: str
    session_id: str | None
    current_step_id: str | None
    cursor: State | None
    definition: State | None
    state: State
    history: list[State]
    steps_done: int
    folded_steps: int
    failures: int
    active_seconds: float
    suspect: bool
    crashes: int
    steps: Sequence[DoneStep] = ()


class Taken(NamedTuple):
    """The answer for one request."""

    request: ClaimRequest
    verdict: Verdict
    run: OwnedRun | None


# Whether a step, or a turn within one, was finished under the job's last claim, in its run or in one nested in it.
_GOT_ON = """(
           EXISTS (SELECT 1 FROM run_steps s WHERE s.run_id = l.run_id AND s.claim = l.claim)
           OR EXISTS (SELECT 1 FROM run_turns t WHERE t.run_id = l.run_id AND t.claim = l.claim)
           OR EXISTS (SELECT 1 FROM orchestration_runs x JOIN run_steps s USING (run_id)
                       WHERE x.root_run_id = l.run_id AND s.claim = l.claim)
           OR EXISTS (SELECT 1 FROM orchestration_runs x JOIN run_turns t USING (run_id)
                       WHERE x.root_run_id = l.run_id AND t.claim = l.claim))"""

# One statement, so that the ledger and the runs change together in one round trip.
# A run is taken when it is queued, when this very job was running it (recovery), or when it had failed or was
# cancelled under another job (upstream's dead-letter retry enqueues the run under a new job id). A job that names no
# orchestration only goes on with a run that is there and is its own or has failed or was cancelled; one that brings an
# answer, with a paused one.
_TAKE = f"""
WITH asked AS (
  SELECT job_id, run_id, queue, envelope, enqueued, orchestration_id, session_id, tenant_id, url, secret,
         coalesce(alone, false) AS alone, coalesce(answers, false) AS answers
    FROM unnest($2::text::text[], $3::text::text[], $4::text::text[], $5::bytea[], $6::text::bigint[],
                $7::text::text[], $8::text::text[], $9::text::text[], $10::text::text[], $11::text::text[],
                $12::text::bool[], $13::text::bool[])
      AS j (job_id, run_id, queue, envelope, enqueued, orchestration_id, session_id, tenant_id, url, secret, alone,
            answers)),
ledger AS (
  INSERT INTO job_ledger AS l (job_id, run_id, queue, claim, owner, suspect, envelope, enqueued_at, claimed_at)
  SELECT job_id, run_id, queue, nextval('claim_seq'), $1, alone, envelope, to_timestamp(enqueued / 1000.0), now()
    FROM asked
  ON CONFLICT (job_id) DO UPDATE
     SET claim = EXCLUDED.claim, owner = EXCLUDED.owner, claimed_at = now(), queue = EXCLUDED.queue,
         run_id = EXCLUDED.run_id,
         suspect = (l.suspect OR l.owner IS NOT NULL) AND NOT {_GOT_ON},
         -- EXCLUDED.suspect is the request's `alone`: such a try counts until it ends in order (`give_back`).
         crashes = CASE
           WHEN l.crashes = 0 AND NOT EXCLUDED.suspect THEN 0
           WHEN {_GOT_ON} THEN 0
           ELSE l.crashes + EXCLUDED.suspect::int END
   WHERE l.outcome IS NULL
  RETURNING l.job_id, l.claim, l.failures, l.active_seconds, l.suspect, l.crashes),
owned AS (
  INSERT INTO orchestration_runs AS r (run_id, orchestration_id, session_id, tenant_id, status, shared_state,
      step_history, waiting_for_human, total_tokens_used, total_cost_usd, created_at, started_at, job_id, webhook_url,
      webhook_secret, claim, worker_id)
  SELECT DISTINCT ON (a.run_id) a.run_id, a.orchestration_id, a.session_id, a.tenant_id, 'running', '{{}}'::jsonb,
         '[]'::jsonb, false, 0, 0, now(), now(), a.job_id, a.url, a.secret, l.claim, $1
    FROM asked a JOIN ledger l USING (job_id)
   WHERE a.orchestration_id <> '' OR EXISTS (
     SELECT 1 FROM orchestration_runs x
      WHERE x.run_id = a.run_id AND (x.job_id = a.job_id
        OR x.status = ANY(CASE WHEN a.answers THEN '{{paused}}' ELSE '{{failed,cancelled}}' END::text[])))
   ORDER BY a.run_id, a.job_id
  ON CONFLICT (run_id) DO UPDATE
     SET status = 'running', claim = EXCLUDED.claim, worker_id = EXCLUDED.worker_id, job_id = EXCLUDED.job_id,
         ended_at = NULL, error = NULL, started_at = coalesce(r.started_at, now()),
         waiting_for_human = false, human_prompt = NULL, human_fields = NULL, human_deadline = NULL,
         nested_run_id = NULL, nested_orch_id = NULL,
         deadline = CASE WHEN r.status IN ('failed', 'cancelled') THEN NULL ELSE r.deadline END,
         webhook_url = coalesce(r.webhook_url, EXCLUDED.webhook_url),
         webhook_secret = coalesce(r.webhook_secret, EXCLUDED.webhook_secret)
   -- A run that is nested in another one is that one's job's.
   WHERE r.root_run_id IS NULL
     AND (r.status = 'queued'
      OR (r.status = 'running' AND r.job_id = EXCLUDED.job_id)
      OR (r.status IN ('failed', 'cancelled') AND r.job_id IS DISTINCT FROM EXCLUDED.job_id)
      -- Of the jobs that name no orchestration, only those that bring an answer came past the condition above.
      OR (r.status = 'paused' AND EXCLUDED.orchestration_id = ''))
  RETURNING r.run_id, r.job_id, r.orchestration_id, r.tenant_id, r.session_id, r.current_step_id,
            r.cursor::text,
            r.definition_snapshot::text AS definition, nullif(r.shared_state::text, '{{}}') AS shared_state,
            nullif(r.step_history::text, '[]') AS step_history,
            coalesce(r.folded_steps, 0) AS folded_steps)
SELECT l.job_id, l.claim, l.failures, l.active_seconds, l.suspect, l.crashes, o.run_id, o.orchestration_id, o.tenant_id,
       o.session_id, o.current_step_id, o.cursor, o.definition, o.shared_state, o.step_history, o.folded_steps
  FROM ledger l LEFT JOIN owned o USING (job_id)
"""  # noqa: S608 - no value in it

NEWEST_STEPS = 32
"""Steps at the end of a run whose events may not be in its stream yet: events are written in the background."""

# What the run's own row does not hold yet, what loops may need again, and the newest, of which alone the events are.
_STEPS = """
SELECT s.run_id, s.ordinal, s.delta::text, s.entry::text,
       CASE WHEN s.ordinal > newest.ordinal - $3 THEN s.events::text END AS events
  FROM unnest($1::text[], $2::int[]) AS a (run_id, folded_steps)
 CROSS JOIN LATERAL (SELECT max(ordinal) AS ordinal FROM run_steps WHERE run_id = a.run_id) AS newest
  JOIN run_steps s ON s.run_id = a.run_id
   AND (s.ordinal > least(a.folded_steps, newest.ordinal - $3) OR s.entry ? 'loop_step_id')
 ORDER BY s.run_id, s.ordinal
"""


async def take(database: Database, worker_id: str, requests: Sequence[ClaimRequest]) -> list[Taken]:
    """Give each job a claim number and its run, all in one transaction.

    A missing run row is created (an upstream producer may enqueue without one).

    Returns:
        One answer per request, in no particular order. A run with a cursor still lacks the steps that are not
        folded into its row; `with_steps` adds them.
    """
    # Two jobs of one run in a batch would fight over the row; the later one is answered as superseded.
    # Sorted, so that two workers never wait for each other's rows.
    ordered = sorted(requests, key=lambda request: request.job_id)
    rows = await database.fetch(
        _TAKE,
        worker_id,
        array([request.job_id for request in ordered]),
        array([request.run_id for request in ordered]),
        array([request.queue for request in ordered]),
        [request.envelope for request in ordered],
        array([request.enqueued_ms for request in ordered]),
        array([request.orchestration_id for request in ordered]),
        array([request.session_id for request in ordered]),
        array([request.tenant_id for request in ordered]),
        array([request.webhook_url for request in ordered]),
        array([request.webhook_secret for request in ordered]),
        array([request.alone or None for request in ordered]),
        array([request.answers or None for request in ordered]),
    )
    by_job = {row["job_id"]: row for row in rows}
    answers: list[Taken] = []
    for request in ordered:
        row = by_job.get(request.job_id)
        if row is None:
            answers.append(Taken(request, Verdict.ENDED, None))
        elif row["run_id"] is None and not (request.orchestration_id or await _exists(database, request.run_id)):
            answers.append(Taken(request, Verdict.MISSING, None))
        elif row["run_id"] is None:
            await _supersede(database, request.job_id, row["claim"])
            answers.append(Taken(request, Verdict.SUPERSEDED, None))
        else:
            answers.append(Taken(request, Verdict.OWNED, _owned(row)))
    return answers


async def with_steps(database: Database, runs: Sequence[OwnedRun]) -> dict[str, OwnedRun]:
    """Read the finished steps of owned runs that have some; run id -> the run as far as its last checkpoint.

    It may be called, and repeated, after `take`'s commit: no older claim can add a step any more.
    """
    resumed = [run for run in runs if run.cursor is not None]
    steps: dict[str, list[asyncpg.Record]] = defaultdict(list)
    asked = ([run.run_id for run in resumed], [run.folded_steps for run in resumed], NEWEST_STEPS)
    for step in await database.fetch(_STEPS, *asked) if resumed else []:
        steps[step["run_id"]].append(step)
    return {run.run_id: _as_far_as(run, steps[run.run_id]) if run.run_id in steps else run for run in runs}


async def give_back(
    database: Database, run: OwnedRun, *, active_seconds: float, failed: bool = False, alone: bool = False
) -> bool:
    """Set a run to queued again and clear the ledger's owner; call it before the queue entry is given back.

    Args:
        active_seconds: how long this claim worked on it.
        failed: count this execution as a failed one.
        alone: it was taken with `ClaimRequest.alone`; the try ended in order, so it is no crash.

    Returns:
        False when another claim owns the run.
    """
    row = await database.fetchrow(
        """
        WITH owned AS (
          UPDATE orchestration_runs SET status = 'queued'
           WHERE run_id = $1 AND claim = $2 AND status = 'running' RETURNING run_id),
        ledger AS (
          UPDATE job_ledger SET owner = NULL, active_seconds = active_seconds + $4,
                 failures = failures + $5, crashes = greatest(0, crashes - $6)
           WHERE job_id = $3 AND claim = $2 AND EXISTS (SELECT 1 FROM owned))
        SELECT EXISTS (SELECT 1 FROM owned) OR EXISTS (
          SELECT 1 FROM orchestration_runs WHERE run_id = $1 AND claim = $2 AND status = 'queued') AS owned
        """,
        run.run_id,
        run.claim,
        run.job_id,
        active_seconds,
        1 if failed else 0,
        1 if alone else 0,
    )
    return bool(row and row["owned"])


async def envelope_of(database: Database, job_id: str) -> bytes | None:
    """Return the payload that our producer kept in the ledger, if it did."""
    row = await database.fetchrow("SELECT envelope FROM job_ledger WHERE job_id = $1", job_id)
    return None if row is None else row["envelope"]


async def tenants_of(database: Database, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the tenants of the runs that exist, by run id."""
    rows = await database.fetch(
        "SELECT run_id, tenant_id FROM orchestration_runs WHERE run_id = ANY($1::text[])", list(run_ids)
    )
    return {row["run_id"]: row["tenant_id"] for row in rows}


async def _exists(database: Database, run_id: str) -> bool:
    return bool(await database.fetch("SELECT 1 FROM orchestration_runs WHERE run_id = $1", run_id))


async def _supersede(database: Database, job_id: str, claim: int) -> None:
    await database.execute(
        "UPDATE job_ledger SET outcome = 'superseded', owner = NULL, ended_at = now() WHERE job_id = $1 AND claim = $2",
        job_id,
        claim,
    )


def _owned(row: asyncpg.Record) -> OwnedRun:
    # The columns of `_TAKE`, in its order: looking each of them up by its name takes as long as all the rest.
    (
        job_id,
        claim,
        failures,
        active_seconds,
        suspect,
        crashes,
        run_id,
        orchestration_id,
        tenant_id,
        session_id,
        current_step_id,
        cursor,
        definition,
        state,
        history,
        folded_steps,
    ) = row
    return OwnedRun(
        run_id,
        job_id,
        claim,
        orchestration_id,
        tenant_id,
        session_id,
        current_step_id,
        from_jsonb(cursor, None),
        from_jsonb(definition, None),
        from_jsonb(state, {}),
        from_jsonb(history, []),
        0,
        folded_steps,
        failures,
        active_seconds,
        suspect,
        crashes,
    )


def _as_far_as(run: OwnedRun, rows: Sequence[asyncpg.Record]) -> OwnedRun:
    steps = [
        DoneStep(
            row["ordinal"],
            from_jsonb(row["delta"], {}),
            from_jsonb(row["entry"], {}),
            from_jsonb(row["events"], []),
        )
        for row in rows
    ]
    state, history = dict(run.state), list(run.history)
    for step in steps:
        if step.ordinal > run.folded_steps:
            state.update(step.delta)
            history.append(step.entry)
    return run._replace(state=state, history=history, steps_done=steps[-1].ordinal, steps=steps)


async def has_ended(database: Database, run_id: str) -> bool:
    """Whether a run is over, or there is none; a job of it may have ended before, when it was paused."""
    row = await database.fetchrow(
        "SELECT status IN ('queued', 'running', 'paused') AS open FROM orchestration_runs WHERE run_id = $1", run_id
    )
    return row is None or not row["open"]


async def claim_of(database: Database, run_id: str) -> int:
    """Return the claim that last wrote to a run, 0 when there is none."""
    row = await database.fetchrow("SELECT claim FROM orchestration_runs WHERE run_id = $1", run_id)
    return 0 if row is None or row["claim"] is None else int(row["claim"])
