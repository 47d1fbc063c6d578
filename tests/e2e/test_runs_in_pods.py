"""Runs in real pods of a restricted namespace: enqueued by stock arq, killed, deleted, rolled; always once."""

from __future__ import annotations

import asyncio
import time

import pytest
from arq.connections import RedisSettings, create_pool
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.e2e.conftest import Place
from tests.support.kube import eventually, kubectl, localcluster
from tests.support.runs import (
    assert_each_step_once,
    claim_of,
    claimed_anew,
    enqueue,
    result_of,
    said_done,
    steps_reach,
    store,
    until,
    view,
)
from tests.support.workers import PRINT_IF_PRINT, chain, slow_steps

LEASE_SECONDS = 30
STEPS = 20


async def slow_run(database: Database, client: Redis) -> tuple[str, int, str]:
    """Start a run of 20 slow steps and let it do three; returns run id, claim and pod."""
    await store(database, chain("slow", slow_steps(STEPS, 0.15)))
    run_id = await enqueue(database, client, "slow")
    await steps_reach(database, run_id, 3)
    claim, pod = await claim_of(database, run_id)
    return run_id, claim, pod


async def completed_once(database: Database, client: Redis, run_id: str) -> None:
    done = await until(database, run_id, "completed", seconds=90)
    assert done.steps_done == len(done.history) == STEPS
    assert_each_step_once(await said_done(client, run_id), STEPS)


async def test_a_stock_arq_producer_is_served_by_a_pod(
    place: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    await store(cluster_database, PRINT_IF_PRINT)
    pool = await create_pool(
        RedisSettings(host=place.redis_address, password=place.redis_password),
        default_queue_name=keys.queue("default"),
    )
    run_id = f"run_{'a' * 12}_{int(time.time() * 1000)}"
    job = await pool.enqueue_job(
        "run_orchestration_job", _job_id=run_id, run_id=run_id, orch_id="three", initial_input="arq", tenant_id="acme"
    )
    assert job is not None
    assert await result_of(job) == "completed"
    done = await view(cluster_database, run_id)
    assert done.status == "completed"
    assert done.worker_id in {pod["metadata"]["name"] for pod in place.worker_pods()}  # type: ignore[index]
    await pool.aclose()


@pytest.mark.timeout(240)
async def test_a_worker_killed_from_the_node_loses_nothing(
    place: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    run_id, claim, pod = await slow_run(cluster_database, cluster_redis)
    (uid,) = (each["metadata"]["uid"] for each in place.worker_pods() if each["metadata"]["name"] == pod)  # type: ignore[index]
    kill_worker_process(str(uid))
    before = await cluster_database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    seconds = await claimed_anew(cluster_database, run_id, claim, seconds=LEASE_SECONDS + 5)
    print(f"a run of a killed worker was taken up again after {seconds:.1f} s")
    await completed_once(cluster_database, cluster_redis, run_id)
    rows = await cluster_database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    assert {tuple(row) for row in before} <= {tuple(row) for row in rows}


async def test_deleting_a_pod_hands_its_run_over(
    place: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    run_id, claim, pod = await slow_run(cluster_database, cluster_redis)
    kubectl("delete", "pod", pod, "-n", place.namespace, "--wait=false")
    seconds = await claimed_anew(cluster_database, run_id, claim, seconds=2)
    print(f"a deleted pod's run was taken up again after {seconds:.2f} s")
    await completed_once(cluster_database, cluster_redis, run_id)


@pytest.mark.timeout(240)
async def test_a_rollout_hands_runs_over_and_burns_no_try(
    place: Place, cluster_database: Database, cluster_redis: Redis
) -> None:
    kubectl("rollout", "status", f"deploy/{place.deployment()}", "-n", place.namespace, "--timeout=90s")
    run_id, first, pod = await slow_run(cluster_database, cluster_redis)
    kubectl("rollout", "restart", f"deploy/{place.deployment()}", "-n", place.namespace)

    def leaves() -> bool:
        return pod not in {each["metadata"]["name"] for each in place.worker_pods()}  # type: ignore[index]

    await asyncio.to_thread(eventually, "the rollout reaches the run's pod", leaves, seconds=120)
    if (await view(cluster_database, run_id)).status != "completed":
        # Whoever had it when its pod was told to go has given it back by now, or does within two seconds.
        claim, owner = await claim_of(cluster_database, run_id)
        if owner == pod and claim == first:
            await claimed_anew(cluster_database, run_id, claim, seconds=2)
    await completed_once(cluster_database, cluster_redis, run_id)
    row = await cluster_database.fetchrow("SELECT failures, crashes, suspect FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    assert tuple(row) == (0, 0, False)
    kubectl("rollout", "status", f"deploy/{place.deployment()}", "-n", place.namespace, "--timeout=120s")


def kill_worker_process(pod_uid: str) -> None:
    """kill -9 of the worker in a pod, from the node: no signal that could be handled reaches it."""
    script = (
        f"for pid in $(grep -ls '{pod_uid}' /proc/[0-9]*/cgroup | cut -d/ -f3); do "
        "if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'synapse-worker run'; "
        "then kill -9 $pid && echo killed; fi; done"
    )
    assert "killed" in localcluster("exec-node", "sh", "-c", script)
