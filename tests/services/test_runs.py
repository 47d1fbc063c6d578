"""Runs by real worker processes against real stores: complete, handed over, recovered, refused; always once."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
import tempfile
import time
from pathlib import Path

from arq.connections import RedisSettings, create_pool
from arq.jobs import Job, JobStatus
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database
from synapse_worker.queueing import keys
from synapse_worker.store.database import Database
from tests.support import sample
from tests.support.runs import (
    assert_each_step_once,
    claim_of,
    claimed_anew,
    enqueue,
    eventually,
    result_of,
    said_done,
    steps_reach,
    store,
    until,
    view,
)
from tests.support.servers import PostgresServer, RedisServer, wait_until
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

Q = keys.queue("default")
NEVER_WRITTEN = Path(tempfile.gettempdir()) / "synapse-hostile-payload-ran"


async def test_the_quickstart_runs_from_sync_to_done(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    start_worker: StartWorker,
    tmp_path: Path,
) -> None:
    for key, text in sample.texts("ConfigMap", "support-triage").items():
        (tmp_path / key).write_text(text)
    synced = command(redis_server.url, postgres_url, "sync", str(tmp_path))
    assert synced.stdout == "synced 1 (1 orchestrations), 1 changed\n", synced.stderr
    assert "1 orchestrations), 0 changed" in command(redis_server.url, postgres_url, "sync", str(tmp_path)).stdout
    start_worker().wait_ready()
    message = "Everything is down!\nWe have an outage, ada@example.com"
    done = command(
        redis_server.url, postgres_url, "enqueue", "support-triage", "-m", message, "--wait", "30", "-o", "json"
    )
    (run,) = json.loads(done.stdout)
    assert run["status"] == "completed"
    assert run["state"]["summary"] == (
        "ada@example.com: We are on it: Everything is down!. An engineer was paged (score 10)."
    )
    assert [entry["step_id"] for entry in run["history"]] == [
        *("parse", "score", "has-text", "severity", "page", "summary", "done"),
    ]
    types = [event["type"] for event in await said_done(redis_client, run["run_id"])]
    assert types[:3] == ["worker_picked_up", "orchestration_start", "step_start"]
    assert types[-3:] == ["orchestration_complete", "final", "done"]
    assert types.count("step_start") == types.count("step_complete") == 7
    assert "switch_decision" in types
    assert "if_decision" in types
    shown = command(redis_server.url, postgres_url, "runs", "list").stdout
    assert run["run_id"] in shown


async def test_a_stock_arq_producer_is_served(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    start_worker().wait_ready()
    pool = await create_pool(RedisSettings(port=redis_server.port), default_queue_name=Q)
    job = await pool.enqueue_job(
        "run_orchestration_job",
        _job_id="run_0123456789ab_1",
        run_id="run_0123456789ab_1",
        orch_id="three",
        initial_input="arq",
        session_id="s",
        initial_state={"extra": 1},
        webhook_url=None,
        webhook_secret=None,
        tenant_id="acme",
        api_key_id="k",
    )
    assert job is not None
    assert await result_of(job) == "completed"
    assert await job.status() is JobStatus.complete
    done = await view(database, "run_0123456789ab_1")
    assert (done.status, done.tenant_id, done.state["a"], done.state["extra"]) == ("completed", "acme", "hello arq", 1)
    await pool.aclose()


async def test_job_status_tells_the_truth_while_we_run_it(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(4, 0.3)))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    pool = await create_pool(RedisSettings(port=redis_server.port), default_queue_name=Q)
    assert await Job(run_id, pool, Q).status() is JobStatus.in_progress
    await until(database, run_id, "completed")
    await pool.aclose()


async def test_a_killed_workers_run_goes_on_after_its_last_checkpoint(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(20, 0.15)))
    first = start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 5)
    first.kill()
    killed = time.monotonic()
    before = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    start_worker(WORKER_LEASE_SECONDS="3").wait_ready()
    await steps_reach(database, run_id, len(before) + 1)
    assert time.monotonic() - killed < 3 + 5
    done = await until(database, run_id, "completed")
    rows = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    assert len(rows) == len(done.history) == 20
    assert {tuple(row) for row in before} <= {tuple(row) for row in rows}  # what was checkpointed stayed as it was
    assert_each_step_once(await said_done(redis_client, run_id), 20)
    ledger = await database.fetchrow(
        "SELECT outcome, owner, suspect, failures FROM job_ledger WHERE job_id = $1", run_id
    )
    assert ledger is not None
    assert tuple(ledger) == ("completed", None, False, 0)  # it had got on: no suspect


async def test_sigterm_hands_a_run_over_within_two_seconds(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    # Long enough to outlast the start of the second worker, which takes seconds.
    await store(database, chain("slow", slow_steps(40, 0.15)))
    first = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 3)
    start_worker(WORKER_CONCURRENCY="3").wait_ready()
    claim, _ = await claim_of(database, run_id)
    assert (await view(database, run_id)).status == "running", "it ended before there was somebody to hand it to"
    first.signal(signal.SIGTERM)
    await claimed_anew(database, run_id, claim, seconds=2)
    assert first.wait(20) == 0
    await until(database, run_id, "completed")
    assert len(await database.fetch("SELECT 1 FROM run_steps WHERE run_id = $1", run_id)) == 40
    row = await database.fetchrow("SELECT failures, crashes, suspect FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    assert tuple(row) == (0, 0, False)  # a rollout burns no try and blames nobody
    offline = await database.fetchrow("SELECT count(*) AS n FROM workers WHERE status = 'offline'")
    assert offline is not None
    assert offline["n"] == 1


async def test_outside_kubernetes_a_stopped_worker_lets_its_runs_end(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(6, 0.1)))
    worker = start_worker(K8S_MODE="0").wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    worker.signal(signal.SIGTERM)
    assert worker.wait(25) == 0
    assert (await view(database, run_id)).status == "completed"


async def test_a_second_signal_ends_a_drain_and_still_hands_the_run_back(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(2, 3.0)))
    worker = start_worker(WORKER_DRAIN_SECONDS="300").wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await until(database, run_id, "running")
    worker.signal(signal.SIGTERM)
    wait_until("the drain has begun", lambda: "draining" in worker.get("/readyz")[1])
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert (await view(database, run_id)).status == "queued"
    assert await redis_client.zcard(keys.leases(Q)) == 0
    assert await redis_client.zcard(keys.again(Q)) == 1


async def test_what_cannot_be_run_ends_in_one_sentence_and_disturbs_nothing(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(
        database,
        PRINT_IF_PRINT,
        {"id": "agentic", "name": "Agentic", "steps": [{"id": "a", "type": "webhook"}]},
        chain("broken", [{"id": "t", "type": "transform", "transform_code": "result = state['nope']"}]),
    )

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (__import__("os").system, (f"touch {NEVER_WRITTEN}",))

    payloads = {
        "hostile": pickle.dumps({"f": "run_orchestration_job", "a": (), "k": {"x": Hostile()}, "t": 1, "et": 1}),
        "garbage": b"\x80\x04garbage",
        "stranger": pickle.dumps({"f": "delete_everything", "a": (), "k": {}, "t": 1, "et": 1}),
        "nameless": pickle.dumps({"f": "run_orchestration_job", "a": (), "k": {"orch_id": "three"}, "t": 1, "et": 1}),
    }
    for job_id, raw in payloads.items():
        await redis_client.set(keys.job(job_id), raw)
        await redis_client.zadd(Q, {job_id: 1})
    await redis_client.zadd(Q, {"without-payload": 1})
    start_worker().wait_ready()
    good = await enqueue(database, redis_client, "three")
    agentic = await enqueue(database, redis_client, "agentic")
    missing = await enqueue(database, redis_client, "no-such-thing")
    broken = await enqueue(database, redis_client, "broken")
    await until(database, good, "completed")
    assert "this release runs" in str((await until(database, agentic, "failed")).error)
    assert "does not exist; sync it" in str((await until(database, missing, "failed")).error)
    assert "KeyError" in str((await until(database, broken, "failed")).error)
    wait_until_letters = time.monotonic() + 20
    while True:
        letters = await database.fetch("SELECT run_id, error_message, attempt_count FROM dead_letter_queue")
        if len(letters) == 8:
            break
        assert time.monotonic() < wait_until_letters, letters
        await asyncio.sleep(0.05)
    sentences = {row["run_id"]: row["error_message"] for row in letters}
    assert "only plain values are accepted" in sentences["hostile"]
    assert "cannot be read" in sentences["garbage"]
    assert "unknown job function 'delete_everything'" in sentences["stranger"]
    assert "run_id must be a text" in sentences["nameless"]
    assert sentences["without-payload"] == "payload expired before a worker took it"
    assert not NEVER_WRITTEN.exists()
    assert await redis_client.zcard(Q) == 0

    async def released() -> bool:  # the letters are committed before
        return await redis_client.zcard(keys.leases(Q)) == 0

    await eventually("no lease is left", released)


async def test_a_wanted_cancel_ends_a_running_run(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(10, 0.4)))
    start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 1)
    await redis_client.set(keys.cancel(run_id), "1", ex=3600)
    done = await until(database, run_id, "cancelled", seconds=5)
    assert done.steps_done < 10
    await said_done(redis_client, run_id)
    assert not await redis_client.exists(keys.cancel(run_id))


async def test_a_job_that_takes_longer_than_its_timeout_fails_and_says_so(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(20, 0.3)))
    start_worker(WORKER_JOB_TIMEOUT="1").wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    done = await until(database, run_id, "failed", seconds=20)
    assert done.error == "the job took over 1 active seconds (WORKER_JOB_TIMEOUT)"


async def test_a_store_outage_suspends_and_work_goes_on_afterwards(
    database: Database,
    redis_client: Redis,
    start_worker: StartWorker,
    postgres_server: PostgresServer,
    postgres_url: str,
) -> None:
    await store(database, chain("slow", slow_steps(12, 0.15)))
    worker = start_worker().wait_ready()
    run_id = await enqueue(database, redis_client, "slow")
    await steps_reach(database, run_id, 2)
    postgres_server.stop(signal.SIGINT)
    wait_until("readiness is gone", lambda: worker.get("/readyz")[0] == 503)
    assert worker.get("/livez")[0] == 200
    assert "PostgreSQL" in worker.get("/readyz")[1]
    postgres_server.start()
    wait_until("readiness is back", lambda: worker.get("/readyz")[0] == 200)
    again = open_database(SecretStr(postgres_url))  # the connections of before the outage are dead
    await until(again, run_id, "completed")
    assert len(await again.fetch("SELECT 1 FROM run_steps WHERE run_id = $1", run_id)) == 12
    row = await again.fetchrow("SELECT failures, outcome FROM job_ledger WHERE job_id = $1", run_id)
    await again.close()
    assert row is not None
    assert tuple(row) == (0, "completed")


def test_a_worker_that_is_stopped_while_it_starts_ends_at_once(start_worker: StartWorker) -> None:
    worker = start_worker()

    def has_taken_sigterm() -> bool:
        status = Path(f"/proc/{worker.pid}/status").read_text(encoding="ascii")
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)

    wait_until("SIGTERM is caught", has_taken_sigterm)
    assert worker.get("/health")[0] == 0, "it has started already"
    worker.signal(signal.SIGTERM)
    assert worker.wait(10) == 0
