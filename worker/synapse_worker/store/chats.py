"""A chat session's row, and the job of a turn: what a producer writes before it queues one.

How a turn is run, and what becomes of its row then, is the worker's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from synapse_worker.errors import SessionTaken
from synapse_worker.store.database import Database, from_jsonb
from synapse_worker.store.topology import EPOCH_NOW


@dataclass(frozen=True, slots=True)
class QueuedTurn:
    """What a producer writes before it queues a turn; `envelope` is the job's payload as it goes to Redis."""

    session_id: str
    agent_id: str
    tenant_id: str
    job_id: str
    queue: str
    envelope: bytes
    webhook_url: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)


async def create_queued(database: Database, turn: QueuedTurn, *, epoch: int) -> str | None:
    """Write the session's row and the ledger row of a new turn; writing them again changes nothing.

    A session that works on a turn stays as it is: its next turn waits behind that.

    Args:
        epoch: of the topology by which `turn.queue` was chosen.

    Returns:
        The queue that the ledger names, the one of the first writing; None when the topology has another epoch now
        and nothing was written.

    Raises:
        SessionTaken: the session is another tenant's, if only since a moment ago.
    """
    row = await database.fetchrow(
        f"""
        WITH session AS (
          INSERT INTO chat_sessions AS c (session_id, agent_id, tenant_id, status, messages, job_id, created_at,
              last_message_at, webhook_url, webhook_secret)
          SELECT $1::text, $2, $3, 'queued', '[]', $4::text, now(), now(), $5, $6
           WHERE {EPOCH_NOW} = $9 AND NOT EXISTS (SELECT 1 FROM job_ledger WHERE job_id = $4::text)
          ON CONFLICT (session_id) DO UPDATE
             SET agent_id = EXCLUDED.agent_id, webhook_url = EXCLUDED.webhook_url,
                 webhook_secret = EXCLUDED.webhook_secret, last_message_at = now(),
                 status = CASE WHEN c.status = 'running' THEN c.status ELSE 'queued' END,
                 job_id = CASE WHEN c.status = 'running' THEN c.job_id ELSE EXCLUDED.job_id END
           WHERE c.tenant_id = EXCLUDED.tenant_id
          RETURNING c.session_id),
        job AS (
          INSERT INTO job_ledger (job_id, session_id, queue, envelope, enqueued_at)
          SELECT $4::text, session_id, $7, $8, now() FROM session
          ON CONFLICT (job_id) DO NOTHING RETURNING queue)
        SELECT coalesce((SELECT queue FROM job), (SELECT queue FROM job_ledger WHERE job_id = $4::text)) AS queue,
               {EPOCH_NOW} = $9 AND NOT EXISTS (SELECT 1 FROM session) AS taken
        """,  # noqa: S608 - no value in it
        turn.session_id,
        turn.agent_id,
        turn.tenant_id,
        turn.job_id,
        turn.webhook_url,
        turn.webhook_secret,
        turn.queue,
        turn.envelope,
        epoch,
    )
    if row is not None and row["queue"] is None and row["taken"]:
        raise SessionTaken(f"the session_id {turn.session_id!r} is taken; choose another one")
    return None if row is None else row["queue"]


async def session_of(database: Database, job_id: str) -> str | None:
    """Return the session of a turn that was written, or None."""
    row = await database.fetchrow("SELECT session_id FROM job_ledger WHERE job_id = $1", job_id)
    return None if row is None else row["session_id"]


@dataclass(frozen=True, slots=True)
class SessionView:
    """A chat session as the API shows it."""

    session_id: str
    agent_id: str | None
    tenant_id: str
    status: str | None
    messages: list[object]
    worker_id: str | None
    job_id: str | None
    created_at: datetime | None
    last_message_at: datetime | None


async def get(database: Database, session_id: str) -> SessionView | None:
    """Return a session, or None."""
    row = await database.fetchrow(
        "SELECT session_id, agent_id, tenant_id, status, messages::text, worker_id, job_id, created_at,"
        " last_message_at FROM chat_sessions WHERE session_id = $1",
        session_id,
    )
    return None if row is None else SessionView(**{**row, "messages": from_jsonb(row["messages"], [])})


async def tenant_of(database: Database, session_id: str) -> str | None:
    """Return a session's tenant; None = there is no such session."""
    row = await database.fetchrow("SELECT tenant_id FROM chat_sessions WHERE session_id = $1", session_id)
    return None if row is None else str(row["tenant_id"])
