"""A run from where it stands to its end: starts what `runner` decides, keeps a checkpoint of each step, says it.

Branches of a parallel step are tasks of their own; their checkpoints go one after another, so that each cursor that is
stored holds what finished before it and nothing else. How a run ends, is given back or fails is `run_job`'s.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from enum import Enum, auto

from synapse_worker import run_events
from synapse_worker.engine import runner
from synapse_worker.engine.errors import EngineError, HandOver
from synapse_worker.engine.frames import ENGINE_VERSION, Cursor, Path
from synapse_worker.engine.json_values import JsonObject
from synapse_worker.engine.model import Definition, Step, StepType
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.runner import Enter, Execute, Fail, Finish, Leave, LimitReached, Task
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, StoreRefused, StoreUnavailable
from synapse_worker.loop_results import LoopResults
from synapse_worker.model_work import ModelWork
from synapse_worker.store.claims import OwnedRun, State
from synapse_worker.store.runs import Folded, RunWriter, StepRow
from synapse_worker.surroundings import Surroundings

_FOLD_SECONDS = 3.0
_LOST_AT_MOST = 32
"""Steps at the end of a run whose events may not be in its stream yet: events are written in the background."""


class Walked(Enum):
    """Where a walk has come to."""

    FINISHED = auto()
    """The run is completed."""
    HALTED = auto()
    """It was told to halt, and no step is under way."""


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
        model_work: ModelWork | None = None,
    ) -> None:
        """Stand where the run stands.

        Args:
            document: what `definition` was read from; it is kept with the run's first checkpoint.
            state: of the run as far as `cursor`.
            model_work: what steps that talk to models need; None where no step does.
        """
        self.state = state
        # A run that had failed does its failed step again; only the new try stays in its history.
        self.history = [entry for entry in run.history if entry.get("status") != "failed" or entry.get("went_on")]
        self.steps_done = run.steps_done
        self._run = run
        self._definition = definition
        self._document = document
        self._cursor = cursor
        self._with = surroundings
        self._writer = writer
        self._model_work = model_work
        self._halts: Callable[[], bool] = lambda: False
        self._writing = asyncio.Lock()
        self._folded_at = time.monotonic()
        self._results = LoopResults(cursor.loops(), run.steps)
        self._entered: list[State] = []
        """Events of loops and parallel steps that began since the last checkpoint; the next one keeps them."""

    @property
    def folded(self) -> Folded:
        """The whole run as far as its last checkpoint."""
        return Folded(self.state, self.history, self.steps_done)

    async def announce(self) -> None:
        """Publish who took the run, and again what a crashed owner may not have got into the stream."""
        run = self._run
        taken = run_events.picked_up(run.run_id, claim=run.claim, worker_id=self._with.settings.worker_id)
        if run.cursor is None:
            self._hand([taken, run_events.started(run.run_id, self._definition)])
            return
        try:
            seen = await self._with.events.tail_ids(run.run_id) if run.steps else set()
        except (StoreUnavailable, StoreRefused):
            seen = set()  # an event twice with the same id does no harm, a missing one does
        missing: list[State] = []
        for step in reversed(run.steps[-_LOST_AT_MOST:]):
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
        self._halts = halts
        under_way: dict[Path, asyncio.Task[None]] = {}
        try:
            while True:
                halted = halts()
                moved = False
                begin: list[Execute] = []
                for decision in runner.decide(self._definition, self._cursor):
                    match decision:
                        case Fail():
                            raise JobFailed(decision.sentence)
                        case Finish():
                            return Walked.FINISHED
                        case LimitReached():
                            self._cursor = decision.cursor
                            self._hand([run_events.limit_reached(self._run.run_id, decision)])
                            moved = True
                        case Leave():
                            await self._leave(decision)
                            moved = True
                        case Enter() if not halted:
                            self._enter(decision)
                            moved = True
                        case Execute() if not halted and decision.path not in under_way:
                            begin.append(decision)
                if moved:
                    continue
                if not under_way and len(begin) == 1:
                    await self._do(begin[0])
                    continue
                for task in begin:
                    under_way[task.path] = asyncio.create_task(self._do(task))
                if not under_way:
                    return Walked.HALTED
                await asyncio.wait(under_way.values(), return_when=asyncio.FIRST_COMPLETED)
                for path in [path for path, task in under_way.items() if task.done()]:
                    under_way.pop(path).result()
        finally:
            await _stop(under_way.values())

    async def _do(self, task: Execute) -> None:
        """Do one step up to its checkpoint."""
        run_id, step, visit = self._run.run_id, task.step, task.visit
        self._hand([run_events.step_start(run_id, step, visit)])
        started_at, began = datetime.now(UTC), time.monotonic()
        given = None
        if self.model_work is not None:
            given = await self.model_work.means(self.run, self.definition, self._document, task, self.history, self.halts)
        means, turns = (None, None) if given is None else given
        context = StepContext(
            definition=self._definition,
            sandbox=self._with.sandbox,
            idempotency_key=f"{run_id}:{step.id}:{visit}",
            means=means,
        )
        try:
            async with asyncio.timeout(step.timeout_seconds) as timer:
                outcome = await EXECUTORS[step.type](step, self.state, context)
        except TimeoutError:
            if not timer.expired():
                raise
            sentence = f"{step.title} took longer than its timeout_seconds ({step.timeout_seconds:g})"
            if turns is not None:
                await turns.forget()
            if not task.in_loop:
                raise self._failed(task, started_at, sentence) from None
            await self._go_on_without(task, started_at, sentence)
            return
        except EngineError as error:
            sentence = f"{step.title}: {error}"
            if not error.final:
                raise JobRetry(sentence) from None
            if turns is not None:
                await turns.forget()
            raise self._failed(task, started_at, sentence) from None
        duration = time.monotonic() - began
        said: list[Mapping[str, object]] = [*outcome.events, run_events.step_complete(step, duration)]
        events = run_events.numbered(run_id, step, visit, said, first=1)
        await self._checkpoint(task, outcome, started_at, duration, events)
        if turns is not None:
            await turns.forget()

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
        return run_events.step_error(self._run.run_id, task.step, task.visit, sentence, claim=self._run.claim)

    def _enter(self, task: Enter) -> None:
        self._cursor = runner.enter(self._cursor, task, since=self.steps_done, began=time.time())
        events = run_events.entered(self._run.run_id, task.step, task.visit)
        self._entered += events
        self._hand(events)

    async def _leave(self, task: Leave) -> None:
        step = task.step
        duration = max(0.0, time.time() - task.began)
        output: JsonObject = {}
        if step.type is StepType.LOOP:
            output = self._results.of(step, self._definition)
        events = run_events.left(self._run.run_id, step, task.visit, duration)
        started_at = datetime.fromtimestamp(task.began, UTC)
        await self._checkpoint(task, StepOutcome(step.next_step_id, output), started_at, duration, events)

    async def _checkpoint(
        self,
        task: Execute | Leave,
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
        async with self._writing:
            if task.path and self._is_over:  # an end step of another branch came first
                return
            after = runner.advance(self._definition, self._cursor, task, outcome.next_step_id)
            if (loop := runner.iteration_begun(self._definition, after, task.path)) is not None:
                step = self._definition.steps[loop.step_id]
                visit = after.visits_of(loop.step_id) + 1
                events = [*events, run_events.iteration(self._run.run_id, step, visit, loop.iteration)]
            ordinal = self.steps_done + 1
            row = StepRow(
                task.step.id,
                task.visit,
                ordinal,
                dict(outcome.output),
                entry,
                [*self._entered, *events],
                started_at,
                datetime.now(UTC),
                outcome.tokens or None,
                float(outcome.cost_usd) if outcome.tokens else None,
            )
            # The first checkpoint also keeps what the run started with: its state and its definition.
            first = self._run.cursor is None and ordinal == 1
            fold = first or time.monotonic() - self._folded_at > _FOLD_SECONDS
            folded = Folded({**self.state, **outcome.output}, [*self.history, entry], ordinal) if fold else None
            written = await self._with.persist(
                lambda: self._writer.checkpoint(
                    self._run,
                    row,
                    cursor=dict(after.to_json()),
                    engine_version=ENGINE_VERSION,
                    current_step_id=after.current_step_id,
                    definition=self._document if first else None,
                    folded=folded,
                )
            )
            if not written:
                raise OwnershipLost(self._run.run_id)
            self._cursor = after
            self.state.update(outcome.output)
            self.history.append(entry)
            self.steps_done = ordinal
            self._entered = []
            if task.loop is not None:
                self._results.add(task.loop, task.step, outcome.output)
            if fold:
                self._folded_at = time.monotonic()
            self._with.metrics.step_duration(task.step.type, duration)
            self._hand(events)

    @property
    def _is_over(self) -> bool:
        return self._cursor.current_step_id is None

    def _hand(self, events: list[State]) -> None:
        self._with.events.hand(self._run.run_id, self._run.claim, events)


async def _stop(tasks: Collection[asyncio.Task[None]]) -> None:
    """Interrupt what is under way and wait until it has ended; what it was doing leaves no trace."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


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
