"""What tests do with runs: store a definition, enqueue, and poll until something is true."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping

from arq.jobs import Job
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store import definitions, runs
from synapse_worker.store.database import Database
from synapse_worker.store.runs import RunView

Event = dict[str, object]


async def store(database: Database, *documents: dict[str, object]) -> None:
    """Put definitions into Postgres as `sync` does."""
    await definitions.upsert(
        database,
        [definitions.Document("orchestrations", str(d["id"]), str(d["name"]), "", d) for d in documents],
        tenant_id="default",
    )


async def store_settings(database: Database, settings: Mapping[str, object]) -> None:
    """Put settings into Postgres as `sync` does."""
    rows = [definitions.Document(definitions.SETTINGS, key, "", "", value) for key, value in settings.items()]
    await definitions.upsert(database, rows, tenant_id="default")


async def enqueue(
    database: Database, client: Redis, orchestration_id: str, message: str = "hi", *, tenant: str = "default"
) -> str:
    """Enqueue one run as our command line does."""
    now_ms = int(time.time() * 1000)
    new = NewRun(orchestration_id, message, tenant)
    return await enqueue_run(database, client, new, run_id=new_run_id(now_ms), now_ms=now_ms)


async def enqueue_as_upstream(client: Redis, job_id: str, function: str, **arguments: object) -> None:
    """Write payload and queue entry as a main instance does, which knows no ledger of ours."""
    await client.set(keys.job(job_id), encode(JobPayload(function, arguments, enqueued_ms=int(time.time() * 1000))))
    await client.zadd(keys.queue("default"), {job_id: int(time.time() * 1000)})


async def outcome(database: Database, job_id: str, *, seconds: float = 30) -> str:
    """Poll until the ledger knows how a job ended; returns how."""
    deadline = time.monotonic() + seconds
    while True:
        row = await database.fetchrow("SELECT outcome FROM job_ledger WHERE job_id = $1", job_id)
        if row is not None and row["outcome"] is not None:
            return str(row["outcome"])
        assert time.monotonic() < deadline, f"{job_id} has no outcome"
        await asyncio.sleep(0.02)


async def view(database: Database, run_id: str) -> RunView:
    """Return one run."""
    (found,) = await runs.get(database, [run_id])
    return found


async def eventually(what: str, holds: Callable[[], object], *, seconds: float = 20) -> None:
    """Poll until `holds` returns something true, itself or as an awaitable."""
    deadline = time.monotonic() + seconds
    while True:
        answer = holds()
        if await answer if isinstance(answer, Awaitable) else answer:
            return
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.02)


async def until(database: Database, run_id: str, *statuses: str, seconds: float = 60) -> RunView:
    """Poll until the run has one of the statuses."""
    deadline = time.monotonic() + seconds
    while True:
        found = await runs.get(database, [run_id])  # a stock producer writes no row
        if found and found[0].status in statuses:
            return found[0]
        said = f"still {found[0].status} with {found[0].steps_done} steps ({found[0].error})" if found else "not taken"
        assert time.monotonic() < deadline, f"{run_id} is {said}"
        await asyncio.sleep(0.05)


async def steps_reach(database: Database, run_id: str, count: int, *, seconds: float = 60) -> None:
    """Poll until the run has done so many steps."""
    deadline = time.monotonic() + seconds
    while not (found := await runs.get(database, [run_id])) or found[0].steps_done < count:
        assert time.monotonic() < deadline, f"{run_id} does not reach {count} steps"
        await asyncio.sleep(0.02)


async def claimed_anew(database: Database, run_id: str, claim: int, *, seconds: float) -> float:
    """Poll until another claim runs it; returns how long that took (s)."""
    began = time.monotonic()
    while True:
        row = await database.fetchrow("SELECT claim, status FROM orchestration_runs WHERE run_id = $1", run_id)
        if row is not None and row["claim"] != claim and row["status"] == "running":
            return time.monotonic() - began
        assert time.monotonic() - began < seconds, f"nobody has taken {run_id} within {seconds:g} s"
        await asyncio.sleep(0.01)


async def claim_of(database: Database, run_id: str) -> tuple[int, str]:
    """Return the run's claim and the worker that has it."""
    row = await database.fetchrow("SELECT claim, worker_id FROM orchestration_runs WHERE run_id = $1", run_id)
    assert row is not None
    return row["claim"], row["worker_id"]


async def result_of(job: Job, *, seconds: float = 30) -> object:
    """Poll until an arq job has a result; arq's own `result()` gives up on a job that is being run by us."""
    deadline = time.monotonic() + seconds
    while (info := await job.result_info()) is None:
        assert time.monotonic() < deadline, f"{job.job_id} has no result"
        await asyncio.sleep(0.05)
    return info.result


async def events_of(client: Redis, run_id: str) -> list[Event]:
    """Return the events in the run's stream."""
    return [json.loads(fields[b"data"]) for _, fields in await client.xrange(keys.run_events(run_id))]


async def said_done(client: Redis, run_id: str) -> list[Event]:
    """Poll until the run's stream has ended; returns its events. The row is committed before they are written."""
    deadline = time.monotonic() + 10
    while not (events := await events_of(client, run_id)) or events[-1]["type"] != "done":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    return events


def assert_each_step_once(events: list[Event], count: int) -> None:
    """No checkpointed step is done again: each visit completes once, whatever number of times it was started."""
    completed = [str(event["event_id"]) for event in events if event["type"] == "step_complete"]
    assert len(set(completed)) == count
