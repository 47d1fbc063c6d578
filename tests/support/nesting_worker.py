"""A worker whose agent steps do nothing but run the orchestration that the state names, `children` times.

`python -m tests.support.nesting_worker` is `synapse-worker run` with that one executor for agents; what nested runs are
and where they go on is the product's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from synapse_worker import eventloop, lifecycle, run_walk, settings
from synapse_worker.engine import model
from synapse_worker.engine.json_values import JsonValue
from synapse_worker.engine.model import Step, StepType
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.engine.steps.context import stored
from synapse_worker.telemetry import set_up_logging


async def execute(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
    """Run `state.inner` so often, each with its number as input; the output is what the runs said."""
    inner = cast(Mapping[str, object], state["inner"])
    said: list[JsonValue] = []
    for number in range(1, cast(int, state["children"]) + 1):
        result = await context.nested(inner, f"child {number}", number)
        said.append(result.response)
    return StepOutcome(step.next_step_id, stored(step, said))


def main() -> None:
    """Serve like `synapse-worker run`."""
    vars(model)["RUNNABLE"] = model.RUNNABLE | {StepType.AGENT}
    vars(run_walk)["EXECUTORS"] = {**EXECUTORS, StepType.AGENT: execute}
    loaded = settings.load()
    set_up_logging(level=loaded.log_level, form=loaded.log_format)
    eventloop.run(lifecycle.Worker(loaded).run())


if __name__ == "__main__":
    main()
