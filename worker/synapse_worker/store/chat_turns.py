"""Turns of chats: taking one, what it has done so far, giving it back, and its end.

A session is owned as a run is: each write carries the claim number in its row. Its turns are jobs of their own and are
taken one at a time, in the order in which they were enqueued. What a model answered and tools gave back is kept in
`run_turns` under the job's id until the turn has ended. What a producer writes is in `chats`.
An end and the row that has it told to the turn's webhook (`outbox`) are one statement, as for runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from synapse_worker.store.claims import ClaimRequest, State
from synapse_worker.store.database import Database, from_jsonb, to_jsonb, to_text
from synapse_worker.store.outbox import to_be_told
from synapse_worker.store.runs import DeadLetter
from synapse_worker.store.turns import TurnRow

STEP_ID = "chat"
"""What stands for the step in `run_turns`; its visit is 1."""


class TurnVerdict(StrEnum):
    """What `take` found out about a claimed turn."""

    OWNED = "owned"
    ENDED = "ended"
    """The job has an outcome already: only its lease is left to release."""
    BUSY = "busy"
    """An earlier turn of the session has not ended."""
    NOT_ITS_TENANT = "not its tenant"
    """The session belongs to another tenant than the job names."""


@dataclass(frozen=True, slots=True)
class OwnedTurn:
    """A turn that this process may write for.

    `messages` are the session's before it; `suspect` and `crashes` are as those of `claims.OwnedRun`. Agent and webhook
    are the turn's own: the session's row may name those of a later turn already.
    """

    job_id: str
    session_id: str
    agent_id: str
    tenant_id: str
    webhook_url: str | None
    claim: int
    messages: list[object]
    failures: int
    active_seconds: float
    suspect: bool
    crashes: int


@dataclass(frozen=True, slots=True)
class TakenTurn:
    """The answer for one request; `claim` is the last one of a turn that has ended."""

    verdict: TurnVerdict
    turn: OwnedTurn | None
    claim: int = 0


# A retried dead letter's row knows no session yet.
_NOTE = """
INSERT INTO job_ledger AS l (job_id, session_id, queue, envelope, enqueued_at)
VALUES ($1, $2, $3, $4, to_timestamp($5 / 1000.0))
ON CONFLICT (job_id) DO UPDATE SET session_id = EXCLUDED.session_id WHERE l.session_id IS NULL
"""

# A session that runs is free when its job is this one, or has ended; one that only a main instance wrote has no claim.
_TAKE = """
WITH job AS (
  SELECT l.job_id, l.enqueued_at,
         EXISTS (SELECT 1 FROM run_turns t WHERE t.run_id = l.job_id AND t.claim = l.claim) AS got_on
    FROM job_ledger l WHERE l.job_id = $1 AND l.outcome IS NULL),
session AS (
  INSERT INTO chat_sessions AS c (session_id, agent_id, tenant_id, status, messages, job_id, created_at,
      last_message_at, webhook_url, webhook_secret, claim, worker_id)
  SELECT $2::text, $3, $4, 'running', '[]', j.job_id, now(), now(), $5, $6, nextval('claim_seq'), $7
    FROM job j
   WHERE NOT EXISTS (
     SELECT 1 FROM job_ledger o
      WHERE o.session_id = $2::text AND o.outcome IS NULL AND (o.enqueued_at, o.job_id) < (j.enqueued_at, j.job_id))
  ON CONFLICT (session_id) DO UPDATE
     SET status = 'running', job_id = EXCLUDED.job_id, claim = EXCLUDED.claim, worker_id = EXCLUDED.worker_id,
         agent_id = EXCLUDED.agent_id, webhook_url = EXCLUDED.webhook_url, webhook_secret = EXCLUDED.webhook_secret
   WHERE c.tenant_id = EXCLUDED.tenant_id
     AND (c.status IS DISTINCT FROM 'running' OR c.claim IS NULL OR c.job_id = EXCLUDED.job_id
          OR EXISTS (SELECT 1 FROM job_ledger o WHERE o.job_id = c.job_id AND o.outcome IS NOT NULL))
  RETURNING c.claim, c.messages::text),
ledger AS (
  UPDATE job_ledger l
     SET claim = s.claim, owner = $7, claimed_at = now(), queue = $8,
         suspect = (l.suspect OR l.owner IS NOT NULL) AND NOT j.got_on,
         crashes = CASE WHEN j.got_on OR (l.crashes = 0 AND NOT $9::bool) THEN 0 ELSE l.crashes + $9::int END
    FROM session s, job j WHERE l.job_id = j.job_id
  RETURNING l.failures, l.active_seconds, l.suspect, l.crashes)
SELECT EXISTS (SELECT 1 FROM job) AS open, s.claim, s.messages, l.failures, l.active_seconds, l.suspect, l.crashes,
       (SELECT claim FROM job_ledger WHERE job_id = $1) AS last_claim,
       (SELECT tenant_id FROM chat_sessions WHERE session_id = $2::text) AS tenant_id
  FROM (SELECT 1) AS one LEFT JOIN session s ON true LEFT JOIN ledger l ON true
"""


async def take(database: Database, worker_id: str, request: ClaimRequest, session_id: str) -> TakenTurn:
    """Give a turn a claim number and its session, which is made where there is none.

    Args:
        request: of the turn; its `orchestration_id` is the agent's.
        session_id: the session's.
    """
    await database.execute(_NOTE, request.job_id, session_id, request.queue, request.envelope, request.enqueued_ms)
    row = await database.fetchrow(
        _TAKE,
        request.job_id,
        session_id,
        request.orchestration_id,
        request.tenant_id,
        request.webhook_url,
        request.webhook_secret,
        worker_id,
        request.queue,
        request.alone,
    )
    if row is None or not row["open"]:
        return TakenTurn(TurnVerdict.ENDED, None, 0 if row is None else row["last_claim"] or 0)
    if row["claim"] is None:
        others = row["tenant_id"] not in (None, request.tenant_id)
        return TakenTurn(TurnVerdict.NOT_ITS_TENANT if others else TurnVerdict.BUSY, None)
    turn = OwnedTurn(
        job_id=request.job_id,
        session_id=session_id,
        agent_id=request.orchestration_id,
        tenant_id=request.tenant_id,
        webhook_url=request.webhook_url,
        claim=row["claim"],
        messages=from_jsonb(row["messages"], []),
        failures=row["failures"],
        active_seconds=row["active_seconds"],
        suspect=row["suspect"],
        crashes=row["crashes"],
    )
    return TakenTurn(TurnVerdict.OWNED, turn, turn.claim)


async def done_so_far(database: Database, turn: OwnedTurn) -> dict[int, TurnRow]:
    """Return what former owners of a turn did of it, by number."""
    rows = await database.fetch(
        "SELECT turn, message::text, tokens, cost_usd FROM run_turns WHERE run_id = $1 AND step_id = $2 AND visit = 1",
        turn.job_id,
        STEP_ID,
    )
    return {
        row["turn"]: TurnRow(
            row["turn"], from_jsonb(row["message"], {}), row["tokens"] or 0, Decimal(str(row["cost_usd"] or 0))
        )
        for row in rows
    }


async def record(database: Database, turn: OwnedTurn, row: TurnRow) -> bool:
    """Keep a model's answer or a tool's result; False when another claim owns the session and nothing was written."""
    return bool(
        await database.fetch(
            """
            WITH owned AS (
              SELECT 1 FROM chat_sessions WHERE session_id = $1 AND claim = $2 AND status = 'running' FOR UPDATE),
            turn AS (
              INSERT INTO run_turns (run_id, step_id, visit, turn, message, tokens, cost_usd, claim)
              SELECT $3, $4, 1, $5, $6::jsonb, $7, $8, $2 FROM owned
              ON CONFLICT (run_id, step_id, visit, turn) DO NOTHING)
            SELECT 1 FROM owned
            """,
            turn.session_id,
            turn.claim,
            turn.job_id,
            STEP_ID,
            row.turn,
            to_jsonb(row.value),
            row.tokens,
            float(row.cost_usd),
        )
    )


async def give_back(
    database: Database, turn: OwnedTurn, *, active_seconds: float, failed: bool = False, alone: bool = False
) -> bool:
    """Set a session to queued again and clear the ledger's owner; see `claims.give_back`."""
    row = await database.fetchrow(
        """
        WITH owned AS (
          UPDATE chat_sessions SET status = 'queued'
           WHERE session_id = $1 AND claim = $2 AND status = 'running' RETURNING session_id),
        ledger AS (
          UPDATE job_ledger SET owner = NULL, active_seconds = active_seconds + $4,
                 failures = failures + $5, crashes = greatest(0, crashes - $6)
           WHERE job_id = $3 AND claim = $2 AND EXISTS (SELECT 1 FROM owned))
        SELECT EXISTS (SELECT 1 FROM owned) OR EXISTS (
          SELECT 1 FROM chat_sessions WHERE session_id = $1 AND claim = $2 AND status = 'queued') AS owned
        """,
        turn.session_id,
        turn.claim,
        turn.job_id,
        active_seconds,
        1 if failed else 0,
        1 if alone else 0,
    )
    return bool(row and row["owned"])


_FINISH = f"""
WITH following AS (
  SELECT job_id FROM job_ledger WHERE session_id = $1 AND outcome IS NULL AND job_id <> $3
   ORDER BY enqueued_at, job_id LIMIT 1),
owned AS (
  UPDATE chat_sessions
     SET status = CASE WHEN EXISTS (SELECT 1 FROM following) THEN 'queued' ELSE $4::text END,
         job_id = coalesce((SELECT job_id FROM following), job_id),
         messages = messages || $5::jsonb, last_message_at = now()
   WHERE session_id = $1 AND claim = $2 AND status = 'running' RETURNING session_id, tenant_id),
ledger AS (
  UPDATE job_ledger
     SET outcome = $4::text, owner = NULL, ended_at = now(), active_seconds = active_seconds + $6
   WHERE job_id = $3 AND claim = $2 AND EXISTS (SELECT 1 FROM owned)),
turns AS (
  DELETE FROM run_turns WHERE run_id = $3 AND EXISTS (SELECT 1 FROM owned)),
ended AS (
  SELECT $3 AS run_id, $11::text AS orchestration_id, tenant_id, $12::text AS webhook_url, $4::text AS status,
         $13::text AS error, now() AS ended_at
    FROM owned),
{to_be_told("ended")},
letter AS (
  INSERT INTO dead_letter_queue (id, job_function, job_payload, error_message, attempt_count, first_failed_at,
      last_failed_at, resolved)
  SELECT gen_random_uuid(), $7::text, $8::jsonb, $9::text, $10::int, now(), now(), false
    FROM owned WHERE $7::text IS NOT NULL)
SELECT EXISTS (SELECT 1 FROM owned) OR EXISTS (
  SELECT 1 FROM job_ledger WHERE job_id = $3 AND claim = $2 AND outcome = $4::text) AS ended
"""  # noqa: S608 - no value in it


async def finish(
    database: Database,
    turn: OwnedTurn,
    status: str,
    said: str,
    *,
    messages: Sequence[State],
    active_seconds: float,
    dead_letter: DeadLetter | None = None,
) -> bool:
    """End a turn: its messages, the session's status, the ledger's outcome and a dead letter if it failed.

    All or nothing, and with it the row of the turn's webhook, if it has one. A session with further turns is queued
    again, for the next of them.

    Args:
        status: completed, failed or cancelled.
        said: what the webhook tells of it: the answer, or why there is none.
        messages: to be appended to the session's.

    Returns:
        False when another claim owns the session: nothing was written. True also when a call whose answer got lost
        had ended the turn already.
    """
    row = await database.fetchrow(
        _FINISH,
        turn.session_id,
        turn.claim,
        turn.job_id,
        status,
        to_jsonb(list(messages)),
        active_seconds,
        None if dead_letter is None else dead_letter.function,
        None if dead_letter is None else to_jsonb(dict(dead_letter.payload)),
        None if dead_letter is None else to_text(dead_letter.error),
        None if dead_letter is None else dead_letter.attempts,
        turn.agent_id,
        turn.webhook_url,
        to_text(said) if turn.webhook_url else None,
    )
    return bool(row and row["ended"])


_REJECT = f"""
WITH ledger AS (
  INSERT INTO job_ledger AS l (job_id, session_id, queue, envelope, enqueued_at, ended_at, outcome)
  VALUES ($1, $2::text, $3, $4, now(), now(), $5)
  ON CONFLICT (job_id) DO UPDATE
     SET outcome = EXCLUDED.outcome, owner = NULL, ended_at = now(),
         session_id = coalesce(l.session_id, EXCLUDED.session_id)
   WHERE l.outcome IS NULL
  RETURNING job_id),
ended AS (
  SELECT job_id AS run_id, $10::text AS orchestration_id, $11::text AS tenant_id, $12::text AS webhook_url,
         'failed' AS status, $8::text AS error, now() AS ended_at
    FROM ledger),
{to_be_told("ended")}
INSERT INTO dead_letter_queue (id, job_function, job_payload, error_message, attempt_count, first_failed_at,
    last_failed_at, resolved)
SELECT gen_random_uuid(), $6::text, $7::jsonb, $8::text, $9::int, now(), now(), false FROM ledger
"""  # noqa: S608 - no value in it


async def reject(
    database: Database,
    *,
    job_id: str,
    session_id: str,
    queue: str,
    envelope: bytes | None,
    outcome: str,
    letter: DeadLetter,
    agent_id: str,
    tenant_id: str,
    webhook_url: str | None,
) -> None:
    """End a turn that cannot even start, once, however often called, and have it told to its webhook, if it has one.

    The session's row is `fail_waiting`'s.

    Args:
        outcome: what the ledger says of the job, failed or expired.
    """
    await database.execute(
        _REJECT,
        job_id,
        session_id,
        queue,
        envelope,
        outcome,
        letter.function,
        to_jsonb(dict(letter.payload)),
        to_text(letter.error),
        letter.attempts,
        agent_id,
        tenant_id,
        webhook_url,
    )


async def fail_waiting(database: Database, session_id: str, job_id: str) -> int | None:
    """Say of a session that waits for a job, which is over, that it has failed, or waits for its next turn.

    Returns:
        The claim that last wrote to the session; None when it has not waited, or for a job that goes on.
    """
    row = await database.fetchrow(
        """
        WITH following AS (
          SELECT job_id FROM job_ledger WHERE session_id = $1 AND outcome IS NULL AND job_id <> $2
           ORDER BY enqueued_at, job_id LIMIT 1)
        UPDATE chat_sessions c
           SET status = CASE WHEN EXISTS (SELECT 1 FROM following) THEN c.status ELSE 'failed' END,
               job_id = coalesce((SELECT job_id FROM following), c.job_id)
         WHERE c.session_id = $1 AND c.status = 'queued'
           AND (c.job_id = $2
                OR EXISTS (SELECT 1 FROM job_ledger o WHERE o.job_id = c.job_id AND o.outcome IS NOT NULL))
        RETURNING c.claim
        """,
        session_id,
        job_id,
    )
    return None if row is None else row["claim"] or 0
