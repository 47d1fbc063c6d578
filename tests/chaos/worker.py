"""The worker of the fault scenarios: the real one, whose steps take time and leave a trace that no store holds.

`python -m tests.chaos.worker` is `synapse-worker run` with a few differences. Every start and end of a step is noted
in a file (JOURNAL, opened to append) before and after the step's own work. A step lasts as many seconds as the run's
input says, so that faults hit the middle of steps; the input `poison` kills the process instead. With SWEEP, the sweep
comes that often (s) and leaves open jobs alone for that long only, since a scenario cannot wait for the product's
minute; nothing else of the housekeeping is touched.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import time
from collections.abc import Mapping
from contextvars import ContextVar

from synapse_worker import eventloop, housekeeping, jobs, lifecycle, run_job, run_walk
from synapse_worker import settings as settings_module
from synapse_worker.engine.model import Step
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps import EXECUTORS, Executor, StepContext
from synapse_worker.queueing.loop import Control, Ending
from synapse_worker.telemetry import set_up_logging

JOURNAL = "CHAOS_JOURNAL"
SWEEP = "CHAOS_SWEEP_SECONDS"
POISON = "poison"
POISONED_STEP = "count"
"""The step in which a poisoned run kills its process: the second, so that the first has its checkpoint."""

_claim: ContextVar[int] = ContextVar("claim")


class Journal:
    """Lines of JSON in a file that several processes append to; a line is one write, so a kill leaves none in half."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, what: str, context: StepContext) -> None:
        """Write `start` or `end` of a step; the monotonic clock is the machine's, the other the process's own."""
        run_id, step_id, visit = context.idempotency_key.rsplit(":", 2)
        line = {
            "what": what,
            "run_id": run_id,
            "step_id": step_id,
            "visit": int(visit),
            "claim": _claim.get(),
            "pid": os.getpid(),
            "mono": time.monotonic(),
            "wall": time.time(),
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")


class NotedRun(run_job.RunJob):
    """A run that lets its steps know their claim."""

    async def run(self, control: Control) -> Ending:
        """See `RunJob.run`."""
        _claim.set(self._run.claim)
        return await super().run(control)


def noted(executor: Executor, journal: Journal) -> Executor:
    """Return the executor with the journal around it, lasting as long as the run's input says."""

    async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
        journal.note("start", context)
        asked = state.get("user_input")
        if asked == POISON and step.id == POISONED_STEP:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.0 if asked == POISON else float(str(asked)))
        outcome = await executor(step, state, context)
        journal.note("end", context)
        return outcome

    return execute


class EarlySweep(housekeeping.Housekeeper):
    """The housekeeper with the sweep's patience of a scenario."""

    async def sweep(self, overdue_seconds: float = float(os.environ.get(SWEEP) or 0)) -> int:
        """See `Housekeeper.sweep`."""
        return await super().sweep(overdue_seconds)


def main() -> None:
    """Serve like `synapse-worker run`."""
    journal = Journal(os.environ[JOURNAL])
    vars(run_walk)["EXECUTORS"] = {kind: noted(executor, journal) for kind, executor in EXECUTORS.items()}
    vars(jobs)["RunJob"] = NotedRun
    if os.environ.get(SWEEP):
        housekeeping.PERIOD_SECONDS = float(os.environ[SWEEP])
        vars(lifecycle)["Housekeeper"] = EarlySweep
    # Each pod has a host name of its own; here all processes would share one.
    settings = dataclasses.replace(settings_module.load(), worker_id=f"chaos-{os.getpid()}")
    set_up_logging(level=settings.log_level, form=settings.log_format)
    eventloop.run(lifecycle.Worker(settings).run())


if __name__ == "__main__":
    main()
