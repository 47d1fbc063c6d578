"""A run from where it stands to its end: starts what `runner` decides, keeps a checkpoint of each step, says it.

Branches of a parallel step are tasks of their own; their checkpoints go one after another, so that each cursor that is
stored holds what finished before it and nothing else. How a run ends, is given back or fails is `run_job`'s.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import lru_cache, partial
from typing import cast

from synapse_worker import run_events, tracing
from synapse_worker.engine import runner
from synapse_worker.engine.errors import EngineError
from synapse_worker.engine.frames import ENGINE_VERSION, Asked, Cursor, Path
from synapse_worker.engine.json_values import JsonObject, JsonValue, as_stored
from synapse_worker.engine.model import Definition, Step, StepType
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.runner import Ask, Enter, Execute, Fail, Finish, Leave, LimitReached, Task
from synapse_worker.engine.steps import EXECUTORS, NestedResult, StepContext, human
from synapse_worker.engine.steps.suspension import AsksHuman, Suspended
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, StoreRefused, StoreUnavailable
from synapse_worker.loop_results import LoopResults
from synapse_worker.model_work import ModelWork
from synapse_worker.store.claims import NEWEST_STEPS, OwnedRun, State
from synapse_worker.store.database import to_jsonb
from synapse_worker.store.pauses import Pause, Question
from synapse_worker.store.runs import Folded, RunWriter, StepRow
from synapse_worker.surroundings import Surroundings

FOLD_SECONDS = 3.0
_FOLD_SHARE = 16
"""What a run's row shows of a running run is at most a sixteenth of its steps old, or some seconds: written whole with
each slow step, its history would cost the square of its length."""


class Walked(Enum):
    """Where a walk has come to."""

    FINISHED = auto()
    """The run is completed."""
    HALTED = auto()
    """It was told to halt, and no step is under way."""
    PAUSED = auto()
    """Nothing can go on before a human has answered what `Walk.asks` says."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a human has answered (a text, or an object of the fields), and to which question."""

    value: JsonValue
    asked: Asked


Nest = Callable[["Walk", Execute, Mapping[str, object], JsonValue, int], Awaitable[NestedResult]]
"""`steps.context.Nested`, told which walk and step it is for."""


class Walk:
    """One run on its way. `state`, `history` and `steps_done` are those of its last checkpoint."""

    def __init__(
        self,
        run: OwnedRun,
        definition: Definition,
        document: State,
        cursor: Cursor,
        state: State,
        surroundings: Surroundings,
        writer: RunWriter,
        nest: Nest,
        *,
        answer: Answer | None,
        around: Walk | None = None,
        model_work: ModelWork | None = None,
    ) -> None:
        """Stand where the run stands.

        Args:
            document: what `definition` was read from; it is kept with the run's first checkpoint.
            state: of the run as far as `cursor`.
            nest: runs an orchestration inside a step.
            answer: what the job brought to what it was paused for.
            around: the run that this one is nested in.
            model_work: what steps that talk to models need; None where no step of the job does.
        """
        self.state = state
        # A run that had failed does its failed step again; only the new try stays in its history.
        self.history = [entry for entry in run.history if entry.get("status") != "failed" or entry.get("went_on")]
        self.steps_done = run.steps_done
        self.run = run
        self.definition = definition
        self._document = document
        self._cursor = cursor
        self._nest = nest
        self.answer = answer
        self.depth: int = 0 if around is None else around.depth + 1
        self.root: OwnedRun = run if around is None else around.root
        """The run that has the job."""
        self._around: Mapping[str, Definition] = (
            {} if around is None else {around.run.run_id: around.definition, **around._around}
        )
        self.asks: AsksHuman | None = None
        """What a walk that has paused waits for."""
        self.halts: Callable[[], bool] = lambda: False
        self._suspended: dict[Path, Suspended] = {}
        """Steps that stopped on their way; they are not begun again by this walk."""
        self.surroundings = surroundings
        self.writer = writer
        self.model_work = model_work
        self._writing = asyncio.Lock()
        self._folded_at = time.monotonic()
        self._folded_steps = run.folded_steps
        self._results = LoopResults(cursor.loops(), run.steps)
        self._entered: list[State] = []
        """Events of loops and parallel steps that began since the last checkpoint; the next one keeps them."""

    @property
    def folded(self) -> Folded:
        """The whole run as far as its last checkpoint."""
        return Folded(self.state, self.history, self.steps_done)

    @property
    def why_paused(self) -> Pause:
        """What to write of a walk that has paused."""
        asks = self.asks
        assert asks is not None  # noqa: S101 - what a walk is paused for
        inside = asks.run_id != self.run.run_id
        question = Question(
            asks.question.step.id,
            asks.question.prompt,
            asks.question.fields,
            asks.question.context,
            asks.run_id if inside else None,
            asks.orchestration_id if inside else None,
        )
        # How long may be waited is noted where the job is, so that the whole run ends.
        timeout = asks.question.step.human_timeout_seconds if self.root is self.run else None
        return Pause(question, dict(self._cursor.to_json()), ENGINE_VERSION, self._document, self.folded, timeout)

    async def announce(self) -> None:
        """Publish who took the run, and again what a crashed owner may not have got into the stream."""
        run = self.run
        taken = run_events.picked_up(run.run_id, claim=run.claim, worker_id=self.surroundings.settings.worker_id)
        if run.cursor is None:
            self._hand([taken, run_events.started(run.run_id, self.definition)])
            return
        try:
            seen = await self.surroundings.events.tail_ids(run.run_id) if run.steps else set()
        except (StoreUnavailable, StoreRefused):
            seen = set()  # an event twice with the same id does no harm, a missing one does
        missing: list[State] = []
        for step in reversed(run.steps[-NEWEST_STEPS:]):
            lost = [event for event in step.events if event.get("event_id") not in seen]
            missing[:0] = lost
            if len(lost) < len(step.events):  # events are written in order, so all before it are there
                break
        self._hand([*missing, taken])

    async def go(self, halts: Callable[[], bool]) -> Walked:
        """Walk on.

        Args:
            halts: asked before a step, or a turn of one, begins; once it says so, none begins any more.

        Raises:
            JobFailed, JobRetry: a step has failed; the others that were under way have been stopped.
            OwnershipLost: another claim owns the run.
        """
        self.halts = halts
        under_way: dict[Path, asyncio.Task[None]] = {}
        try:
            while True:
                halted = halts()
                moved = False
                held_back = False
                asks: list[Ask] = []
                begin: list[Execute] = []
                for decision in runner.decide(self.definition, self._cursor):
                    match decision:
                        case Fail():
                            raise JobFailed(decision.sentence)
                        case Finish():
                            return Walked.FINISHED
                        case LimitReached():
                            self._cursor = decision.cursor
                            self._hand([run_events.limit_reached(self.run.run_id, decision)])
                            moved = True
                        case Leave():
                            await self._leave(decision)
                            moved = True
                        case Ask():
                            if (answer := self._answer_to(decision)) is not None:
                                await self._answered(decision, answer)
                                moved = True
                            else:
                                asks.append(decision)
                        case Execute() if decision.path in under_way:
                            pass
                        case Execute() if (inner := self._suspended.get(decision.path)) is not None:
                            held_back = held_back or not isinstance(inner, AsksHuman)
                        case Enter() | Execute() if halted:
                            held_back = True
                        case Enter():
                            await self._enter(decision)
                            moved = True
                        case Execute():
                            begin.append(decision)
                    if moved:  # other branches may have moved too: what was decided beside it may not hold any more
                        break
                if moved:
                    continue
                if not under_way and len(begin) == 1:
                    await self._do(begin[0])
                    continue
                for task in begin:
                    under_way[task.path] = asyncio.create_task(self._do(task))
                if not under_way:
                    return Walked.HALTED if held_back else self._pause(asks)
                await asyncio.wait(under_way.values(), return_when=asyncio.FIRST_COMPLETED)
                for path in [path for path, task in under_way.items() if task.done()]:
                    under_way.pop(path).result()
        finally:
            await _stop(under_way.values())

    async def _do(self, task: Execute) -> None:
        """Do one step up to its checkpoint."""
        with tracing.step(task.step.id, task.step.type, task.visit):
            await self._execute(task)

    async def _execute(self, task: Execute) -> None:
        run_id, step, visit = self.run.run_id, task.step, task.visit
        self._hand([run_events.step_start(run_id, step, visit)])
        started_at, began = datetime.now(UTC), time.monotonic()
        given = None
        if self.model_work is not None:
            given = await self.model_work.means(
                self.run, self.definition, self._document, task, self.halts, self._around
            )
        means, turns = (None, None) if given is None else given
        context = StepContext(
            definition=self.definition,
            sandbox=self.surroundings.sandbox,
            idempotency_key=f"{run_id}:{step.id}:{visit}",
            nested=partial(self._nest, self, task),
            past=self.history,
            means=means,
        )
        try:
            # A store of ours that a step needs is waited for, outside the step's own time, as at a checkpoint.
            outcome = await self.surroundings.persist(lambda: self._in_time(step, context))
        except Suspended as reason:
            self._suspended[task.path] = reason
            return
        except EngineError as error:
            sentence = f"{step.title}: {error}"
            if not error.final:
                raise JobRetry(sentence) from None
            if turns is not None:
                await turns.forget()
            raise self._failed(task, started_at, sentence) from None
        if outcome is None:
            sentence = f"{step.title} took longer than its timeout_seconds ({step.timeout_seconds:g})"
            if turns is not None:
                await turns.forget()
            if not task.in_loop:
                raise self._failed(task, started_at, sentence)
            await self._go_on_without(task, started_at, sentence)
            return
        duration = time.monotonic() - began
        said: list[Mapping[str, object]] = [*outcome.events, run_events.step_complete(step, duration)]
        events = run_events.numbered(run_id, step, visit, said, first=1)
        await self._checkpoint(task, outcome, started_at, duration, events)
        if turns is not None:
            await turns.forget()

    async def _in_time(self, step: Step, context: StepContext) -> StepOutcome | None:
        """Do a step's work; None = it took longer than its timeout_seconds."""
        try:
            async with asyncio.timeout(step.timeout_seconds) as timer:
                return await EXECUTORS[step.type](step, self.state, context)
        except TimeoutError:
            if not timer.expired():
                raise
            return None

    def _failed(self, task: Execute, started_at: datetime, sentence: str) -> JobFailed:
        duration = (datetime.now(UTC) - started_at).total_seconds()
        self.history.append(_entry(task, "failed", started_at, duration, sentence))
        self._hand([self._error(task, sentence)])
        return JobFailed(sentence)

    async def _go_on_without(self, task: Execute, started_at: datetime, sentence: str) -> None:
        """Record a step of a loop as failed: the loop goes on behind it."""
        duration = (datetime.now(UTC) - started_at).total_seconds()
        outcome = StepOutcome(task.step.next_step_id)
        await self._checkpoint(task, outcome, started_at, duration, [self._error(task, sentence)], sentence)

    def _error(self, task: Execute, sentence: str) -> State:
        return run_events.step_error(self.run.run_id, task.step, task.visit, sentence, claim=self.run.claim)

    def _pause(self, asks: list[Ask]) -> Walked:
        """Settle on one question, of this run or of one nested in it, and note in the cursor which it is."""
        if asks:
            task = asks[0]
            question = human.question(task.step, task.visit, self.state)
            self._hand([run_events.step_start(self.run.run_id, task.step, task.visit)])
            self.asks = AsksHuman(
                question, run_id=self.run.run_id, orchestration_id=self.definition.id, since=time.time()
            )
        else:
            self.asks = next(reason for reason in self._suspended.values() if isinstance(reason, AsksHuman))
        step, visit = self.asks.question.step, self.asks.question.visit
        self._cursor = replace(self._cursor, asked=Asked(self.asks.run_id, step.id, visit, self.asks.since))
        return Walked.PAUSED

    def _answer_to(self, task: Ask) -> Answer | None:
        """Return the answer that this job brought, if it was asked for by just this visit."""
        if self.answer is None:
            return None
        asked = self.answer.asked
        fits = (asked.run_id, asked.step_id, asked.visit) == (self.run.run_id, task.step.id, task.visit)
        return self.answer if fits else None

    async def _answered(self, task: Ask, answer: Answer) -> None:
        since = answer.asked.since
        duration = max(0.0, time.time() - since) if since else 0.0
        started_at = datetime.now(UTC) - timedelta(seconds=duration)
        said = [run_events.step_complete(task.step, duration)]
        events = run_events.numbered(self.run.run_id, task.step, task.visit, said, first=1)
        await self._checkpoint(task, human.answered(task.step, answer.value), started_at, duration, events)

    async def _enter(self, task: Enter) -> None:
        async with self._writing:  # the checkpoint under way goes on from the cursor that it began with
            if task.path and self._is_over:
                return
            self._cursor = runner.enter(self._cursor, task, since=self.steps_done, began=time.time())
            events = run_events.entered(self.run.run_id, task.step, task.visit)
            self._entered += events
            self._hand(events)

    async def _leave(self, task: Leave) -> None:
        step = task.step
        duration = max(0.0, time.time() - task.began)
        output: JsonObject = {}
        if step.type is StepType.LOOP:
            output = self._results.of(step, self.definition)
        events = run_events.left(self.run.run_id, step, task.visit, duration)
        started_at = datetime.fromtimestamp(task.began, UTC)
        await self._checkpoint(task, StepOutcome(step.next_step_id, output), started_at, duration, events)

    async def _checkpoint(
        self,
        task: Execute | Leave | Ask,
        outcome: StepOutcome,
        started_at: datetime,
        duration: float,
        events: list[State],
        error: str | None = None,
    ) -> None:
        """Write one finished step, with the cursor behind it, then publish its events.

        Raises:
            OwnershipLost: another claim owns the run.
        """
        entry = _entry(task, "completed" if error is None else "failed", started_at, duration, error)
        entry |= outcome.history
        if error is not None:
            entry["went_on"] = True
        output = cast(State, as_stored(outcome.output))
        async with self._writing:
            if task.path and self._is_over:  # an end step of another branch came first
                return
            after = runner.advance(self.definition, self._cursor, task, outcome.next_step_id)
            if (loop := runner.iteration_begun(self.definition, after, task.path)) is not None:
                step = self.definition.steps[loop.step_id]
                visit = after.visits_of(loop.step_id) + 1
                events = [*events, run_events.iteration(self.run.run_id, step, visit, loop.iteration)]
            ordinal = self.steps_done + 1
            row = StepRow(
                task.step.id,
                task.visit,
                ordinal,
                output,
                entry,
                [*self._entered, *events],
                started_at,
                datetime.now(UTC),
                outcome.tokens or None,
                float(outcome.cost_usd) if outcome.tokens else None,
            )
            # The first checkpoint also keeps what the run started with: its state and its definition.
            first = self.run.cursor is None and ordinal == 1
            fold = first or self._fold_is_due(ordinal)
            folded = Folded({**self.state, **output}, [*self.history, entry], ordinal) if fold else None
            written = await self.surroundings.persist(
                lambda: self.writer.checkpoint(
                    self.run,
                    row,
                    cursor=dict(after.to_json()),
                    engine_version=ENGINE_VERSION,
                    current_step_id=after.current_step_id,
                    definition=self._document if first else None,
                    folded=folded,
                )
            )
            if not written:
                raise OwnershipLost(self.run.run_id)
            self._cursor = after
            self.state.update(output)
            self.history.append(entry)
            self.steps_done = ordinal
            self._entered = []
            if task.loop is not None:
                self._results.add(task.loop, task.step, output)
            if fold:
                self._folded_at, self._folded_steps = time.monotonic(), ordinal
            self.surroundings.metrics.step_duration(task.step.type, duration)
            self._hand(events)

    def _fold_is_due(self, ordinal: int) -> bool:
        grown = (ordinal - self._folded_steps) * _FOLD_SHARE >= ordinal
        return grown and time.monotonic() - self._folded_at > FOLD_SECONDS

    @property
    def _is_over(self) -> bool:
        return self._cursor.current_step_id is None

    def _hand(self, events: list[State]) -> None:
        self.surroundings.events.hand(self.run.run_id, self.run.claim, events)


def parsed(document: Mapping[str, object]) -> Definition:
    """Return the definition of a stored document; read once for all runs of the same content.

    Raises:
        DefinitionError: it cannot be run.
    """
    return _parsed(to_jsonb(document))


@lru_cache(maxsize=128)
def _parsed(text: str) -> Definition:
    return Definition.parse(json.loads(text))


async def _stop(tasks: Collection[asyncio.Task[None]]) -> None:
    """Interrupt what is under way and wait until it has ended; what it was doing leaves no trace."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


def _entry(task: Task, status: str, started_at: datetime, duration: float, error: str | None) -> State:
    step: Step = task.step
    entry: State = {
        "step_id": step.id,
        "step_name": step.name,
        "step_type": step.type,
        "status": status,
        "started_at": started_at.isoformat(),
        "ended_at": datetime.now(UTC).isoformat(),
        "duration_seconds": round(duration, 3),
        "output_key": step.output_key,
        "error": error,
    }
    if task.loop is not None:
        entry |= {"loop_step_id": task.loop.step_id, "iteration": task.loop.iteration}
    return entry
