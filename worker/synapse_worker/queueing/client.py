"""The producer's side of the queue: enqueueing a run, and reading how full the queues are.

A run is durable before it is queued: run row and ledger row in one transaction, then the job key, then the
queue entry. What a crash in between leaves is repaired by the sweep (`housekeeping`) from the ledger's envelope.
Where it goes `routing` says, by the topology that holds when the rows are committed.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from pydantic import SecretStr
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from synapse_worker import tracing
from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.contract import DEFAULT_QUEUE, MAX_SHARDS
from synapse_worker.errors import PayloadError, SynapseError, WrongKeyType
from synapse_worker.queueing import keys
from synapse_worker.queueing.emptiness import holding
from synapse_worker.queueing.lease import load_script
from synapse_worker.queueing.payload import JobPayload, decode, encode
from synapse_worker.routing import HIGHEST_PRIORITY, ONE_QUEUE, Topology, is_tenants_own, shard_of_job, why_no_queue
from synapse_worker.store import chats, claims, dead_letters, runs, topology
from synapse_worker.store.database import Database
from synapse_worker.store.dead_letters import Letter

T = TypeVar("T")

RUN_FUNCTION = "run_orchestration_job"
RESUME_FUNCTION = "resume_failed_job"
ANSWER_FUNCTION = "resume_orchestration_job"
CHAT_FUNCTION = "run_agent_chat_job"


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """How full one queue is: `queued` waits (given-back jobs, suspects and parked ones included), `active` is leased.

    `again` of the waiting ones were given back, `parked` are over their tenants' max_concurrent_runs. `expired` of the
    leases have run out: their owners are gone, and only a worker of this queue takes them up again.
    `oldest_seconds` is how long the oldest due job has waited, None when none waits.
    """

    queued: int
    active: int
    parked: int
    again: int
    expired: int
    oldest_seconds: float | None

    @property
    def empty(self) -> bool:
        """Whether no job is anywhere in the queue."""
        return self.queued == self.active == 0


class Seen(NamedTuple):
    """The topology as a caller has read it just now; where it has changed since, it is read again."""

    epoch: int
    topology: Topology


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to enqueue; `initial_state` is merged over the schema's defaults, `priority` (0 to 9) is for routes.

    `webhook_url` is told how the run ended, signed with `webhook_secret`; `api_key_id` names the key that it came with.
    `traceparent` is the trace that the run belongs to when the caller is in none of its own; "" = a new one.
    """

    orchestration_id: str
    message: str
    tenant_id: str
    session_id: str | None = None
    initial_state: Mapping[str, object] | None = None
    priority: int = 0
    traceparent: str = ""
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = None
    api_key_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn of a chat to enqueue; its session is made with the first one. Webhook and trace as for `NewRun`."""

    session_id: str
    agent_id: str
    message: str
    tenant_id: str
    images: Sequence[str] | None = None
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = None
    traceparent: str = ""


def new_run_id(now_ms: int) -> str:
    """Return an id of upstream's form: run_<12 hex>_<ms>."""
    return f"run_{secrets.token_hex(6)}_{now_ms}"


async def enqueue_run(
    database: Database,
    client: Redis,
    run: NewRun,
    *,
    run_id: str,
    now_ms: int,
    without_row: Topology = ONE_QUEUE,
    seen: Seen | None = None,
) -> str:
    """Make a run durable and queue it; returns the run's id (which is its job's id too).

    Calling it again with the same id, after an error, queues the run once.

    Args:
        without_row: the topology where no row of `scale_topology` says otherwise.
        seen: spares reading the row, to who has read it; None = it is read.

    Raises:
        StoreUnavailable: a store does not answer; a run row may exist and be queued later, never twice.
        SynapseError: under isolation, the tenant cannot have a queue.
    """
    webhook_secret = run.webhook_secret.get_secret_value() if run.webhook_secret else None
    arguments: dict[str, object] = {
        "run_id": run_id,
        "orch_id": run.orchestration_id,
        "initial_input": run.message,
        "session_id": run.session_id,
        "initial_state": dict(run.initial_state) if run.initial_state else None,
        "webhook_url": run.webhook_url,
        "webhook_secret": webhook_secret,
        "tenant_id": run.tenant_id,
        "api_key_id": run.api_key_id,
    }

    async def write(epoch: int, now: Topology) -> tuple[str, bytes] | None:
        if now.isolation and (reason := why_no_queue(run.tenant_id)):
            raise SynapseError(f"tenant {run.tenant_id[:60]!r} cannot have a queue of its own: {reason}")
        shard = shard_of_job(now, key=run_id, tenant_id=run.tenant_id, priority=run.priority)
        extras = _extras(epoch, run.priority, run.traceparent)
        envelope = encode(JobPayload(RUN_FUNCTION, arguments, enqueued_ms=now_ms, extras=extras))
        queued = runs.QueuedRun(
            run_id=run_id,
            orchestration_id=run.orchestration_id,
            session_id=run.session_id,
            tenant_id=run.tenant_id,
            job_id=run_id,
            queue=keys.queue(shard),
            envelope=envelope,
            webhook_url=run.webhook_url,
            webhook_secret=webhook_secret,
        )
        queue_key = await runs.create_queued(database, queued, epoch=epoch)
        return None if queue_key is None else (queue_key, envelope)

    parent = "" if tracing.traceparent() else run.traceparent
    names = {"run_id": run_id, "orchestration_id": run.orchestration_id, "tenant_id": run.tenant_id}
    with _enqueueing(run_id, run_id, parent, **names):
        queue_key, envelope = await _by_the_topology(database, without_row, write, seen)
        await put(client, queue_key, run_id, envelope)
    return run_id


def new_turn_id(session_id: str, now_ms: int) -> str:
    """Return the id of a turn's job: chat_<session>_<ms><random>, with a session's name that is too long cut short."""
    return f"chat_{session_id[:200]}_{now_ms}{secrets.token_hex(4)}"


async def enqueue_turn(
    database: Database,
    client: Redis,
    turn: NewTurn,
    *,
    job_id: str,
    now_ms: int,
    without_row: Topology = ONE_QUEUE,
    seen: Seen | None = None,
) -> None:
    """Make a turn of a chat durable and queue it; as `enqueue_run`. All turns of a session go to one queue.

    Raises:
        StoreUnavailable, SynapseError: as there.
        SessionTaken: the session is another tenant's.
    """
    webhook_secret = turn.webhook_secret.get_secret_value() if turn.webhook_secret else None
    arguments: dict[str, object] = {
        "session_id": turn.session_id,
        "agent_id": turn.agent_id,
        "message": turn.message,
        "images": list(turn.images) if turn.images else None,
        "webhook_url": turn.webhook_url,
        "webhook_secret": webhook_secret,
        "tenant_id": turn.tenant_id,
    }

    async def write(epoch: int, now: Topology) -> tuple[str, bytes] | None:
        if now.isolation and (reason := why_no_queue(turn.tenant_id)):
            raise SynapseError(f"tenant {turn.tenant_id[:60]!r} cannot have a queue of its own: {reason}")
        shard = shard_of_job(now, key=turn.session_id, tenant_id=turn.tenant_id)
        extras = _extras(epoch, 0, turn.traceparent)
        envelope = encode(JobPayload(CHAT_FUNCTION, arguments, enqueued_ms=now_ms, extras=extras))
        queued = chats.QueuedTurn(
            session_id=turn.session_id,
            agent_id=turn.agent_id,
            tenant_id=turn.tenant_id,
            job_id=job_id,
            queue=keys.queue(shard),
            envelope=envelope,
            webhook_url=turn.webhook_url,
            webhook_secret=webhook_secret,
        )
        queue_key = await chats.create_queued(database, queued, epoch=epoch)
        return None if queue_key is None else (queue_key, envelope)

    names = {"session_id": turn.session_id, "agent_id": turn.agent_id, "tenant_id": turn.tenant_id}
    parent = "" if tracing.traceparent() else turn.traceparent
    with _enqueueing(job_id, job_id, parent, **names):
        queue_key, envelope = await _by_the_topology(database, without_row, write, seen)
        await put(client, queue_key, job_id, envelope)


async def cancel_turn(client: Redis, session_id: str) -> None:
    """Ask whoever works on a session's turn to stop."""
    with redis_errors_as_ours():
        await client.set(keys.cancel_chat(session_id), b"1", ex=keys.CANCEL_TTL_SECONDS)


async def retry_letter(
    database: Database, client: Redis, letter: Letter, *, now_ms: int, without_row: Topology = ONE_QUEUE
) -> str | None:
    """Queue a dead letter's job again, as a new job of the same run.

    Args:
        without_row: as for `enqueue_run`.

    Returns:
        The new job's id; None when somebody has dealt with the letter already.
    """
    job_id = f"retry_{secrets.token_hex(6)}_{now_ms}"
    origin = await _origin(database, letter.run_id) if letter.run_id is not None else _Origin()
    tenant_id, priority, trace = origin.tenant_id or letter.tenant_id or "", origin.priority, origin.traceparent
    # As its first job was: a run's by the run, a chat's turn by the session.
    key = letter.run_id or str(letter.payload.get("session_id") or job_id)

    async def write(epoch: int, now: Topology) -> tuple[str, bytes, bool] | None:
        shard = shard_of_job(now, key=key, tenant_id=tenant_id, priority=priority)
        queue_key = keys.queue(shard)
        extras = _extras(epoch, priority, trace)
        envelope = encode(JobPayload(letter.function, letter.payload, enqueued_ms=now_ms, extras=extras))
        done = await dead_letters.requeue(
            database, letter, job_id=job_id, queue=queue_key, envelope=envelope, epoch=epoch
        )
        return None if done is None else (queue_key, envelope, done)

    with _enqueueing(job_id, letter.run_id or job_id, trace, run_id=letter.run_id or "", tenant_id=tenant_id):
        queue_key, envelope, done = await _by_the_topology(database, without_row, write)
        if not done:
            return None
        if letter.run_id is not None:
            await _forget_cancel(client, letter.run_id)
        await put(client, queue_key, job_id, envelope)
    return job_id


async def resume_run(
    database: Database, client: Redis, run_id: str, *, now_ms: int, without_row: Topology = ONE_QUEUE
) -> tuple[str, str]:
    """Queue a failed or cancelled run again, as a new job; it goes on at the step that did not finish.

    Args:
        without_row: as for `enqueue_run`.

    Returns:
        The status that the run had and the new job's id; the id is "" when the run had another status than failed
        or cancelled and nothing was written, and the status is "" when there is no such run.
    """
    from_statuses = (runs.RunStatus.FAILED, runs.RunStatus.CANCELLED)
    job = (RESUME_FUNCTION, {"run_id": run_id})
    return await _go_on(database, client, run_id, job, from_statuses, now_ms=now_ms, without_row=without_row)


async def answer_run(
    database: Database,
    client: Redis,
    run_id: str,
    answer: object,
    *,
    now_ms: int,
    without_row: Topology = ONE_QUEUE,
    webhook_url: str | None = None,
    webhook_secret: str | None = None,
) -> tuple[str, str]:
    """Queue a run that waits for a human, as a new job with the answer; whichever worker takes it goes on.

    Args:
        answer: a text, or an object of the fields that were asked for.
        without_row: as for `enqueue_run`.
        webhook_url: told of the run's end, if it has none yet.

    Returns:
        As `resume_run`, for runs that are paused: of two answers to one question the second is told another status.
    """
    arguments: dict[str, object] = {
        "run_id": run_id,
        "human_response": answer,
        "webhook_url": webhook_url,
        "webhook_secret": webhook_secret,
    }
    job = (ANSWER_FUNCTION, arguments)
    paused = (runs.RunStatus.PAUSED,)
    return await _go_on(database, client, run_id, job, paused, now_ms=now_ms, without_row=without_row)


async def _go_on(
    database: Database,
    client: Redis,
    run_id: str,
    job: tuple[str, Mapping[str, object]],
    from_statuses: Sequence[runs.RunStatus],
    *,
    now_ms: int,
    without_row: Topology,
) -> tuple[str, str]:
    """Queue a run that stands still, under a new job; returns its status before, and the job's id if it fits."""
    job_id = f"resume_{now_ms}_{secrets.token_hex(6)}"
    function, arguments = job
    tenant_id, priority, trace = await _origin(database, run_id)

    async def write(epoch: int, now: Topology) -> tuple[str, bytes, str] | None:
        queue_key = keys.queue(shard_of_job(now, key=run_id, tenant_id=tenant_id, priority=priority))
        extras = _extras(epoch, priority, trace)
        envelope = encode(JobPayload(function, arguments, enqueued_ms=now_ms, extras=extras))
        was = await runs.requeue(
            database, run_id, from_statuses, job_id=job_id, queue=queue_key, envelope=envelope, epoch=epoch
        )
        return None if was is None else (queue_key, envelope, was)

    with _enqueueing(job_id, run_id, trace, run_id=run_id, tenant_id=tenant_id):
        queue_key, envelope, was = await _by_the_topology(database, without_row, write)
        if was not in from_statuses:
            return was, ""
        await _forget_cancel(client, run_id)
        await put(client, queue_key, job_id, envelope)
    return was, job_id


async def _by_the_topology(
    database: Database,
    without_row: Topology,
    write: Callable[[int, Topology], Awaitable[T | None]],
    seen: Seen | None = None,
) -> T:
    """Let `write` write a job by the epoch and topology of now; it returns None when these have changed meanwhile."""
    while True:
        if seen is None:
            row = await topology.read(database)
            seen = Seen(0, without_row) if row is None else Seen(row.epoch, row.topology)
        done = await write(seen.epoch, seen.topology)
        if done is not None:
            return done
        seen = None


class _Origin(NamedTuple):
    """What a run's first job was enqueued with and a later one of the same run takes over."""

    tenant_id: str = ""
    priority: int = 0
    traceparent: str = ""


async def _origin(database: Database, run_id: str) -> _Origin:
    """Return what a run's first job was enqueued with; tenant "" for no such run."""
    tenant_id = (await claims.tenants_of(database, [run_id])).get(run_id, "")
    envelope = await claims.envelope_of(database, run_id)
    try:
        extras = decode(envelope).extras if envelope is not None else {}
    except PayloadError:  # another producer's; whoever claims the job will say so
        extras = {}
    priority = extras.get("priority")
    return _Origin(
        tenant_id,
        priority if isinstance(priority, int) and 0 <= priority <= HIGHEST_PRIORITY else 0,
        tracing.well_formed(extras.get("traceparent")),
    )


def _enqueueing(job_id: str, key: str, parent: str, **names: tracing.Value) -> AbstractContextManager[None]:
    """Open the span of a job's producer, from which the worker that claims it goes on; `key` as for `tracing.begin`."""
    message = {"messaging.system": "redis", "messaging.message.id": job_id, "messaging.operation.type": "send"}
    return tracing.begin("enqueue", tracing.Kind.PRODUCER, {**names, **message}, parent=parent, key=key)


def _extras(epoch: int, priority: int, parent: str) -> dict[str, object]:
    traceparent = tracing.traceparent() or tracing.well_formed(parent)
    return {
        "epoch": epoch,
        **({"priority": priority} if priority else {}),
        **({"traceparent": traceparent} if traceparent else {}),
    }


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
    with tracing.redis("enqueue"), redis_errors_as_ours():
        await client.set(keys.job(job_id), envelope, px=keys.JOB_TTL_MS)
        added = await enqueue(keys=places, args=[job_id])
        if added and is_tenants_own(keys.shard_of(queue_key)):
            await load_script(client, "note_active")(keys=[keys.ACTIVE_TENANTS], args=[0, keys.shard_of(queue_key)])
    return bool(added)


async def queue_figures(client: Redis, queue_keys: Sequence[str]) -> dict[str, QueueFigures]:
    """Read how full the queues are, in one round trip.

    Raises:
        WrongKeyType: a key of one of the queues has another type.
    """
    answers = await _count(client, queue_keys)
    with redis_errors_as_ours():
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
    return {queue_key: _figures(answer) for queue_key, answer in zip(queue_keys, answers, strict=True)}


async def readable_figures(client: Redis, queue_keys: Sequence[str]) -> dict[str, QueueFigures]:
    """As `queue_figures`, without the queues whose keys have another type; the claim loop names these."""
    answers = dict(zip(queue_keys, await _count(client, queue_keys), strict=True))
    figures: dict[str, QueueFigures] = {}
    for queue_key, answer in answers.items():
        with suppress(WrongKeyType), redis_errors_as_ours():
            if isinstance(answer, Exception):
                raise answer
            figures[queue_key] = _figures(answer)
    return figures


async def _count(client: Redis, queue_keys: Sequence[str]) -> list[Any]:
    """Return what the script says of each queue, or the error that it met."""
    script = load_script(client, "figures")

    async def ask() -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for queue_key in queue_keys:
            names = holding(queue_key)
            pipeline.evalsha(script.sha, len(names), *names)
        return list(await pipeline.execute(raise_on_error=False))

    with redis_errors_as_ours():
        answers = await ask()
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await client.script_load(script.script)
            answers = await ask()
    return answers


def _figures(answer: Sequence[Any]) -> QueueFigures:
    fresh, again, suspects, leased, expired, parked, oldest = answer
    return QueueFigures(
        queued=fresh + again + suspects + parked,
        active=leased,
        parked=parked,
        again=again,
        expired=expired,
        oldest_seconds=float(oldest) / 1000 if oldest else None,
    )


async def jobs_held(client: Redis, queue_keys: Sequence[str]) -> dict[str, int]:
    """Return how many jobs of the queues each worker holds, by worker id, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for queue_key in queue_keys:
        pipeline.hvals(keys.claims(queue_key))
    with redis_errors_as_ours():
        answers: list[list[bytes]] = await pipeline.execute()
    workers = (claim.decode(errors="replace").split("|", 2)[-1] for answer in answers for claim in answer)
    return dict(Counter(workers))


async def known_queues(database: Database) -> list[str]:
    """Return the keys of all queues that may hold jobs: `default`, every shard, every known tenant's own."""
    return queues_with(await topology.known_tenants(database))


def queues_with(tenants: Iterable[str]) -> list[str]:
    """Return the keys of all queues that may hold jobs where these tenants are known.

    What holds jobs must be served, whatever the topology says now: jobs stay in the queue that they were put into.
    """
    own = (tenant for tenant in tenants if not why_no_queue(tenant))
    shards = [DEFAULT_QUEUE, *(str(shard) for shard in range(MAX_SHARDS)), *own]
    return [keys.queue(shard) for shard in dict.fromkeys(shards)]


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
