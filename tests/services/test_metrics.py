"""Every series of a worker gets its samples from real runs: of healthy ones, failed ones, parked ones and lost ones."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.page.support import enqueue
from tests.support.runs import eventually, steps_reach, store, until
from tests.support.workers import PRINT_IF_PRINT, StartWorker, WorkerProcess, chain, slow_steps

Q = keys.queue("default")


def sample(worker: WorkerProcess, name: str, **labels: str) -> float:
    """The value of a worker's sample now; 0 when it is not there."""
    status, text = worker.get("/metrics")
    assert status == 200, text
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            if each.name == name and labels.items() <= each.labels.items():
                return each.value
    return 0.0


async def test_runs_steps_and_queues_of_a_healthy_worker(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    failing = chain("broken", [{"id": "s", "type": "transform", "transform_code": "result = 1 / 0"}])
    await store(database, PRINT_IF_PRINT, failing, chain("slow", slow_steps(6, 2.0)))
    await database.execute("INSERT INTO tenants (tenant_id, max_concurrent_runs) VALUES ('acme', 0)")
    worker = start_worker(WORKER_CONCURRENCY="1").wait_ready()
    await until(database, await enqueue(database, redis_client, "three"), "completed")
    await until(database, await enqueue(database, redis_client, "broken"), "failed")
    running = await enqueue(database, redis_client, "slow")
    waiting = await enqueue(database, redis_client, "three")
    await until(database, running, "running")

    await eventually("one runs", lambda: sample(worker, "synapse_active_runs") == 1)
    await eventually("one waits", lambda: sample(worker, "synapse_queue_depth", queue_name=Q) == 1)
    await eventually("it grows old", lambda: sample(worker, "synapse_oldest_job_seconds", queue_name=Q) > 0)
    assert sample(worker, "synapse_active_workers") == 1
    assert sample(worker, "synapse_worker_slots") == 1
    assert sample(worker, "synapse_worker_info") == 1
    assert sample(worker, "synapse_worker_suspended") == 0
    assert sample(worker, "synapse_runs_completed_total", tenant_id="default", status="completed") == 1
    assert sample(worker, "synapse_runs_completed_total", tenant_id="default", status="failed") == 1
    assert sample(worker, "synapse_run_duration_seconds_count", tenant_id="default") == 2
    assert sample(worker, "synapse_step_duration_seconds_count", step_type="print") == 2
    assert sample(worker, "synapse_step_duration_seconds_count", step_type="if_else") == 1

    for run_id in (running, waiting):
        await until(database, run_id, "completed")
    assert sample(worker, "synapse_run_duration_seconds_sum", tenant_id="default") > 2
    await enqueue(database, redis_client, "three", tenant="acme")
    await eventually("it is parked", lambda: sample(worker, "synapse_parked_jobs", queue_name=Q) == 1)


async def test_leases_of_a_dead_worker_and_of_a_robbed_one(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(10, 1.0)))
    first = start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    first.kill()
    second = start_worker(WORKER_LEASE_SECONDS="3")
    await steps_reach(database, run_id, 2)
    await eventually("it is taken back", lambda: sample(second, "synapse_lease_recoveries_total") == 1)
    await redis_client.delete(keys.leases(Q), keys.claims(Q))  # as a failover that forgot them
    await eventually("it is lost", lambda: sample(second, "synapse_lost_leases_total") == 1)
