"""The producer's side of the queue: enqueueing a run, and reading how full the queues are.

A run is durable before it is queued: run row and ledger row in one transaction, then the job key, then the
queue entry. What a crash in between leaves is repaired by the sweep (`housekeeping`) from the ledger's envelope.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.contract import DEFAULT_QUEUE
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import load_script
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store import dead_letters, runs
from synapse_worker.store.database import Database
from synapse_worker.store.dead_letters import Letter

RUN_FUNCTION = "run_orchestration_job"
RESUME_FUNCTION = "resume_failed_job"


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How full one queue is: `queued` waits (given-back jobs, suspects and parked ones included), `active` is leased.

    `parked` of the waiting ones are over their tenants' max_concurrent_runs.
    `oldest_seconds` is how long the oldest due job has waited, None when none waits.
    """

    queued: int
    active: int
    parked: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to enqueue; `initial_state` is merged over the schema's defaults."""

    orchestration_id: str
    message: str
    tenant_id: str
    session_id: str | None = None
    initial_state: Mapping[str, object] | None = None


def new_run_id(now_ms: int) -> str:
    """Return an id of upstream's form: run_<12 hex>_<ms>."""
    return f"run_{secrets.token_hex(6)}_{now_ms}"


async def enqueue_run(database: Database, client: Redis, run: NewRun, *, run_id: str, now_ms: int) -> str:
    """Make a run durable and queue it; returns the run's id (which is its job's id too).

    Raises:
        StoreUnavailable: a store does not answer; a run row may exist and be queued later, never twice.
    """
    queue_key = keys.queue(DEFAULT_QUEUE)
    arguments: dict[str, object] = {
        "run_id": run_id,
        "orch_id": run.orchestration_id,
        "initial_input": run.message,
        "session_id": run.session_id,
        "initial_state": dict(run.initial_state) if run.initial_state else None,
        "webhook_url": None,
        "webhook_secret": None,
        "tenant_id": run.tenant_id,
        "api_key_id": None,
    }
    envelope = encode(JobPayload(RUN_FUNCTION, arguments, enqueued_ms=now_ms))
    await runs.create_queued(
        database,
        runs.QueuedRun(
            run_id=run_id,
            orchestration_id=run.orchestration_id,
            session_id=run.session_id,
            tenant_id=run.tenant_id,
            job_id=run_id,
            queue=queue_key,
            envelope=envelope,
        ),
    )
    await put(client, queue_key, run_id, envelope)
    return run_id


async def retry_letter(database: Database, client: Redis, letter: Letter, *, now_ms: int) -> str | None:
    """Queue a dead letter's job again, as a new job of the same run.

    Returns:
        The new job's id; None when somebody has dealt with the letter already.
    """
    queue_key = keys.queue(DEFAULT_QUEUE)
    job_id = f"retry_{secrets.token_hex(6)}_{now_ms}"
    envelope = encode(JobPayload(letter.function, letter.payload, enqueued_ms=now_ms))
    if not await dead_letters.requeue(database, letter, job_id=job_id, queue=queue_key, envelope=envelope):
        return None
    if letter.run_id is not None:
        await _forget_cancel(client, letter.run_id)
    await put(client, queue_key, job_id, envelope)
    return job_id


async def resume_run(database: Database, client: Redis, run_id: str, *, now_ms: int) -> tuple[str, str]:
    """Queue a failed or cancelled run again, as a new job; it goes on at the step that did not finish.

    Returns:
        The status that the run had and the new job's id; the id is "" when the run had another status than failed
        or cancelled and nothing was written, and the status is "" when there is no such run.
    """
    queue_key = keys.queue(DEFAULT_QUEUE)
    job_id = f"resume_{now_ms}_{secrets.token_hex(6)}"
    envelope = encode(JobPayload(RESUME_FUNCTION, {"run_id": run_id}, enqueued_ms=now_ms))
    was = await runs.requeue_ended(database, run_id, job_id=job_id, queue=queue_key, envelope=envelope)
    if was not in (runs.RunStatus.FAILED, runs.RunStatus.CANCELLED):
        return was, ""
    await _forget_cancel(client, run_id)
    await put(client, queue_key, job_id, envelope)
    return was, job_id


async def cancel_run(database: Database, client: Redis, run_id: str) -> str:
    """Cancel a run: at once when it waits, within a second when a worker has it.

    Returns:
        The status that it had: queued, running, or another one when there was nothing to cancel; "" = no such run.
    """
    status = await runs.cancel_queued(database, run_id)
    if status == runs.RunStatus.RUNNING:
        with redis_errors_as_ours():
            await client.set(keys.cancel(run_id), b"1", ex=keys.CANCEL_TTL_SECONDS)
    return status


async def _forget_cancel(client: Redis, run_id: str) -> None:
    """Remove a wish to cancel that came before the run had ended: it must not end what is queued after it."""
    with redis_errors_as_ours():
        await client.delete(keys.cancel(run_id))


async def put(client: Redis, queue_key: str, job_id: str, envelope: bytes, tenant_id: str | None = None) -> bool:
    """Write a job's key and queue entry; returns False when the job was queued, parked or leased already.

    Args:
        tenant_id: whose parked jobs are looked through too; None for a new job, which can be nowhere yet.
    """
    places = [queue_key, keys.again(queue_key), keys.leases(queue_key), keys.suspects(queue_key)]
    if tenant_id is not None:
        places.append(keys.parked_of(queue_key, tenant_id))
    enqueue = load_script(client, "enqueue")
    with redis_errors_as_ours():
        await client.set(keys.job(job_id), envelope, px=keys.JOB_TTL_MS)
        added = await enqueue(keys=places, args=[job_id])
    return bool(added)


async def queue_figures(client: Redis, queue_keys: Sequence[str]) -> dict[str, QueueFigures]:
    """Read how full the queues are, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    for queue_key in queue_keys:
        again = keys.again(queue_key)
        for name in (queue_key, again, keys.suspects(queue_key), keys.leases(queue_key)):
            pipeline.zcard(name)
        pipeline.hvals(keys.parked(queue_key))
        for name in (queue_key, again):
            pipeline.zrange(name, 0, 0, withscores=True)
    with redis_errors_as_ours():
        (seconds, micros), *answers = await pipeline.execute()
    now_ms = seconds * 1000 + micros / 1000
    figures: dict[str, QueueFigures] = {}
    for position, queue_key in enumerate(queue_keys):
        fresh, returned, suspects, active, by_tenant, *first = answers[position * 7 : position * 7 + 7]
        parked = sum(int(count) for count in by_tenant)
        waits = [(now_ms - entry[0][1]) / 1000 for entry in first if entry]
        figures[queue_key] = QueueFigures(
            queued=fresh + returned + suspects + parked,
            active=active,
            parked=parked,
            oldest_seconds=max(0.0, *waits) if waits else None,
        )
    return figures


async def nowhere(client: Redis, queue_keys: Sequence[str], job_ids: Sequence[str]) -> set[str]:
    """Return those of `job_ids` of which Redis has no payload, no result, no owner and, in these queues, no entry.

    A queue whose keys have another type counts as holding all of them.
    """
    if not job_ids:
        return set()
    pipeline = client.pipeline(transaction=False)
    for job_id in job_ids:
        for name in (keys.job(job_id), keys.result(job_id), keys.in_progress(job_id)):
            pipeline.exists(name)
        for queue_key in queue_keys:
            for zset in (queue_key, keys.again(queue_key), keys.leases(queue_key)):
                pipeline.zscore(zset, job_id)
    with redis_errors_as_ours():
        answers = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                raise answer
    width = 3 + 3 * len(queue_keys)
    return {
        job_id
        for place, job_id in enumerate(job_ids)
        # EXISTS answers 0 and ZSCORE None for what is not there; 0 is also a score.
        if not any(answers[place * width : place * width + 3])
        and all(answer is None for answer in answers[place * width + 3 : (place + 1) * width])
    }


async def waiting_sets(client: Redis, queue_key: str) -> list[str]:
    """Return the keys of a queue's zsets in which jobs wait that nobody may have claimed yet."""
    with redis_errors_as_ours():
        tenants: list[bytes] = await client.hkeys(keys.parked(queue_key))  # type: ignore[misc]
    return [queue_key, *(keys.parked_of(queue_key, tenant.decode(errors="surrogateescape")) for tenant in tenants)]


async def keep_payloads(client: Redis, zset: str, start: int, count: int) -> int:
    """Let the payloads of `count` jobs of a zset from rank `start` on live for `JOB_TTL_MS`; returns where to go on."""
    with redis_errors_as_ours():
        members: list[bytes] = await client.zrange(zset, start, start + count - 1)
        names = [keys.job(member.decode(errors="surrogateescape")) for member in members]
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.pttl(name)
        left = await pipeline.execute()
        for name, milliseconds in zip(names, left, strict=True):
            if 0 <= milliseconds < keys.JOB_TTL_MS / 2:  # below 0: not there, or without an end
                pipeline.pexpire(name, keys.JOB_TTL_MS)
        await pipeline.execute()
    return start + count if len(members) == count else 0
