"""A walk over branches whose checkpoints take a while: what one branch begins meanwhile is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from synapse_worker.engine import runner
from synapse_worker.engine.model import Definition
from synapse_worker.engine.steps import NestedResult
from synapse_worker.run_walk import Walk, Walked
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.runs import RunWriter, StepRow
from synapse_worker.surroundings import Surroundings

T = TypeVar("T")


class SlowWriter:
    """Keeps what is checkpointed; each takes so long that the steps of other branches end meanwhile."""

    def __init__(self) -> None:
        self.rows: list[StepRow] = []

    async def checkpoint(self, run: OwnedRun, step: StepRow, **fields: object) -> bool:
        await asyncio.sleep(0.01)
        self.rows.append(step)
        return True


class Events:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def hand(self, run_id: str, claim: int, events: list[dict[str, Any]]) -> None:
        self.said += events


async def _persist(do: Callable[[], Awaitable[T]]) -> T:
    return await do()


async def _nest(*arguments: object) -> NestedResult:
    raise AssertionError("nothing is nested here")


def a_walk(document: dict[str, object]) -> tuple[Walk, SlowWriter, Events]:
    run = OwnedRun(
        run_id="run",
        job_id="run",
        claim=1,
        orchestration_id="forked",
        tenant_id="default",
        session_id=None,
        current_step_id=None,
        cursor=None,
        definition=None,
        state={},
        history=[],
        steps_done=0,
        folded_steps=0,
        failures=0,
        active_seconds=0.0,
        suspect=False,
        crashes=0,
    )
    definition, writer, events = Definition.parse(document), SlowWriter(), Events()
    metrics = SimpleNamespace(step_duration=lambda kind, seconds: None)
    means = SimpleNamespace(persist=_persist, events=events, metrics=metrics, sandbox=None)
    walk = Walk(
        run,
        definition,
        document,
        runner.begin(definition),
        dict(runner.initial_state(definition, "hi", None)),
        cast(Surroundings, means),
        cast(RunWriter, writer),
        _nest,
        answer=None,
    )
    return walk, writer, events


def prints(*names: str) -> list[dict[str, object]]:
    return [{"id": name, "type": "print", "print_content": name, "output_key": name} for name in names]


async def test_a_loop_that_begins_while_another_branch_is_checkpointed_is_walked_whole() -> None:
    walk, writer, events = a_walk(
        {
            "id": "forked",
            "name": "forked",
            "steps": [
                {"id": "fork", "type": "parallel", "parallel_branches": [["a", "loop"], ["b", "c"]]},
                {"id": "loop", "type": "loop", "loop_count": 3, "loop_step_ids": ["body"]},
                *prints("a", "b", "c", "body"),
            ],
        }
    )
    assert await walk.go(lambda: False) is Walked.FINISHED
    assert sorted(row.step_id for row in writer.rows) == ["a", "b", "body", "body", "body", "c", "fork", "loop"]
    begun = [event["event_id"] for event in events.said if event["type"] == "step_start"]
    assert len(begun) == len(set(begun))


async def test_a_fork_that_begins_while_another_branch_is_checkpointed_is_walked_whole() -> None:
    walk, writer, _ = a_walk(
        {
            "id": "forked",
            "name": "forked",
            "steps": [
                {"id": "fork", "type": "parallel", "parallel_branches": [["a", "inner"], ["b", "c"]]},
                {"id": "inner", "type": "parallel", "parallel_branches": [["d"], ["e"]]},
                *prints("a", "b", "c", "d", "e"),
            ],
        }
    )
    assert await walk.go(lambda: False) is Walked.FINISHED
    assert sorted(row.step_id for row in writer.rows) == ["a", "b", "c", "d", "e", "fork", "inner"]
    kept = [str(event["event_id"]) for row in writer.rows for event in row.events if event["type"] == "parallel_start"]
    assert sorted(kept) == ["run:fork:1:1", "run:inner:1:1"]
