"""A walk's checkpoints: what a branch begins while another's is written is not forgotten; a long run stays linear."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from synapse_worker import run_walk
from synapse_worker.engine import runner
from synapse_worker.engine.model import Definition
from synapse_worker.engine.steps import NestedResult
from synapse_worker.run_walk import Walk, Walked
from synapse_worker.store.claims import OwnedRun
from synapse_worker.store.runs import Folded, RunWriter, StepRow
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


class QuickWriter(SlowWriter):
    """Keeps what is checkpointed, and how many steps are in the run's row after each checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.folded: list[int] = []
        self.folds: list[Folded] = []

    async def checkpoint(self, run: OwnedRun, step: StepRow, *, folded: Folded | None = None, **fields: object) -> bool:
        self.rows.append(step)
        if folded is not None:
            self.folds.append(folded)
        self.folded.append(self.folds[-1].steps)
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


W = TypeVar("W", bound=SlowWriter)


def a_walk(document: dict[str, object], writer: W) -> tuple[Walk, W, Events]:
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
    definition, events = Definition.parse(document), Events()
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
        },
        SlowWriter(),
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
        },
        SlowWriter(),
    )
    assert await walk.go(lambda: False) is Walked.FINISHED
    assert sorted(row.step_id for row in writer.rows) == ["a", "b", "c", "d", "e", "fork", "inner"]
    kept = [str(event["event_id"]) for row in writer.rows for event in row.events if event["type"] == "parallel_start"]
    assert sorted(kept) == ["run:fork:1:1", "run:inner:1:1"]


@pytest.mark.parametrize("iterations", [20, 400])
async def test_slow_steps_of_a_long_run_write_each_step_into_its_row_a_few_times_only(
    monkeypatch: pytest.MonkeyPatch, iterations: int
) -> None:
    monkeypatch.setattr(run_walk, "FOLD_SECONDS", 0.0)  # every step takes longer than that
    walk, writer, _ = a_walk(
        {
            "id": "long",
            "name": "long",
            "max_total_turns": 1_000,
            "steps": [
                {"id": "loop", "type": "loop", "loop_count": iterations, "loop_step_ids": ["body"]},
                *prints("body"),
            ],
        },
        QuickWriter(),
    )
    assert await walk.go(lambda: False) is Walked.FINISHED
    assert len(writer.rows) == iterations + 1
    assert sum(len(folded.history) for folded in writer.folds) <= 18 * iterations
    assert all(in_row * 16 >= 15 * ordinal - 16 for ordinal, in_row in enumerate(writer.folded, 1))
