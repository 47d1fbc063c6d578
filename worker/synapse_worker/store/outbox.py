"""The webhook outbox: one row for each end of a run or a chat's turn that is to be told, written with that end.

The row and the end are one statement, so neither exists without the other, and a run without a webhook_url costs
nothing. Here are also the statements of who sends them (`webhooks`): an attempt leases its row by moving
`next_attempt_at`, so no two processes make the same attempt, and one that dies leaves a row that is due again.
A row is settled once `delivered_at` or `given_up_at` is set. State and secret are the run's own and read from its row;
a turn's secret is in its job's payload (`chat_webhooks`), its answer in the row.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr

from synapse_worker.store.database import Database
from synapse_worker.store.run_logs import due

_HOST = r"lower(left(coalesce(substring(webhook_url from '^[A-Za-z]+://(?:[^/?#]*@)?([^/?#]*)'), ''), 255))"
"""The host and port of a URL, as far as attempts are counted by it."""
_LOOKED_AT = 200


def outbox(source: str) -> str:
    """Return the CTEs `outbox` and `logs` for a statement that ends runs.

    Args:
        source: the CTE before it, which returns run_id, orchestration_id, tenant_id, webhook_url, claim, status, error
            and ended_at of the runs it has ended.
    """
    return f"{to_be_told(source)},\n{due(source)}"


def to_be_told(source: str) -> str:
    """Return the CTE `outbox` for a statement that ends runs or turns of chats.

    Args:
        source: as for `outbox`, without claim; of a turn the job's id as run_id, the agent's as orchestration_id, and
            the answer of a completed one as error.
    """
    return f"""
outbox AS (
  INSERT INTO webhook_outbox (id, run_id, orchestration_id, tenant_id, status, error, url, host, attempts, created_at,
      next_attempt_at)
  SELECT gen_random_uuid(), run_id, orchestration_id, tenant_id, status, error, webhook_url, {_HOST}, 0, ended_at,
         ended_at
    FROM {source} WHERE webhook_url <> '')"""  # noqa: S608 - the name of a CTE of ours


_ENDED = ("run_id", "orchestration_id", "tenant_id", "webhook_url", "claim", "status", "error", "ended_at")


def ended(table: str) -> str:
    """Return what the CTE that ends rows of `table`, an alias of orchestration_runs, has to return."""
    return ", ".join(f"{table}.{column}" for column in _ENDED)


ENDED = ", ".join(_ENDED)
"""The same where the statement names one table only."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A leased row: one attempt to deliver it.

    Attributes:
        id: the delivery's, the same in each attempt.
        number: which attempt it is, from 1.
        run_id: the run's; of a turn, its job's.
        orchestration_id: the run's; of a turn, its agent's.
        error: why it did not complete; of a completed turn its answer, or None when that is too large.
        ended_at: when the run ended so.
        state: the run's final state as JSON; None when the run has gone on since, or it is too large.
        secret: the run's; a turn's is not read with the row.
        known: False = the run's row, or the turn's job, was removed, and with it the secret.
        session_id: the chat's that it is a turn of; None = it is a run.
    """

    id: uuid.UUID
    number: int
    url: str
    host: str
    run_id: str
    orchestration_id: str
    tenant_id: str
    status: str
    error: str | None
    started_at: datetime | None
    ended_at: datetime | None
    total_cost_usd: float
    state: str | None
    secret: SecretStr | None
    known: bool
    session_id: str | None = None

    @property
    def subject(self) -> str:
        """What has ended, as a log line names it."""
        return f"run {self.run_id}" if self.session_id is None else f"chat job {self.run_id}"


# Of each host no more than may run at once, so that the rows of one that is slow do not fill the batch.
_LEASE = """
WITH due AS (
  SELECT id, coalesce(host, '') AS host, next_attempt_at FROM webhook_outbox
   WHERE delivered_at IS NULL AND next_attempt_at <= now()
     AND cardinality(array_positions($1::text[], coalesce(host, '')::text)) < $2
   ORDER BY next_attempt_at LIMIT $3 FOR UPDATE SKIP LOCKED),
placed AS (
  SELECT id, next_attempt_at, row_number() OVER (PARTITION BY host ORDER BY next_attempt_at)
         + cardinality(array_positions($1::text[], host::text)) AS place FROM due),
leased AS (
  UPDATE webhook_outbox w SET attempts = w.attempts + 1, next_attempt_at = now() + make_interval(secs => $5)
    FROM (SELECT id FROM placed WHERE place <= $2 ORDER BY next_attempt_at LIMIT $4) p
   WHERE w.id = p.id RETURNING w.*)
SELECT l.id, l.attempts, l.url, coalesce(l.host, '') AS host, l.run_id, l.orchestration_id, l.tenant_id, l.status,
       CASE WHEN octet_length(l.error) <= $6 THEN l.error END AS error, l.created_at, t.session_id,
       r.run_id IS NOT NULL OR t.job_id IS NOT NULL AS known, r.started_at, r.total_cost_usd, r.webhook_secret,
       CASE WHEN r.ended_at = l.created_at AND octet_length(r.shared_state::text) <= $6 THEN r.shared_state::text
        END AS state
  FROM leased l LEFT JOIN orchestration_runs r USING (run_id)
       LEFT JOIN job_ledger t ON t.job_id = l.run_id AND t.session_id IS NOT NULL
"""


async def lease(
    database: Database, *, busy: Sequence[str], most_per_host: int, limit: int, seconds: float, most_state: int
) -> list[Attempt]:
    """Lease rows that are due, the longest due first.

    Args:
        busy: hosts of the attempts that this process makes now, each as often as it is under way.
        most_per_host: how many attempts it makes at once to one host.
        limit: how many attempts it can take on.
        seconds: how long the lease holds; an attempt must be over before.
        most_state: bytes of a state or an answer above which it is left out.
    """
    rows = await database.fetch(_LEASE, list(busy), most_per_host, max(limit, _LOOKED_AT), limit, seconds, most_state)
    return [
        Attempt(
            id=row["id"],
            number=row["attempts"],
            url=row["url"],
            host=row["host"],
            run_id=row["run_id"],
            orchestration_id=row["orchestration_id"],
            tenant_id=row["tenant_id"],
            status=row["status"],
            error=row["error"],
            started_at=row["started_at"],
            ended_at=row["created_at"],
            total_cost_usd=row["total_cost_usd"] or 0.0,
            state=row["state"],
            secret=SecretStr(row["webhook_secret"]) if row["webhook_secret"] else None,
            known=row["known"],
            session_id=row["session_id"],
        )
        for row in rows
    ]


async def delivered(database: Database, attempt: Attempt) -> None:
    """Settle a row: its receiver has it."""
    await database.execute(
        "UPDATE webhook_outbox SET delivered_at = now(), next_attempt_at = NULL, last_error = NULL"
        " WHERE id = $1 AND delivered_at IS NULL",
        attempt.id,
    )


async def put_off(database: Database, attempt: Attempt, error: str, seconds: float) -> None:
    """Note why an attempt failed, and make the next one due in so many seconds."""
    await database.execute(
        "UPDATE webhook_outbox SET last_error = $3, next_attempt_at = now() + make_interval(secs => $4)"
        " WHERE id = $1 AND attempts = $2 AND delivered_at IS NULL",
        attempt.id,
        attempt.number,
        error,
        seconds,
    )


async def give_up(database: Database, attempt: Attempt, error: str) -> None:
    """Settle a row that nobody will send any more, and note why."""
    await database.execute(
        "UPDATE webhook_outbox SET last_error = $3, given_up_at = now(), next_attempt_at = NULL"
        " WHERE id = $1 AND attempts = $2 AND delivered_at IS NULL",
        attempt.id,
        attempt.number,
        error,
    )
