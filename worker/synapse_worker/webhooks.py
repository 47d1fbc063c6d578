"""Telling receivers how runs and chats' turns ended: the outbox's rows, sent beside the jobs and never in their slots.

Each attempt leases its row first, so two workers do not make the same one; a worker that dies between sending and
noting it leaves a row that is sent again with the same delivery id. A receiver that is slow holds up its own rows
only. What was tried often enough is given up and says so, in the row, in a log line and in a metric.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
import time
from contextlib import suppress

from synapse_worker import __version__, chat_webhooks, tracing
from synapse_worker.egress import Egress
from synapse_worker.errors import EgressFailed, EgressRefused, StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.run_traces import traceparent_of
from synapse_worker.store import outbox
from synapse_worker.store.database import Database
from synapse_worker.store.outbox import Attempt
from synapse_worker.telemetry import Metrics

log = logging.getLogger(__name__)

IDLE_SECONDS = 2.0
"""How often an idle worker looks for rows that are due."""
AT_ONCE = 16
AT_ONCE_PER_HOST = 4
ATTEMPT_SECONDS = 15.0
LEASE_SECONDS = 60.0
"""How long a row is left alone by others; an attempt and the note of it take less."""
MOST_ATTEMPTS = 20
_FIRST_DELAY = 5.0
_LONGEST_DELAY = 7200.0
MOST_STATE_BYTES = 1_000_000
EXIT_SECONDS = 1.0
"""How long attempts under way may take once the worker stops."""
_GONE = 410
"""The status by which a receiver says that it wants no more of this."""


class Webhooks:
    """Run `send` as a task."""

    def __init__(self, database: Database, gate: StoreGate, egress: Egress, metrics: Metrics) -> None:
        self._database = database
        self._gate = gate
        self._egress = egress
        self._metrics = metrics
        self._under_way: dict[asyncio.Task[None], str] = {}

    async def send(self) -> None:
        """Send what is due, for ever; when stopped, attempts under way may end within `EXIT_SECONDS`."""
        try:
            while True:
                if self._gate.is_open and len(self._under_way) < AT_ONCE:
                    await self._begin()
                await self._wait()
        finally:
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=EXIT_SECONDS)
            for task in self._under_way:
                task.cancel()

    async def _begin(self) -> None:
        """Lease what is due and begin to send it."""
        try:
            attempts = await outbox.lease(
                self._database,
                busy=list(self._under_way.values()),
                most_per_host=AT_ONCE_PER_HOST,
                limit=AT_ONCE - len(self._under_way),
                seconds=LEASE_SECONDS,
                most_state=MOST_STATE_BYTES,
            )
        except (StoreUnavailable, StoreRefused) as error:
            self._gate.trip(error)
            return
        except Exception:
            log.exception("looking for due webhooks met an unexpected error; it goes on")
            return
        for attempt in attempts:
            task = asyncio.create_task(self._attempt(attempt))
            self._under_way[task] = attempt.host
            task.add_done_callback(self._under_way.pop)

    async def _wait(self) -> None:
        """Wait until an attempt has ended, which may make room for its host's next, or for the next look."""
        seconds = IDLE_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - spreads the workers
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(seconds)

    async def _attempt(self, attempt: Attempt) -> None:
        whose = "run_id" if attempt.session_id is None else "job_id"
        what: dict[str, tracing.Value] = {whose: attempt.run_id, "attempt": attempt.number}
        with suppress(StoreUnavailable, StoreRefused):  # the lease runs out and the row is sent again
            if attempt.session_id is not None:
                attempt = await chat_webhooks.with_secret(self._database, attempt)
            parent = await traceparent_of(self._database, attempt.run_id)
            with tracing.begin("webhook", tracing.Kind.CLIENT, what, parent=parent, key=attempt.run_id):
                await self._try(attempt)

    async def _try(self, attempt: Attempt) -> None:
        try:
            problem = await self._post(attempt)
            final = False
        except EgressRefused as error:
            problem, final = str(error), True
        except EgressFailed as error:
            problem, final = str(error), False
        except Exception:
            log.exception("the webhook of %s met an unexpected error", attempt.subject)
            problem, final = "an unexpected error, see the worker's log", False
        if problem:
            tracing.failed(problem)
        await self._note(attempt, problem, final=final)

    async def _post(self, attempt: Attempt) -> str:
        """Send it; returns what is wrong with the answer, "" for nothing.

        Raises:
            EgressRefused: it can never be sent.
            EgressFailed: there was no answer.
        """
        if not attempt.known:
            raise EgressRefused(f"{attempt.subject} was removed before its end could be told, and with it the secret")
        content = body(attempt) if attempt.session_id is None else chat_webhooks.body(attempt)
        status = await self._egress.post(
            attempt.url, headers=headers(attempt, content, int(time.time())), content=content, seconds=ATTEMPT_SECONDS
        )
        if status == _GONE:
            raise EgressRefused(f"{attempt.host} answers {status}: it wants no more of this")
        return "" if 200 <= status < 300 else f"{attempt.host} answers {status}"

    async def _note(self, attempt: Attempt, problem: str, *, final: bool) -> None:
        what = f"webhook {attempt.id} of {attempt.subject} ({attempt.status})"
        if not problem:
            await outbox.delivered(self._database, attempt)
            self._metrics.webhook_delivery("delivered")
        elif final or attempt.number >= MOST_ATTEMPTS:
            await outbox.give_up(self._database, attempt, problem)
            self._metrics.webhook_delivery("given_up")
            log.warning("%s is given up after %d attempts: %s", what, attempt.number, problem)
        else:
            seconds = delay(attempt.number) * random.uniform(0.75, 1.25)  # noqa: S311 - spreads the attempts
            await outbox.put_off(self._database, attempt, problem, seconds)
            self._metrics.webhook_delivery("failed")
            log.info("%s failed, attempt %d, the next in %.0f s: %s", what, attempt.number, seconds, problem)


def delay(attempts: int) -> float:
    """Return the seconds to wait after so many failed attempts, before jitter."""
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** (attempts - 1))


def body(attempt: Attempt) -> bytes:
    """Return the JSON that a receiver of runs gets; the same in each attempt while the run does not go on."""
    told = {
        "run_id": attempt.run_id,
        "orchestration_id": attempt.orchestration_id,
        "tenant_id": attempt.tenant_id,
        "status": attempt.status,
        "error": attempt.error,
        "started_at": attempt.started_at.isoformat() if attempt.started_at else None,
        "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
        "total_cost_usd": attempt.total_cost_usd,
    }
    # The state is JSON already.
    return f'{json.dumps(told)[:-1]}, "shared_state": {attempt.state or "null"}}}'.encode()


def headers(attempt: Attempt, content: bytes, timestamp: int) -> dict[str, str]:
    """Return the headers of an attempt.

    Args:
        timestamp: seconds since 1970, of this attempt.
    """
    given = {
        "Content-Type": "application/json",
        "User-Agent": f"synapse-scale/{__version__}",
        "X-Synapse-Delivery": str(attempt.id),
        "X-Synapse-Timestamp": str(timestamp),
    }
    if attempt.secret is not None:
        given["X-Synapse-Signature"] = f"sha256={signature(attempt.secret.get_secret_value(), timestamp, content)}"
    return given


def signature(secret: str, timestamp: int, content: bytes) -> str:
    """Return the HMAC-SHA256, in hexadecimal, of the timestamp, a dot and the body."""
    return hmac.new(secret.encode(), f"{timestamp}.".encode() + content, hashlib.sha256).hexdigest()
