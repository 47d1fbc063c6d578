"""A run's rows: creation by a producer, a checkpoint per step, the end, and what listings show.

Each write is one statement, so it is atomic without a transaction's round trips, and carries the claim number:
no row is touched once another claim owns the run. Taking and giving back runs is in `claims`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import asyncpg

from synapse_worker import tracing
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.database import Database, array, from_jsonb, to_jsonb, to_text
from synapse_worker.store.outbox import ENDED, ended, outbox
from synapse_worker.store.run_logs import due
from synapse_worker.store.topology import EPOCH_NOW

_MOST_TOGETHER = 100
_MOST_CHARACTERS_TOGETHER = 4_000_000
"""A call takes no further write once it is that long, so that large states do not hold small ones up."""
_ENOUGH_FOR_A_SECOND_CALL = 25
"""Writes that wait while a call is under way and are sent beside it; fewer cost the server less in the next one."""


class RunStatus(StrEnum):
    """Where a run stands, as upstream writes it."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """What a producer writes before it queues a run; `envelope` is the job's payload as it goes to Redis."""

    run_id: str
    orchestration_id: str
    session_id: str | None
    tenant_id: str
    job_id: str
    queue: str
    envelope: bytes
    webhook_url: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class StepRow:
    """A finished step: `ordinal` counts the run's steps from 1, `delta` are the state keys it set.

    `tokens` and `cost_usd` are of its model requests, None where there were none.
    """

    step_id: str
    visit: int
    ordinal: int
    delta: State
    entry: State
    events: Sequence[State]
    started_at: datetime
    ended_at: datetime
    tokens: int | None = None
    cost_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Folded:
    """The whole state and history up to a step, written into the run's own row."""

    state: State
    history: Sequence[State]
    steps: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a job ended in the dead-letter queue: the function's keyword arguments and one sentence."""

    function: str
    payload: Mapping[str, object]
    error: str
    attempts: int


async def create_queued(database: Database, run: QueuedRun, *, epoch: int) -> str | None:
    """Write run row and ledger row of a new run; writing them again changes nothing.

    Args:
        epoch: of the topology by which `run.queue` was chosen.

    Returns:
        The queue that the ledger names, the one of the first writing; None when the topology has another epoch now
        and nothing was written.
    """
    row = await database.fetchrow(
        f"""
        WITH run AS (
          INSERT INTO orchestration_runs (run_id, orchestration_id, session_id, tenant_id, status, shared_state,
              step_history, waiting_for_human, total_tokens_used, total_cost_usd, created_at, job_id, webhook_url,
              webhook_secret)
          SELECT $1::text, $2, $3, $4, 'queued', '{{}}', '[]', false, 0, 0, now(), $5::text, $9, $10
           WHERE {EPOCH_NOW} = $8
          ON CONFLICT (run_id) DO NOTHING),
        job AS (
          INSERT INTO job_ledger (job_id, run_id, queue, envelope, enqueued_at)
          SELECT $5::text, $1::text, $6, $7, now() WHERE {EPOCH_NOW} = $8
          ON CONFLICT (job_id) DO NOTHING RETURNING queue)
        SELECT coalesce((SELECT queue FROM job), (SELECT queue FROM job_ledger WHERE job_id = $5::text)) AS queue
        """,  # noqa: S608 - no value in it
        run.run_id,
        run.orchestration_id,
        run.session_id,
        run.tenant_id,
        run.job_id,
        run.queue,
        run.envelope,
        epoch,
        run.webhook_url,
        run.webhook_secret,
    )
    return None if row is None else row["queue"]


# The limit says nothing to the server but that few rows come: it then finds what they change by its keys, whatever it
# knew of the tables when it made the plan that it keeps. The conditions on `status` are written so that no index serves
# them, for the same reason.
_CHECKPOINT = """
WITH asked AS (
  SELECT * FROM unnest($1::text::text[], $2::text::bigint[], $3::text::text[], $4::text::int[], $5::text::text[],
                       $6::text::text[], $7::text::text[], $8::text::text[], $9::text::int[], $10::text::text[],
                       $11::text::int[], $12::text::int[], $13::text::text[], $14::text::text[], $15::text::text[],
                       $16::text::timestamptz[], $17::text::timestamptz[], $18::text::int[], $19::text::float8[])
       AS a (run_id, claim, cursor, engine_version, current_step_id, definition, state, history, folded_steps,
             step_id, visit, ordinal, delta, entry, events, started_at, ended_at, tokens, cost_usd)
   LIMIT cardinality($1::text::text[])),
owned AS (
  UPDATE orchestration_runs r
     SET cursor = a.cursor::jsonb, engine_version = a.engine_version, current_step_id = a.current_step_id,
         definition_snapshot = coalesce(r.definition_snapshot, a.definition::jsonb),
         shared_state = coalesce(a.state::jsonb, r.shared_state),
         step_history = coalesce(a.history::jsonb, r.step_history),
         folded_steps = coalesce(a.folded_steps, r.folded_steps)
    FROM asked a
   WHERE r.run_id = a.run_id AND r.claim = a.claim AND (r.status = 'running') IS TRUE
  RETURNING r.run_id, a.step_id, a.visit, a.ordinal, r.claim, a.delta, a.entry, a.events, a.started_at, a.ended_at,
            a.tokens, a.cost_usd)
INSERT INTO run_steps (run_id, step_id, visit, ordinal, claim, delta, entry, events, started_at, ended_at, tokens,
                       cost_usd)
SELECT run_id, step_id, visit, ordinal, claim, delta::jsonb, entry::jsonb, events::jsonb, started_at, ended_at, tokens,
       cost_usd
  FROM owned
ON CONFLICT (run_id, step_id, visit) DO UPDATE SET claim = EXCLUDED.claim
   WHERE run_steps.claim = EXCLUDED.claim
RETURNING run_id
"""

_FINISH = f"""
WITH asked AS (
  SELECT * FROM unnest($1::text::text[], $2::text::bigint[], $3::text::text[], $4::text::text[], $5::text::text[],
                       $6::text::int[], $7::text::text[], $8::text::text[], $9::text::float8[], $10::text::text[],
                       $11::text::text[], $12::text::text[], $13::text::int[])
       AS a (run_id, claim, status, state, history, folded_steps, error, job_id, active_seconds,
             function, payload, why, attempts)
   LIMIT cardinality($1::text::text[])),
owned AS (
  UPDATE orchestration_runs r
     SET status = a.status, shared_state = a.state::jsonb, step_history = a.history::jsonb,
         folded_steps = a.folded_steps, error = a.error, ended_at = now()
    FROM asked a
   WHERE r.run_id = a.run_id AND r.claim = a.claim AND (r.status = 'running') IS TRUE
  RETURNING {ended("r")}, a.job_id, a.active_seconds, a.function, a.payload, a.why, a.attempts),
{outbox("owned")},
ledger AS (
  UPDATE job_ledger l
     SET outcome = o.status, owner = NULL, ended_at = now(), active_seconds = l.active_seconds + o.active_seconds
    FROM owned o
   WHERE l.job_id = o.job_id AND l.claim = o.claim),
letter AS (
  INSERT INTO dead_letter_queue (id, run_id, orchestration_id, job_function, job_payload, error_message,
      attempt_count, first_failed_at, last_failed_at, resolved)
  SELECT gen_random_uuid(), run_id, orchestration_id, function, payload::jsonb, why, attempts, now(), now(), false
    FROM owned WHERE function IS NOT NULL)
SELECT run_id FROM owned
"""  # noqa: S608 - no value in it

_ENDED_BEFORE = """
WITH asked AS (
  SELECT * FROM unnest($1::text::text[], $2::text::bigint[], $3::text::text[]) AS a (run_id, claim, status)
   LIMIT cardinality($1::text::text[]))
SELECT r.run_id FROM asked a JOIN orchestration_runs r USING (run_id)
 WHERE r.claim = a.claim AND (r.status = a.status) IS TRUE
"""


class RunWriter:
    """The writes of runs that this process owns; what many runs write at once goes in one round trip and commit."""

    def __init__(self, database: Database) -> None:
        self._checkpoints = _Together(database, _CHECKPOINT)
        self._ends = _Together(database, _FINISH, _ENDED_BEFORE)

    async def checkpoint(
        self,
        run: OwnedRun,
        step: StepRow,
        *,
        cursor: State,
        engine_version: int,
        current_step_id: str | None,
        definition: State | None,
        folded: Folded | None,
    ) -> bool:
        """Append a finished step and move the run's cursor.

        Args:
            definition: the snapshot to keep, with a run's first checkpoint; else None.
            folded: state and history to write into the run's row now; None leaves them for later.

        Returns:
            False when another claim owns the run, or it is not running any more: nothing was written.
            Calling it again after an answer got lost writes nothing twice.
        """
        state = None if folded is None else to_jsonb(folded.state)
        history = None if folded is None else to_jsonb(list(folded.history))
        delta, entry, events = to_jsonb(step.delta), to_jsonb(step.entry), to_jsonb(list(step.events))
        kept = None if definition is None else to_jsonb(definition)
        return await self._checkpoints.write(
            len(delta) + len(entry) + len(events) + len(state or "") + len(history or "") + len(kept or ""),
            run.run_id,
            run.claim,
            to_jsonb(cursor),
            engine_version,
            current_step_id,
            kept,
            state,
            history,
            None if folded is None else folded.steps,
            step.step_id,
            step.visit,
            step.ordinal,
            delta,
            entry,
            events,
            step.started_at,
            step.ended_at,
            step.tokens,
            step.cost_usd,
        )

    async def finish(
        self,
        run: OwnedRun,
        status: RunStatus,
        *,
        folded: Folded,
        active_seconds: float,
        error: str | None = None,
        dead_letter: DeadLetter | None = None,
    ) -> bool:
        """End a run: its row, the ledger's outcome, a dead letter when it failed, and what its webhook is told.

        All or nothing.

        Returns:
            False when another claim owns the run: nothing was written. True also when a call whose answer got
            lost had ended the run already.
        """
        state, history = to_jsonb(folded.state), to_jsonb(list(folded.history))
        payload = None if dead_letter is None else to_jsonb(dict(dead_letter.payload))
        return await self._ends.write(
            len(state) + len(history) + len(payload or ""),
            run.run_id,
            run.claim,
            status,
            state,
            history,
            folded.steps,
            None if error is None else to_text(error),
            run.job_id,
            active_seconds,
            None if dead_letter is None else dead_letter.function,
            payload,
            None if dead_letter is None else to_text(dead_letter.error),
            None if dead_letter is None else dead_letter.attempts,
        )


class _Write(NamedTuple):
    size: int
    arguments: tuple[object, ...]
    answer: asyncio.Future[bool]

    @property
    def run_id(self) -> object:
        return self.arguments[0]


class _Together:
    """One statement for many writers: what comes while a call is under way goes together in the next one.

    When much comes meanwhile, it does not wait: there are two calls at most.

    The statement takes one array for each argument of `write`, of which the first is the run's id, and returns the
    `run_id`s that the writers own. `written_before`, if there is one, takes the first three arrays of those that it
    did not return, and returns the ones that an earlier call had written whose answer got lost.
    A writer that is cancelled before its turn writes nothing; once sent, only the claim number can stop a write.
    The writes of one call are committed together, so when one of them is refused for what it holds, each is
    tried alone: nobody fails for a neighbour.
    """

    def __init__(self, database: Database, statement: str, written_before: str = "") -> None:
        self._database = database
        self._statement = statement
        self._written_before = written_before
        self._waiting: deque[_Write] = deque()
        self._senders: list[asyncio.Task[None]] = []
        self._gathering = False
        self._under_way: set[object] = set()
        """Runs in calls that are not answered yet."""

    async def write(self, size: int, run_id: str, *arguments: object) -> bool:
        """Run the statement, whose arguments have about `size` characters; returns whether the run is owned."""
        write = _Write(size, (run_id, *arguments), asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        self._senders = [sender for sender in self._senders if not sender.done()]
        enough = len(self._waiting) >= _ENOUGH_FOR_A_SECOND_CALL and not self._gathering
        if not self._senders or (enough and len(self._senders) == 1):
            # It writes for many runs: what it calls belongs to the trace of none of them.
            self._senders.append(asyncio.create_task(self._send_all(), context=Context()))
        if not tracing.is_on():
            return await write.answer
        with tracing.sql(self._statement):
            return await write.answer

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                batch = self._next()
                if not batch:
                    return  # the next one's run is being written: who does that goes on with it
                await self._send_as_one(batch)
        except BaseException:  # only when this task itself is stopped
            for write in self._waiting:
                write.answer.cancel()
            self._waiting.clear()
            raise

    async def _send_as_one(self, batch: Sequence[_Write]) -> None:
        runs = {write.run_id for write in batch}
        self._under_way |= runs
        try:
            await self._send(batch)
        finally:
            self._under_way -= runs
            for write in batch:
                write.answer.cancel()  # no effect on those that are answered

    async def _gather(self) -> None:
        """Let runs that are about to write do so: costs nothing when idle, and a busy process sends less often."""
        self._gathering = True
        seen = 0
        while seen < len(self._waiting) < _MOST_TOGETHER:
            seen = len(self._waiting)
            await asyncio.sleep(0)
        self._gathering = False

    def _next(self) -> list[_Write]:
        """Return what goes into the next call, each run once: a statement changes a row only once.

        A run's second write waits for its first: the later cursor must be the one that stays.
        """
        batch: dict[object, _Write] = {}
        size = 0
        while self._waiting and len(batch) < _MOST_TOGETHER and size < _MOST_CHARACTERS_TOGETHER:
            if self._waiting[0].run_id in batch or self._waiting[0].run_id in self._under_way:
                break
            write = self._waiting.popleft()
            if not write.answer.done():
                batch[write.run_id] = write
                size += write.size
        # A run before those inside it, as whoever pays for turns takes them: nobody waits in a circle.
        return [batch[run_id] for run_id in sorted(batch, key=str)]

    async def _send(self, batch: Sequence[_Write]) -> None:
        try:
            owned = await self._ask(self._statement, [write.arguments for write in batch])
            if self._written_before and len(owned) < len(batch):
                others = [write.arguments[:3] for write in batch if write.run_id not in owned]
                owned |= await self._ask(self._written_before, others)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, StoreUnavailable | StoreRefused):
                for write in batch:
                    await self._send([write])
                return
            for write in batch:
                if not write.answer.done():
                    write.answer.set_exception(error)
            return
        for write in batch:
            if not write.answer.done():
                write.answer.set_result(write.run_id in owned)

    async def _ask(self, statement: str, writes: Sequence[tuple[object, ...]]) -> set[object]:
        rows = await self._database.fetch(statement, *map(array, zip(*writes, strict=True)))
        return {row["run_id"] for row in rows}


def _inside(status: str) -> str:
    """Return the CTEs that end, with the runs of the CTE `run`, what is open inside them, and note that logs are due.

    Args:
        status: how they end, as SQL.
    """
    return f"""
inside AS (
  UPDATE orchestration_runs
     SET status = {status}, error = 'the run that it is nested in has ended', ended_at = now(),
         waiting_for_human = false
   WHERE root_run_id = (SELECT run_id FROM run) AND status IN ('running', 'paused')
  RETURNING run_id, tenant_id, claim, status, error, ended_at),
{due("inside", "inside_logs")}"""  # noqa: S608 - no value in it


_REJECT = f"""
WITH ledger AS (
  INSERT INTO job_ledger AS l (job_id, run_id, queue, envelope, enqueued_at, ended_at, outcome)
  VALUES ($1, $2::text, $3, $4, now(), now(), $9)
  ON CONFLICT (job_id) DO UPDATE SET outcome = EXCLUDED.outcome, owner = NULL, ended_at = now()
     WHERE l.outcome IS NULL
  RETURNING job_id),
run AS (
  UPDATE orchestration_runs SET status = 'failed', error = $7::text, ended_at = now()
   WHERE run_id = $2::text AND status = 'queued' AND EXISTS (SELECT 1 FROM ledger) RETURNING {ENDED}),
{outbox("run")},
{_inside("'failed'")},
letter AS (
  INSERT INTO dead_letter_queue (id, run_id, orchestration_id, job_function, job_payload, error_message,
      attempt_count, first_failed_at, last_failed_at, resolved)
  SELECT gen_random_uuid(), $2::text, (SELECT orchestration_id FROM run), $5::text, $6::jsonb, $7::text, $8::int,
         now(), now(), false
    FROM ledger)
SELECT EXISTS (SELECT 1 FROM run) AS ended
"""  # noqa: S608 - no value in it


async def reject(
    database: Database,
    *,
    job_id: str,
    run_id: str,
    queue: str,
    envelope: bytes | None,
    letter: DeadLetter,
    outcome: str = "failed",
) -> bool:
    """End a job that cannot even start (payload unreadable or gone, unknown function): once, however often called.

    Args:
        run_id: of the run that it was to do.
        outcome: what the ledger says of the job, failed or expired.

    Returns:
        Whether a waiting run has failed with it.
    """
    row = await database.fetchrow(
        _REJECT,
        job_id,
        run_id,
        queue,
        envelope,
        letter.function,
        to_jsonb(dict(letter.payload)),
        to_text(letter.error),
        letter.attempts,
        outcome,
    )
    return bool(row and row["ended"])


_STANDS = "CASE WHEN root_run_id IS NULL THEN status ELSE 'nested in ' || root_run_id END"
"""A run's status as who wants to change it is told: one that is nested in another waits, goes on and ends with that."""

_CANCEL_WAITING = f"""
-- Locked first: whoever is told `queued` takes it that the run is cancelled, and a worker may be taking it just now.
WITH was AS (
  SELECT run_id, {_STANDS} AS status FROM orchestration_runs WHERE run_id = $1 FOR UPDATE),
run AS (
  UPDATE orchestration_runs SET status = 'cancelled', error = 'cancelled', ended_at = now(), waiting_for_human = false
   WHERE run_id = (SELECT run_id FROM was WHERE status IN ('queued', 'paused')) RETURNING job_id, {ENDED}),
{outbox("run")},
{_inside("'cancelled'")},
ledger AS (
  UPDATE job_ledger SET outcome = 'cancelled', owner = NULL, ended_at = now()
   WHERE job_id = (SELECT job_id FROM run) AND outcome IS NULL)
SELECT (SELECT status FROM was) AS status
"""  # noqa: S608 - no value in it


async def cancel_queued(database: Database, run_id: str) -> str:
    """Cancel a run that waits.

    Returns:
        The status that it had, "nested in" another run for one that ends with that, "" for a run that does not exist.
    """
    row = await database.fetchrow(_CANCEL_WAITING, run_id)
    return "" if row is None or row["status"] is None else str(row["status"])


async def requeue(
    database: Database,
    run_id: str,
    from_statuses: Sequence[RunStatus],
    *,
    job_id: str,
    queue: str,
    envelope: bytes,
    epoch: int,
) -> str | None:
    """Make a run that stands still a queued one under a new job, and its dead letters dealt with.

    All or nothing; the queue entry comes after.

    Args:
        from_statuses: which it may have: failed and cancelled, or paused.
        epoch: of the topology by which `queue` was chosen.

    Returns:
        The status that the run had; another than those when nothing was written, such as "nested in" another run;
        "" = no such run.
        None when the topology has another epoch now and nothing was written.
    """
    row = await database.fetchrow(
        f"""
        WITH was AS (
          SELECT run_id, {_STANDS} AS status FROM orchestration_runs WHERE run_id = $1 FOR UPDATE),
        run AS (
          UPDATE orchestration_runs r
             SET status = 'queued', job_id = $2::text, ended_at = NULL, error = NULL,
                 deadline = CASE WHEN was.status = 'paused' THEN r.deadline END,
                 waiting_for_human = false, human_deadline = NULL
            FROM was
           WHERE r.run_id = was.run_id AND was.status = ANY($6::text[]) AND {EPOCH_NOW} = $5
          RETURNING r.run_id),
        letters AS (
          UPDATE dead_letter_queue SET resolved = true
           WHERE run_id IN (SELECT run_id FROM run) AND resolved IS NOT TRUE),
        job AS (
          INSERT INTO job_ledger (job_id, run_id, queue, envelope, enqueued_at)
          SELECT $2::text, run_id, $3, $4, now() FROM run)
        SELECT (SELECT status FROM was) AS status, {EPOCH_NOW} = $5 AS by_this_epoch
        """,  # noqa: S608 - no value in it
        run_id,
        job_id,
        queue,
        envelope,
        epoch,
        list(from_statuses),
    )
    if row is None or not row["by_this_epoch"]:
        return None
    return "" if row["status"] is None else str(row["status"])


async def start_clock(database: Database, run: OwnedRun, seconds: float) -> float | None:
    """Note when a run has to have ended, once, counted from now; later calls leave it as it is.

    Returns:
        Seconds left, below zero when the time is over; None when another claim owns the run.
    """
    row = await database.fetchrow(
        """
        UPDATE orchestration_runs SET deadline = coalesce(deadline, now() + make_interval(secs => $3))
         WHERE run_id = $1 AND claim = $2 AND status = 'running'
        RETURNING extract(epoch FROM deadline - now())::float8 AS seconds_left
        """,
        run.run_id,
        run.claim,
        seconds,
    )
    return None if row is None else float(row["seconds_left"])


@dataclass(frozen=True, slots=True)
class OverdueRun:
    """A run that waits and whose time is over.

    Attributes:
        unanswered: the human step whose human_timeout_seconds are over; None = it is the run's timeout_minutes.
        envelope: its job's payload, if the ledger has it.
    """

    run_id: str
    orchestration_id: str
    unanswered: str | None
    envelope: bytes | None


async def past_deadline(database: Database, *, limit: int) -> list[OverdueRun]:
    """Return waiting runs that should have ended by now; a running one is ended by its owner."""
    rows = await database.fetch(
        """
        WITH late AS (
          (SELECT run_id, NULL AS unanswered FROM orchestration_runs
            WHERE deadline < now() AND status IN ('queued', 'paused') AND root_run_id IS NULL
            ORDER BY deadline LIMIT $1)
          UNION ALL
          (SELECT run_id, coalesce(current_step_id, '') FROM orchestration_runs
            WHERE human_deadline < now() AND status = 'paused' ORDER BY human_deadline LIMIT $1))
        SELECT r.run_id, r.orchestration_id, late.unanswered, l.envelope
          FROM late JOIN orchestration_runs r USING (run_id) LEFT JOIN job_ledger l ON l.job_id = r.job_id
        """,
        limit,
    )
    return [OverdueRun(row["run_id"], row["orchestration_id"], row["unanswered"], row["envelope"]) for row in rows]


_TIME_OUT = f"""
WITH run AS (
  UPDATE orchestration_runs SET status = 'failed', error = $2, ended_at = now(), waiting_for_human = false
   WHERE run_id = $1 AND (status IN ('queued', 'paused') AND deadline < now()
         OR status = 'paused' AND human_deadline < now()) RETURNING job_id, {ENDED}),
{outbox("run")},
{_inside("'failed'")},
ledger AS (
  UPDATE job_ledger SET outcome = 'failed', owner = NULL, ended_at = now()
   WHERE job_id = (SELECT job_id FROM run) AND outcome IS NULL),
letter AS (
  INSERT INTO dead_letter_queue (id, run_id, orchestration_id, job_function, job_payload, error_message,
      attempt_count, first_failed_at, last_failed_at, resolved)
  SELECT gen_random_uuid(), run_id, orchestration_id, $3, $4::jsonb, $2, $5, now(), now(), false FROM run)
SELECT EXISTS (SELECT 1 FROM run) AS ended
"""  # noqa: S608 - no value in it


async def time_out(database: Database, run_id: str, letter: DeadLetter) -> bool:
    """Fail a waiting run whose time is over; False when it is not waiting any more."""
    row = await database.fetchrow(
        _TIME_OUT, run_id, letter.error, letter.function, to_jsonb(dict(letter.payload)), letter.attempts
    )
    return bool(row and row["ended"])


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as listings show it; `state` and `history` are whole only once the run has ended."""

    run_id: str
    orchestration_id: str
    tenant_id: str
    status: str
    current_step_id: str | None
    worker_id: str | None
    error: str | None
    steps_done: int
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    state: State
    history: list[State]
    human_prompt: str | None
    """What somebody is asked, while the run is paused; `human_fields` are to be filled in, if there are any."""
    human_fields: list[State]
    session_id: str | None
    total_tokens_used: int
    total_cost_usd: float


_VIEW = """
SELECT r.run_id, r.orchestration_id, r.tenant_id, r.status, r.current_step_id, r.worker_id, r.error, r.created_at,
       r.started_at, r.ended_at, r.shared_state::text, r.step_history::text,
       CASE WHEN r.status = 'paused' THEN r.human_prompt END AS human_prompt,
       CASE WHEN r.status = 'paused' THEN r.human_fields::text END AS human_fields,
       r.session_id, coalesce(r.total_tokens_used, 0) AS total_tokens_used,
       coalesce(r.total_cost_usd, 0) AS total_cost_usd,
       (SELECT count(*) FROM run_steps s WHERE s.run_id = r.run_id) AS steps_done
  FROM orchestration_runs r
"""


async def recent(database: Database, *, limit: int, status: str | None) -> list[RunView]:
    """Return the newest runs, newest first."""
    rows = await database.fetch(
        _VIEW + " WHERE ($2::text IS NULL OR r.status = $2) ORDER BY r.created_at DESC NULLS LAST LIMIT $1",
        limit,
        status,
    )
    return [_view(row) for row in rows]


async def get(database: Database, run_ids: Sequence[str]) -> list[RunView]:
    """Return the named runs that exist, in no particular order."""
    rows = await database.fetch(_VIEW + " WHERE r.run_id = ANY($1::text[])", list(run_ids))
    return [_view(row) for row in rows]


def _view(row: asyncpg.Record) -> RunView:
    return RunView(
        run_id=row["run_id"],
        orchestration_id=row["orchestration_id"],
        tenant_id=row["tenant_id"],
        status=row["status"],
        current_step_id=row["current_step_id"],
        worker_id=row["worker_id"],
        error=row["error"],
        steps_done=row["steps_done"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        state=from_jsonb(row["shared_state"], {}),
        history=from_jsonb(row["step_history"], []),
        human_prompt=row["human_prompt"],
        human_fields=from_jsonb(row["human_fields"], []),
        session_id=row["session_id"],
        total_tokens_used=row["total_tokens_used"],
        total_cost_usd=row["total_cost_usd"],
    )
