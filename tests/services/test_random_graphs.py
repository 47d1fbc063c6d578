"""Random graphs of every step type without a model, under kill -9: the outcome is that of an uninterrupted run."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing.client import answer_run
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from synapse_worker.store.runs import RunView
from tests.chaos.worker import JOURNAL
from tests.support.runs import enqueue, store
from tests.support.servers import RedisServer
from tests.support.workers import WorkerProcess

GRAPHS = 50
SEED = 20_261_126
KILLS = 6
KILL_EVERY = 1.5
STEP_SECONDS = "0.12"
# Reads its own key only: what other branches have stored by now is a matter of time.
COUNT = "old = state.get('{key}')\nresult = old + 1 if isinstance(old, int) else 1"
ENDED = ("completed", "failed", "cancelled")

Document = dict[str, object]


class Graph:
    """One random definition: blocks one after another, each a step or a nest of loops and branches."""

    def __init__(self, number: int) -> None:
        self.id = f"graph{number:02}"
        self._dice = random.Random(SEED + number)
        self._steps: list[Document] = []

    def document(self) -> Document:
        """Return it; its main flow may go back once, by a condition, to where it began."""
        tops = [self._block(2) for _ in range(self._dice.randint(2, 4))]
        keys = [str(step["output_key"]) for step in self._steps if step.get("output_key")]
        strategy = self._dice.choice(["list", "concat", "dict"])
        tops.append(self._step("merge", input_keys=keys[:3], merge_strategy=strategy))
        if self._dice.random() < 0.4:
            tops.append(self._step("if_else", if_condition="True", if_true_step_id=tops[0]))
        by_id = {str(step["id"]): step for step in self._steps}
        for top, following in zip(tops, [*tops[1:], None], strict=True):
            by_id[top].setdefault("next_step_id", following)
            by_id[top]["max_iterations"] = 2
        return {
            "id": self.id,
            "name": self.id,
            "entry_step_id": tops[0],
            "max_total_turns": 2_000,
            "state_schema": {"text": {"default": 'see {"a": [1, 2]} and [3]'}},
            "steps": self._steps,
        }

    def _block(self, depth: int) -> str:
        kind = self._dice.choice(["leaf", "loop", "parallel"] if depth else ["leaf"])
        if kind == "leaf":
            return self._leaf()
        parts = [self._block(depth - 1) for _ in range(self._dice.randint(1, 2) + (kind == "parallel"))]
        if kind == "loop":
            return self._step("loop", loop_count=self._dice.randint(1, 3), loop_step_ids=parts)
        # A second step in the first branch, so that a branch is a chain.
        return self._step("parallel", parallel_branches=[[parts[0], self._leaf()], *([part] for part in parts[1:])])

    def _leaf(self) -> str:
        kind = self._dice.choice(["print", "transform", "if_else", "switch", "extract_json", "human", "transform"])
        own = f"k{len(self._steps)}"
        fields: Document = {
            "print": {"print_content": "text is {state.text}"},
            # Reads its own key only: what other branches have stored by now is a matter of time.
            "transform": {
                "transform_code": f"old = state.get('{own}')\nresult = old + 1 if isinstance(old, int) else 1"
            },
            "if_else": {"if_condition": "'a' in state.text"},
            "switch": {"switch_expression": "len(state.text)"},
            "extract_json": {"input_keys": ["text"]},
            "human": {"human_prompt": "well?"},
        }[kind]
        return self._step(kind, **fields)

    def _step(self, kind: str, **fields: object) -> str:
        number = len(self._steps)
        identity = f"s{number:02}"
        self._steps.append({"id": identity, "name": identity, "type": kind, "output_key": f"k{number}", **fields})
        return identity


class JournalWorker(WorkerProcess):
    """A worker whose steps take time and leave a trace that no store holds."""

    COMMAND = (sys.executable, "-m", "tests.chaos.worker")


class Workers:
    """Two workers on the test's stores, started anew as often as they are killed."""

    def __init__(self, redis_url: str, postgres_url: str, journal: Path) -> None:
        self._urls = (redis_url, postgres_url)
        self._journal = journal
        self.all: list[WorkerProcess] = []
        self.serving: list[WorkerProcess] = []

    def start(self) -> WorkerProcess:
        settings = {"K8S_MODE": "1", "WORKER_LEASE_SECONDS": "3", "WORKER_CONCURRENCY": "30"}
        worker = JournalWorker(*self._urls, **settings, **{JOURNAL: str(self._journal)})
        self.all.append(worker)
        self.serving.append(worker.start())
        return worker

    def kill_one(self) -> None:
        """kill -9 of the one that has served longest, once the other one serves too."""
        for worker in self.serving:
            worker.wait_ready()
        self.serving.pop(0).kill()
        self.start()

    def close(self) -> None:
        for worker in self.all:
            worker.close()


@pytest.fixture
def workers(redis_server: RedisServer, postgres_url: str, tmp_path: Path) -> Iterator[Workers]:
    found = Workers(redis_server.url, postgres_url, tmp_path / "journal")
    yield found
    found.close()


async def run_all(database: Database, client: Redis, ids: list[str], message: str) -> dict[str, str]:
    """Enqueue one run of each definition; returns definition -> run."""
    return {identity: await enqueue(database, client, identity, message) for identity in ids}


async def ended(database: Database, client: Redis, run_ids: dict[str, str], seconds: float) -> dict[str, RunView]:
    """Answer whatever is asked until all runs have ended; returns definition -> how its run ended."""
    deadline = time.monotonic() + seconds
    while True:
        views = {view.run_id: view for view in await runs.get(database, list(run_ids.values()))}
        for view in views.values():
            if view.status == "paused":
                await answer_run(database, client, view.run_id, "yes", now_ms=int(time.time() * 1000))
        open_runs = [view for view in views.values() if view.status not in ENDED]
        if not open_runs:
            return {identity: views[run_id] for identity, run_id in run_ids.items()}
        told = [(view.orchestration_id, view.status, view.steps_done) for view in open_runs]
        assert time.monotonic() < deadline, f"not ended: {told}"
        await asyncio.sleep(0.1)


def shape(view: RunView) -> tuple[str, str | None, list[str], dict[str, object]]:
    """Return what must not depend on crashes: side by side, the order of the history does not count."""
    steps = sorted(f"{entry['step_id']} {entry['status']} {entry.get('iteration')}" for entry in view.history)
    return view.status, view.error, steps, {key: view.state[key] for key in view.state if key != "user_input"}


@pytest.mark.timeout(240)
async def test_killed_workers_change_no_outcome(
    database: Database, redis_client: Redis, workers: Workers, tmp_path: Path
) -> None:
    documents = [Graph(number).document() for number in range(GRAPHS)]
    kinds = {str(step["type"]) for document in documents for step in document["steps"]}  # type: ignore[attr-defined]
    assert kinds == {
        *("print", "transform", "if_else", "switch", "extract_json", "human", "loop", "parallel", "merge"),
    }
    await store(database, *documents)
    ids = [str(document["id"]) for document in documents]
    for _ in range(2):
        workers.start().wait_ready()
    expected = await ended(database, redis_client, await run_all(database, redis_client, ids, "0"), 60)
    assert {view.status for view in expected.values()} == {"completed"}, [view.error for view in expected.values()]

    interrupted = await run_all(database, redis_client, ids, STEP_SECONDS)
    waiting = asyncio.create_task(ended(database, redis_client, interrupted, 150))
    for _ in range(KILLS):
        await asyncio.sleep(KILL_EVERY)  # the pace of the faults
        await asyncio.to_thread(workers.kill_one)
    found = await waiting
    for identity in ids:
        assert shape(found[identity]) == shape(expected[identity]), identity

    rows = await database.fetch("SELECT run_id, step_id, visit, claim FROM run_steps")
    checkpoints = {(row["run_id"], row["step_id"], row["visit"]): row["claim"] for row in rows}
    executions = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    started = [line for line in executions if line["what"] == "start"]
    again = [
        line
        for line in started
        if line["claim"] > checkpoints.get((line["run_id"], line["step_id"], line["visit"]), line["claim"])
    ]
    assert again == [], "a checkpointed step was done again"
    done = {
        (line["run_id"], line["step_id"], line["visit"], line["claim"]) for line in executions if line["what"] == "end"
    }
    cut = [line for line in started if (line["run_id"], line["step_id"], line["visit"], line["claim"]) not in done]
    assert cut, "the kills hit nothing"
