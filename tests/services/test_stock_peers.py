"""A stock arq worker and ours on one queue: 1,000 jobs, half of ours retried once, none lost, none doubled."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

import pytest
from arq import func
from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.worker import Worker as StockWorker
from redis.asyncio import Redis

from synapse_worker import claimed_job, run_walk, settings
from synapse_worker.engine.errors import SandboxCrashed
from synapse_worker.engine.model import Step, StepType
from synapse_worker.engine.outcome import StepOutcome
from synapse_worker.engine.steps import EXECUTORS, StepContext
from synapse_worker.lifecycle import Worker
from synapse_worker.queueing import keys
from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from tests.support.servers import RedisServer, free_port
from tests.support.workers import PRINT_IF_PRINT, environment

Q = keys.queue("default")
JOBS = 1_000
# What a job costs in either worker, in seconds, and how many ours runs at once. The stock worker also waits between its
# looks, and ours takes many at a time: with these neither takes the whole queue alone, on a busy machine either.
OURS = 0.05
STOCK = 0.01
OUR_SLOTS = 4


@pytest.mark.timeout(180)
async def test_of_a_thousand_jobs_none_is_lost_and_none_doubled(
    database: Database,
    postgres_url: str,
    redis_client: Redis,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await definitions.upsert(
        database,
        [definitions.Document("orchestrations", "three", "Three", "", PRINT_IF_PRINT)],
        tenant_id="default",
    )
    crashed: set[str] = set()

    async def crashes_once(step: Step, state: Mapping[str, object], context: StepContext) -> StepOutcome:
        """The sandbox goes away under the first try of every second run: a failure that a retry repairs."""
        run_id = context.idempotency_key.split(":")[0]
        if int(run_id.rsplit("_", 1)[1]) % 2 == 0 and run_id not in crashed:
            crashed.add(run_id)
            raise SandboxCrashed("the sandbox went away")
        await asyncio.sleep(OURS)
        return await EXECUTORS[StepType.IF_ELSE](step, state, context)

    monkeypatch.setattr(run_walk, "EXECUTORS", {**EXECUTORS, StepType.IF_ELSE: crashes_once})
    monkeypatch.setattr(claimed_job, "_RETRY_BASE_SECONDS", 0.2)

    stock_runs: Counter[str] = Counter()

    async def run_orchestration_job(ctx: dict[str, object], run_id: str, **arguments: object) -> None:
        stock_runs[run_id] += 1
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
            " VALUES ($1, 'three', 'default', 'completed', '{}', '[]')"
            " ON CONFLICT (run_id) DO UPDATE SET status = 'completed'",
            run_id,
        )
        await asyncio.sleep(STOCK)

    pool: ArqRedis = await create_pool(RedisSettings(port=redis_server.port), default_queue_name=Q)
    stock = StockWorker(
        [func(run_orchestration_job, name="run_orchestration_job")],  # type: ignore[arg-type]
        queue_name=Q,
        redis_pool=pool,
        handle_signals=False,
        poll_delay=0.02,
        max_jobs=10,
        keep_result=0,
        max_tries=1,
    )
    ours = Worker(
        settings.load(
            environment(
                redis_server.url,
                postgres_url,
                WORKER_HEALTH_PORT=str(free_port()),
                WORKER_CONCURRENCY=str(OUR_SLOTS),
                LOG_LEVEL="error",
            )
        )
    )
    ids = [f"run_{number:012x}_{number}" for number in range(JOBS)]
    for run_id in ids:
        await pool.enqueue_job(
            "run_orchestration_job",
            _job_id=run_id,
            run_id=run_id,
            orch_id="three",
            initial_input="x",
            tenant_id="default",
        )
    tasks = [asyncio.create_task(stock.async_run()), asyncio.create_task(ours.run())]
    deadline = time.monotonic() + 120
    while True:
        row = await database.fetchrow("SELECT count(*) AS n FROM orchestration_runs WHERE status = 'completed'")
        assert row is not None
        if row["n"] == JOBS and not await redis_client.zcard(Q):
            break
        assert time.monotonic() < deadline, f"{row['n']} of {JOBS} are completed"
        assert not any(task.done() for task in tasks)
        await asyncio.sleep(0.1)
    ours.stop()
    await tasks[1]
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    await pool.aclose()  # its own close() calls what redis has deprecated

    steps = await database.fetch("SELECT run_id, count(*) AS n FROM run_steps GROUP BY run_id")
    ours_ran = {row["run_id"]: row["n"] for row in steps}
    assert set(ours_ran) | set(stock_runs) == set(ids)
    assert not set(ours_ran) & set(stock_runs), "a run was done by both"
    assert set(ours_ran.values()) == {3}
    assert set(stock_runs.values()) == {1}
    # The mix was real: both took a good part, and many of ours were handed back once.
    assert min(len(ours_ran), len(stock_runs)) > JOBS / 20
    ledger = await database.fetch("SELECT failures, outcome FROM job_ledger")
    assert {row["outcome"] for row in ledger} == {"completed"}
    assert sum(row["failures"] for row in ledger) == len(crashed) > JOBS / 50
    assert await redis_client.zcard(keys.again(Q)) == await redis_client.zcard(keys.leases(Q)) == 0
