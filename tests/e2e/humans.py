"""`make chaos-cluster`, fourth part: runs wait for a human while the pod that asked is killed; another one goes on.

A paused run has no owner, so the end of its pod is nobody's business: what the pod did is in PostgreSQL, and the answer
comes from a command line. Kept out of `make test` by its name. Each test prints one line of figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from redis.asyncio import Redis

from synapse_worker.store import runs as run_store
from synapse_worker.store.database import Database
from tests.e2e.conftest import Place
from tests.e2e.test_runs_in_pods import kill_worker_process
from tests.support import runs
from tests.support.kube import Object, kubectl
from tests.support.load import judge
from tests.support.workers import chain, command, slow_steps

RUNS = 6
BEFORE, AFTER = 4, 3
STEPS = BEFORE + 1 + AFTER


def asks() -> Object:
    """Four steps, a question, and three steps more."""
    steps = slow_steps(BEFORE + AFTER, 0.02)
    question = {"id": "ask", "type": "human", "human_prompt": "Ship {state.k0}?", "output_key": "approval"}
    return chain("asks", [*steps[:BEFORE], question, *steps[BEFORE:]])


async def owners(database: Database, run_ids: Sequence[str]) -> list[str]:
    """The pod that took each run last."""
    return [str(view.worker_id) for view in await run_store.get(database, run_ids)]


def pod_named(place: Place, name: str) -> Object:
    (found,) = (pod for pod in place.worker_pods() if pod["metadata"]["name"] == name)  # type: ignore[index]
    return found


def delete_by_force(place: Place, pod: str) -> None:
    kubectl("delete", "pod", pod, "-n", place.namespace, "--force", "--grace-period=0")


def kill_and_delete(place: Place, pod: str) -> None:
    """As a node that goes: the worker gets SIGKILL, and its pod does not come back."""
    kill_worker_process(str(pod_named(place, pod)["metadata"]["uid"]))
    delete_by_force(place, pod)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("end", "how"), [(delete_by_force, "deleted by force"), (kill_and_delete, "killed by -9 from the node")]
)
async def test_the_pod_that_asked_is_gone_when_the_answer_comes(
    place: Place,
    cluster_database: Database,
    cluster_redis: Redis,
    end: Callable[[Place, str], None],
    how: str,
) -> None:
    await runs.store(cluster_database, asks())
    run_ids = [await runs.enqueue(cluster_database, cluster_redis, "asks") for _ in range(RUNS)]
    for run_id in run_ids:
        await runs.until(cluster_database, run_id, "paused", seconds=90)
    # At once: the last of them have a lease still, and their events are being written.
    asked_by = await owners(cluster_database, run_ids)
    pod = max(set(asked_by), key=asked_by.count)
    await asyncio.to_thread(end, place, pod)
    waiting = [run_id for run_id, owner in zip(run_ids, asked_by, strict=True) if owner == pod]
    before = await checkpoints(cluster_database, run_ids)
    began = time.monotonic()
    for run_id in run_ids:
        told = ("runs", "resume", run_id, "--answer", "yes")
        said = await asyncio.to_thread(command, place.redis_url, place.postgres_url, *told)
        assert said.returncode == 0, said.stderr
    answered = time.monotonic() - began
    judged = await judge(cluster_database, cluster_redis, run_ids, steps=STEPS, seconds=90)
    print(
        f"\npod {how}, {len(waiting)} of its runs paused, answered from a command line in {answered:.1f} s: {judged}",
        flush=True,
    )
    assert not judged.lost
    assert not judged.doubled
    assert judged.dead_letters == judged.failures == 0
    for run_id in run_ids:
        runs.assert_each_step_once(await runs.said_done(cluster_redis, run_id), STEPS)
        assert (await runs.view(cluster_database, run_id)).state["approval"] == "yes"
    assert pod not in await owners(cluster_database, waiting)
    # What was checkpointed before the kill is there as it was, under the claim of the pod that is gone.
    assert before <= await checkpoints(cluster_database, run_ids)


async def checkpoints(database: Database, run_ids: Sequence[str]) -> set[tuple[object, ...]]:
    rows = await database.fetch(
        "SELECT run_id, step_id, visit, claim FROM run_steps WHERE run_id = ANY($1::text[])", list(run_ids)
    )
    return {tuple(row) for row in rows}
