"""Jobs whose owner crashed over them: set apart, run where nothing else runs, given up after three crashes alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from redis.asyncio import Redis

from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import put
from synapse_worker.queueing.lease import HandBack, Lease, LeaseQueue, Release
from synapse_worker.queueing.loop import ClaimLoop, Control, Ending, Job
from synapse_worker.queueing.served import Served
from synapse_worker.store import claims, definitions
from synapse_worker.store.claims import ClaimRequest, OwnedRun
from synapse_worker.store.database import Database
from synapse_worker.store.runs import RunWriter, StepRow
from tests.support.runs import enqueue, eventually, view
from tests.support.servers import RedisServer
from tests.support.workers import PRINT_IF_PRINT, StartWorker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Q = keys.queue("default")
REQUEST = ClaimRequest("run_1", "run_1", Q, b"x", 1, "o", None, "default", None, None)


async def take(database: Database, *, alone: bool = False) -> OwnedRun:
    """Claim the one run; its owner before has said nothing unless the test did."""
    (answer,) = await claims.take(database, "w", [REQUEST._replace(alone=alone)])
    assert answer.run is not None
    return answer.run


async def finish_step(database: Database, run: OwnedRun, visit: int) -> None:
    row = StepRow("s", visit, visit, {}, {"step_id": "s"}, [], NOW, NOW)
    assert await RunWriter(database).checkpoint(
        run, row, cursor={"at": visit}, engine_version=1, current_step_id=None, definition=None, folded=None
    )


async def test_only_a_crash_without_a_finished_step_makes_a_suspect(database: Database) -> None:
    first = await take(database)
    assert not first.suspect
    await finish_step(database, first, 1)
    assert not (await take(database)).suspect  # the crashed claim had got on
    assert (await take(database)).suspect  # this one had not
    given = await take(database)
    assert given.suspect
    await claims.give_back(database, given, active_seconds=0.0)
    assert (await take(database)).suspect  # passed on, never run: it is one still


async def test_what_was_given_back_in_order_is_no_suspect(database: Database) -> None:
    assert await claims.give_back(database, await take(database), active_seconds=0.0)
    assert not (await take(database)).suspect


async def test_only_crashes_alone_count_and_a_finished_step_wipes_them_out(database: Database) -> None:
    await take(database)
    assert (await take(database)).crashes == 0  # with others around: whose fault it was is not known
    assert (await take(database, alone=True)).crashes == 1
    assert (await take(database)).crashes == 1  # passed on by a busy worker
    second = await take(database, alone=True)
    assert second.crashes == 2
    assert await claims.give_back(database, second, active_seconds=0.0, alone=True)  # drained: no crash
    third = await take(database, alone=True)
    assert third.crashes == 2
    await finish_step(database, third, 1)
    after = await take(database)
    assert (after.suspect, after.crashes) == (False, 0)


class _UntilTold:
    """A job that runs until the test says so."""

    def __init__(self, lease: Lease, seen: Seen) -> None:
        self.lease = lease
        self._seen = seen

    async def run(self, control: Control) -> Ending:
        self._seen.running.append(self.lease.job_id)
        await self._seen.may_end(self.lease.job_id).wait()
        self._seen.running.remove(self.lease.job_id)
        return Release(self.lease, b"")


class Seen:
    """The jobs of one loop; a handler for it."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self._may_end: dict[str, asyncio.Event] = {}

    def may_end(self, job_id: str) -> asyncio.Event:
        return self._may_end.setdefault(job_id, asyncio.Event())

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        return [_UntilTold(lease, self) for lease in leases]


@asynccontextmanager
async def claiming(database: Database, client: Redis, name: str) -> AsyncIterator[Seen]:
    """A claim loop with four slots under another worker's name."""
    gate = StoreGate(database, client)
    watching = asyncio.create_task(gate.watch())
    seen = Seen()
    loop = ClaimLoop(
        Served([LeaseQueue(client, Q, worker_id=name, lease_seconds=3)]), seen, gate, slots=4, lease_seconds=3
    )
    running = asyncio.create_task(loop.run())
    yield seen
    loop.stop(hand_over=False)
    loop.interrupt()
    await running
    watching.cancel()


async def suspect(client: Redis, job_id: str) -> None:
    """Make a job one that waits for an empty worker; it was leased, so nobody else could take it before."""
    queue = LeaseQueue(client, Q, worker_id="crashed", lease_seconds=3)
    lease = Lease(Q, job_id, "token", 1.0, asyncio.get_running_loop().time() + 3)
    seconds, _ = await client.time()
    await client.zadd(keys.leases(Q), {job_id: (seconds + 3) * 1000})
    await client.hset(keys.claims(Q), job_id, "token|1|crashed")
    assert await queue.hand_back([HandBack(lease, None, suspect=True)]) == set()


async def test_a_suspect_waits_for_an_empty_worker_and_runs_alone(database: Database, redis_client: Redis) -> None:
    async with claiming(database, redis_client, "w1") as seen:
        await put(redis_client, Q, "busy", b"x")
        await eventually("it is busy", lambda: seen.running == ["busy"])
        await suspect(redis_client, "bad")
        assert not await put(redis_client, Q, "bad", b"x")  # the sweep finds it where it waits
        name = keys.isolating(Q)
        await put(redis_client, Q, "passing", b"x")  # whatever comes makes it look
        seen.may_end("passing").set()
        await eventually("it gets empty", lambda: redis_client.zcard(name))
        await put(redis_client, Q, "young", b"x")
        seen.may_end("busy").set()
        await eventually("the suspect runs", lambda: seen.running == ["bad"])
        assert await redis_client.zscore(Q, "young")  # free slots, and nothing beside it
        seen.may_end("bad").set()
        await eventually("it goes on as before", lambda: seen.running == ["young"])
        seen.may_end("young").set()


async def test_as_many_workers_get_empty_as_suspects_wait(database: Database, redis_client: Redis) -> None:
    async with claiming(database, redis_client, "w1") as one, claiming(database, redis_client, "w2") as other:
        both = (one, other)
        for number in range(8):
            await put(redis_client, Q, f"busy{number}", b"x")
        await eventually("both are full", lambda: len(one.running) == len(other.running) == 4)
        await suspect(redis_client, "bad")
        for seen in both:  # a slot free in each: both look
            seen.may_end(seen.running[0]).set()
        await eventually("one gets empty", lambda: redis_client.zcard(keys.isolating(Q)))
        (getting_empty,) = await redis_client.zrange(keys.isolating(Q), 0, -1)
        for number in range(3):
            await put(redis_client, Q, f"young{number}", b"x")
        free, bound = both if getting_empty == b"w2" else both[::-1]
        await eventually("the other goes on", lambda: any(job.startswith("young") for job in free.running))
        assert not any(job.startswith("young") for job in bound.running)
        for seen in both:
            for job in seen.running:
                seen.may_end(job).set()
        await eventually("the suspect runs", lambda: "bad" in one.running + other.running)
        for job in ("bad", "young0", "young1", "young2"):
            one.may_end(job).set()
            other.may_end(job).set()
        await eventually("all are done", lambda: not one.running and not other.running)


async def test_a_suspect_that_finishes_a_step_alone_goes_on_beside_others(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await definitions.upsert(
        database, [definitions.Document("orchestrations", "three", "Three", "", PRINT_IF_PRINT)], tenant_id="default"
    )
    run_id = await enqueue(database, redis_client, "three")
    request = REQUEST._replace(job_id=run_id, run_id=run_id, orchestration_id="three")
    await claims.take(database, "gone", [request])  # and its owner is never heard of again
    start_worker().wait_ready()

    async def ended() -> bool:
        return (await view(database, run_id)).status == "completed"

    await eventually("it completes", ended)
    steps = await database.fetch("SELECT claim FROM run_steps WHERE run_id = $1 ORDER BY ordinal", run_id)
    first, second, third = (row["claim"] for row in steps)
    assert first < second == third  # alone for one step, then as any other
    row = await database.fetchrow("SELECT suspect, crashes, failures FROM job_ledger WHERE job_id = $1", run_id)
    assert row is not None
    assert tuple(row) == (False, 0, 0)


async def test_after_three_crashes_alone_the_job_is_a_dead_letter(
    database: Database, redis_client: Redis, redis_server: RedisServer, start_worker: StartWorker
) -> None:
    await definitions.upsert(
        database, [definitions.Document("orchestrations", "three", "Three", "", PRINT_IF_PRINT)], tenant_id="default"
    )
    run_id = await enqueue(database, redis_client, "three")
    (answer,) = await claims.take(
        database, "gone", [REQUEST._replace(job_id=run_id, run_id=run_id, orchestration_id="three")]
    )
    assert answer.run is not None
    await database.execute("UPDATE job_ledger SET suspect = true, crashes = 3 WHERE job_id = $1", run_id)
    start_worker().wait_ready()

    async def ended() -> bool:
        return (await view(database, run_id)).status == "failed"

    await eventually("it is given up", ended)
    assert str((await view(database, run_id)).error).startswith("CrashLoop: its worker process ended 3 times")
    letter = await database.fetchrow("SELECT error_message, attempt_count FROM dead_letter_queue")
    assert letter is not None
    assert letter["error_message"].startswith("CrashLoop: ")
