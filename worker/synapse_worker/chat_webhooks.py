"""What a receiver is told of the end of a chat's turn, and the secret that signs it.

A turn has no row as a run has: the outbox's row says how it ended, and the secret is read from its job's payload, which
the ledger keeps. The session's row may hold a later turn's already. Sending is `webhooks`'.
"""

from __future__ import annotations

import json
from dataclasses import replace

from pydantic import SecretStr

from synapse_worker.errors import PayloadError
from synapse_worker.job_payloads import named
from synapse_worker.queueing.payload import decode
from synapse_worker.store import claims
from synapse_worker.store.database import Database
from synapse_worker.store.outbox import Attempt

EVENT = "chat_turn_ended"
"""By this a receiver of both tells turns from runs."""


async def with_secret(database: Database, attempt: Attempt) -> Attempt:
    """Return an attempt for a turn with its secret; not `known` any more when the payload cannot be read.

    Raises:
        StoreUnavailable, StoreRefused: PostgreSQL does not say.
    """
    envelope = await claims.envelope_of(database, attempt.run_id)
    try:
        payload = None if envelope is None else named(decode(envelope))
    except PayloadError:
        payload = None
    if payload is None:
        return replace(attempt, known=False)
    secret = payload.arguments.get("webhook_secret")
    return replace(attempt, secret=SecretStr(secret) if isinstance(secret, str) and secret else None)


def body(attempt: Attempt) -> bytes:
    """Return the JSON that a receiver of turns gets; the same in each attempt."""
    completed = attempt.status == "completed"
    return json.dumps(
        {
            "event": EVENT,
            "job_id": attempt.run_id,
            "session_id": attempt.session_id,
            "agent_id": attempt.orchestration_id,
            "tenant_id": attempt.tenant_id,
            "status": attempt.status,
            "error": None if completed else attempt.error,
            "response": attempt.error if completed else None,
            "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
        }
    ).encode()
