"""One turn of a chat under one lease and one claim: taken in its order, answered, and how it ends.

The ways are those of a run (`run_job`): it has ended, it is given back, or it is somebody else's. What the agent does
in between is `chat_answer`'s; the session's and the ledger's rows are `store.chat_turns`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import cast

from synapse_worker import chat_answer, tracing
from synapse_worker.claimed_job import CRASH_LIMIT, ClaimedJob
from synapse_worker.endings import whole
from synapse_worker.engine.errors import EngineError
from synapse_worker.engine.steps.suspension import Halted
from synapse_worker.errors import JobFailed, JobRetry, PayloadError, StoreRefused, StoreUnavailable
from synapse_worker.job_payloads import MAX_URL, named, result, usable
from synapse_worker.queueing import stops
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, Job, StopReason
from synapse_worker.queueing.payload import EXPIRED, JobPayload, decode
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.run_traces import traced
from synapse_worker.store import chat_turns, claims
from synapse_worker.store.chat_turns import OwnedTurn, TurnVerdict
from synapse_worker.store.claims import ClaimRequest, State
from synapse_worker.store.runs import DeadLetter
from synapse_worker.surroundings import Surroundings

log = logging.getLogger(__name__)

_BUSY_DELAY_MS = 1_000

Claimed = tuple[Lease, JobPayload, ClaimRequest]


async def begin(
    surroundings: Surroundings, running: dict[RunningJob, Control], turns: Iterable[Claimed]
) -> list[Job | Release | HandBack]:
    """Give turns their claim numbers and sessions, the oldest first; see `Handler.begin`."""
    return [
        await _begin(surroundings, running, *claimed)
        for claimed in sorted(turns, key=lambda each: (each[2].enqueued_ms, each[2].job_id))
    ]


async def _begin(
    surroundings: Surroundings,
    running: dict[RunningJob, Control],
    lease: Lease,
    payload: JobPayload,
    request: ClaimRequest,
) -> Job | Release | HandBack:
    database, worker_id = surroundings.database, surroundings.settings.worker_id
    session_id = _session_of(payload)
    # Owned from its commit on: an outage behind it must not make it look as if this process had crashed over it.
    taken = await surroundings.persist(lambda: chat_turns.take(database, worker_id, request, session_id))
    turn = taken.turn
    if turn is not None:
        apart = turn.suspect and not lease.alone and turn.crashes < CRASH_LIMIT
        if not apart:
            job = ChatJob(lease, payload, turn, surroundings, running)
            return traced(job, payload, turn, lease_seconds=surroundings.settings.lease_seconds)
        log.warning("chat job %s: its worker ended over it; it is run alone next", lease.job_id)
        await surroundings.persist(lambda: chat_turns.give_back(database, turn, active_seconds=0.0))
    surroundings.reservations.free(lease.job_id, request.tenant_id)
    match taken.verdict:
        case TurnVerdict.OWNED:
            return HandBack(lease, None, suspect=True)
        case TurnVerdict.BUSY:
            return HandBack(lease, _BUSY_DELAY_MS)
        case TurnVerdict.NOT_ITS_TENANT:
            sentence = f"the chat session {session_id!r} is another tenant's"
            return await reject(surroundings, lease, request.envelope, payload, session_id, sentence, touch=False)
        case TurnVerdict.ENDED:
            # By an owner that died before it could say so; what came after it has said more under a higher claim.
            surroundings.chat_events.hand(session_id, taken.claim, [_done(lease.job_id)])
            log.info("chat job %s is released without running: it has ended", lease.job_id)
            return Release(lease, result(lease, payload, success=True, text="ended"))


async def reject(
    surroundings: Surroundings,
    lease: Lease,
    envelope: bytes | None,
    payload: JobPayload | None,
    session_id: str,
    sentence: str,
    *,
    touch: bool = True,
) -> Release:
    """End a turn that cannot start.

    Args:
        payload: None when it cannot be read or is gone.
        session_id: whose it is.
        touch: whether it may change the session and write to its stream.
    """
    log.warning("chat job %s cannot be run: %s", lease.job_id, sentence)
    database = surroundings.database
    function, arguments = ("unknown", {}) if payload is None else (payload.function, payload.arguments)
    meant = arguments or await _kept_arguments(surroundings, lease.job_id)
    await chat_turns.reject(
        database,
        job_id=lease.job_id,
        session_id=session_id,
        queue=lease.queue_key,
        envelope=envelope,
        outcome="expired" if sentence == EXPIRED else "failed",
        letter=DeadLetter(function, arguments, sentence, 1),
        agent_id=usable(meant, "agent_id") or "",
        tenant_id=usable(meant, "tenant_id") or surroundings.settings.default_tenant_id,
        webhook_url=usable(meant, "webhook_url", MAX_URL),
    )
    surroundings.metrics.chat_job("unknown", "failed")
    claim = await chat_turns.fail_waiting(database, session_id, lease.job_id) if touch else None
    if claim is not None:
        surroundings.chat_events.hand(session_id, claim, [_failed(lease.job_id, sentence), _done(lease.job_id)])
    return Release(lease, result(lease, payload, success=False, text=sentence))


async def _kept_arguments(surroundings: Surroundings, job_id: str) -> Mapping[str, object]:
    """Return what a turn was enqueued with, where its producer noted that; what Redis has of it cannot be read."""
    envelope = await claims.envelope_of(surroundings.database, job_id)
    try:
        return {} if envelope is None else named(decode(envelope)).arguments
    except PayloadError:
        return {}


class ChatJob(ClaimedJob):
    """One turn under one lease and one claim."""

    def __init__(
        self,
        lease: Lease,
        payload: JobPayload,
        turn: OwnedTurn,
        surroundings: Surroundings,
        running: dict[RunningJob, Control],
    ) -> None:
        # Cancel keys of chats are those of runs, with `chat:` before the session's id.
        ids = RunningJob(f"chat:{turn.session_id}", turn.job_id)
        name = f"chat job {turn.job_id}"
        super().__init__(lease, payload, turn, surroundings, running, ids, tenant_id=turn.tenant_id, name=name)
        self._turn = turn

    async def _unwanted(self) -> StopReason | None:
        """Return why the turn need not begin; what cannot be asked now is asked again while it runs."""
        try:
            return (await stops.wanted(self._with.client, [self._ids])).get(self._ids)
        except (StoreUnavailable, StoreRefused):
            return None

    async def _work(self, control: Control) -> Ending:
        turn, arguments = self._turn, self._payload.arguments
        self._say([_picked_up(turn, self._with.settings.worker_id)])
        message, images = str(arguments["message"]), cast(list[str], arguments.get("images") or [])
        try:
            text, said = await chat_answer.answer(
                self._with, turn, str(arguments["agent_id"]), message, images, lambda: control.hand_over
            )
        except Halted:
            return await whole(self._hand_over())
        except EngineError as error:
            raise (JobFailed if error.final else JobRetry)(str(error)) from None
        asked: State = {"role": "user", "content": message, **({"images": images} if images else {})}
        return await whole(self._complete(text, [asked, {"role": "assistant", "content": text}], said))

    async def _complete(self, text: str, messages: list[State], said: list[State]) -> Ending:
        if not await self._end("completed", text, messages, None):
            return None
        await self._say_last(said)
        return Release(self.lease, result(self.lease, self._payload, success=True, text="completed"))

    async def _fail(self, sentence: str) -> Ending:
        log.warning("%s failed: %s", self._name, sentence)
        letter = DeadLetter(self._payload.function, self._payload.arguments, sentence, self._failures + 1)
        if not await self._end("failed", sentence, [], letter):
            return None
        await self._say_last([_failed(self._turn.job_id, sentence)])
        return Release(self.lease, result(self.lease, self._payload, success=False, text=sentence))

    async def _cancel(self, reason: StopReason) -> Ending:
        if not await self._end("cancelled", "cancelled", [], None):
            return None
        await self._say_last([_failed(self._turn.job_id, "cancelled")])
        # Only who aborted the job waits for this exception, as for a run.
        said = asyncio.CancelledError("cancelled") if reason is StopReason.ABORTED else "cancelled"
        return Release(self.lease, result(self.lease, self._payload, success=False, text=said))

    async def _write_back(self, active_seconds: float, *, failed: bool) -> bool:
        return await chat_turns.give_back(
            self._with.database, self._turn, active_seconds=active_seconds, failed=failed, alone=self.lease.alone
        )

    async def _end(self, status: str, said: str, messages: list[State], letter: DeadLetter | None) -> bool:
        active = self._active()
        ended = await self._with.persist(
            lambda: chat_turns.finish(
                self._with.database,
                self._turn,
                status,
                said,
                messages=messages,
                active_seconds=active,
                dead_letter=letter,
            )
        )
        if ended:
            tracing.note(turn_status=status)
            if status != "completed":
                tracing.failed(said)
            self._with.metrics.chat_job(self._turn.tenant_id, status)
            # Whoever wanted this turn to end does not want the next one to: the marks run out by themselves, too late.
            with suppress(StoreUnavailable, StoreRefused):
                await stops.settle(self._with.client, self._ids)
        return ended

    def _say(self, events: list[State]) -> None:
        self._with.chat_events.hand(self._turn.session_id, self._turn.claim, events)

    async def _say_last(self, events: list[State]) -> None:
        self._say([*events, _done(self._turn.job_id)])
        await self._with.chat_events.written(self._turn.session_id)


def _session_of(payload: JobPayload) -> str:
    return cast(str, payload.arguments["session_id"])


def _picked_up(turn: OwnedTurn, worker_id: str) -> State:
    return {
        "type": "worker_picked_up",
        "worker_id": worker_id,
        "session_id": turn.session_id,
        "job_id": turn.job_id,
        "event_id": f"{turn.job_id}:worker:{turn.claim}:0",
    }


def _failed(job_id: str, sentence: str) -> State:
    return {"type": "error", "error": sentence, "event_id": f"{job_id}:error"}


def _done(job_id: str) -> State:
    return {"type": "done", "event_id": f"{job_id}:done"}
