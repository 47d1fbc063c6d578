"""Faults of worker processes: killed, rolled, frozen, with a wrong clock."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping, Sequence

from tests.chaos.evidence import Execution, Expected
from tests.chaos.servers import faketime_library
from tests.chaos.stage import LEASE_SECONDS, Stage
from tests.chaos.worker import POISON, POISONED_STEP

CLOCK_SKEW_SECONDS = 31


async def kills(
    stage: Stage, *, kills: int, every: float, processes: int, lease: int = LEASE_SECONDS, load_every: float = 1.0
) -> None:
    """kill -9 of one process after another, each started anew at once, while runs come in.

    A victim has to be serving: on a busy machine the pace is slower, not the worker always killed while it starts.
    Where that one is idle, another that is in the middle of a step is killed instead.
    """
    workers = await stage.start_workers(processes, WORKER_LEASE_SECONDS=str(lease))
    await stage.under_way(await stage.enqueue(2 * processes))
    async with stage.load(every=load_every):
        for number in range(kills):
            place = number % processes
            due = time.monotonic() + every
            await asyncio.to_thread(workers[place].wait_ready)
            await stage.steps_begun(1)
            busy = stage.in_a_step()
            if workers[place].pid not in busy:
                place = next((other for other in range(processes) if workers[other].pid in busy), place)
            stage.fault()
            await asyncio.to_thread(workers[place].kill)
            workers[place] = stage.start_worker(WORKER_LEASE_SECONDS=str(lease))
            if (number + 1) % 10 == 0:
                stage.say(f"{number + 1} of {kills} kills, {stage.interrupted()} steps hit in the middle")
            await asyncio.sleep(max(0.0, due - time.monotonic()))  # the scenario's pace
    await stage.ended(seconds=lease + 60)
    hit_something(stage)


def hit_something(stage: Stage) -> None:
    """A kill that interrupted nothing proves nothing."""
    if stage.interrupted() == 0:
        stage.problems.append("no step was interrupted: the faults hit nothing")


async def rollouts(stage: Stage, *, rounds: int, processes: int) -> None:
    """SIGTERM to one worker after another, each replaced before; no try is burned and nobody is suspected."""
    workers = await stage.start_workers(processes)
    await stage.under_way(await stage.enqueue(3 * processes))
    async with stage.load(every=0.5):
        for number in range(rounds):
            for place in range(processes):
                (fresh,) = await stage.start_workers(1)
                stage.fault()
                workers[place].signal(signal.SIGTERM)
                code = await asyncio.to_thread(workers[place].wait)
                if code != 0:
                    stage.problems.append(f"a worker ended with exit code {code} on SIGTERM")
                workers[place] = fresh
            stage.say(f"{number + 1} of {rounds} rollouts")
    await stage.ended(seconds=60)
    await no_try_burned(stage)
    if stage.interrupted():
        stage.problems.append(f"{stage.interrupted()} steps were interrupted although they end within the drain's time")


async def no_try_burned(stage: Stage) -> None:
    """Note a problem when a job counts a failure, a crash or a suspicion."""
    counts = await stage.ledger()
    stage.problems += [f"the ledger counts {count} {what}" for what, count in counts.items() if count]


async def frozen(stage: Stage) -> None:
    """SIGSTOP for longer than the lease, then SIGCONT: the process must not go on with what it had."""
    # With as many slots as runs, each worker has a half of them.
    sleeper, _ = await stage.start_workers(2, WORKER_CONCURRENCY="4")
    await stage.under_way(await stage.enqueue(8, rounds=5))
    owned = await stage.owned_by(sleeper)
    stage.fault()
    sleeper.signal(signal.SIGSTOP)
    stopped = time.monotonic()
    await stage.taken_over(owned, seconds=LEASE_SECONDS + 10.0)  # a slot has to become free, too
    thawed = time.monotonic()
    sleeper.signal(signal.SIGCONT)
    await stage.ended(seconds=60)
    await wrote_nothing_more(stage, owned, since=stopped + 0.5)
    began_nothing_more(stage, owned, since=thawed)


async def wrote_nothing_more(stage: Stage, claims: Mapping[str, int], *, since: float) -> None:
    """Note a problem when one of these claims committed anything after `since` (what was on its way then apart)."""
    late = [write for write in await stage.writes() if write.claim in claims.values() and write.at > since]
    if late:
        stage.problems.append(f"an outdated owner wrote {len(late)} times, the first time for {late[0].run_id}")


def began_nothing_more(stage: Stage, claims: Mapping[str, int], *, since: float) -> None:
    """Note a problem when one of these claims began a step after `since`."""
    late = [one for one in stage.executions() if one.claim in claims.values() and one.mono > since]
    if late:
        stage.problems.append(f"an outdated owner began {len(late)} steps, the first of {late[0].run_id}")


async def clocks(stage: Stage, *, kills: int) -> None:
    """Workers whose wall clocks are 31 s ahead and behind, beside a right one; each is killed now and then."""
    library = faketime_library()
    skews = (CLOCK_SKEW_SECONDS, -CLOCK_SKEW_SECONDS, 0)
    # With few slots, each of them has work.
    variables = [
        {
            "WORKER_CONCURRENCY": "3",
            "LD_PRELOAD": library,
            "FAKETIME": f"{skew:+d}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }
        if skew
        else {"WORKER_CONCURRENCY": "3"}
        for skew in skews
    ]
    workers = [stage.start_worker(**each) for each in variables]
    for worker in workers:
        await asyncio.to_thread(worker.wait_ready)
    await stage.under_way(await stage.enqueue(9))
    async with stage.load(every=0.5):
        for number in range(kills):
            place = number % len(skews)
            stage.fault()
            await asyncio.to_thread(workers[place].kill)
            (workers[place],) = await stage.start_workers(1, **variables[place])
    await stage.ended(seconds=60)
    hit_something(stage)
    offset = time.time() - time.monotonic()
    seen = {round(execution.wall - execution.mono - offset) for execution in stage.executions()}
    if seen != set(skews):
        stage.problems.append(f"the workers' clocks were off by {sorted(seen)} s, not by {sorted(skews)}")


async def poison(stage: Stage, *, neighbours: int, rounds: int) -> None:
    """A job that kills its process, beside others in it; the process is started anew each time, as a kubelet does."""
    worker = stage.start_worker(WORKER_CONCURRENCY=str(neighbours + 1))
    await asyncio.to_thread(worker.wait_ready)
    await stage.enqueue(neighbours, rounds=rounds)
    (poisoned,) = await stage.enqueue(1, message=POISON)
    stage.expected[poisoned] = Expected("failed", error="CrashLoop")
    ending = asyncio.create_task(stage.ended(seconds=180))
    deaths = 0
    while not ending.done():
        if worker.has_ended:
            deaths += 1
            stage.fault()
            worker = stage.start_worker(WORKER_CONCURRENCY=str(neighbours + 1))
        await asyncio.wait({ending}, timeout=0.1)
    await ending
    stage.say(f"the job killed {deaths} processes")
    kills = [one for one in stage.executions() if one.run_id == poisoned and one.step_id == POISONED_STEP]
    beside = await _running_beside(stage, kills)
    stage.say(f"runs beside it at each kill: {beside}")
    # A crash makes a suspect of the job unless it had finished a step under that claim (its first step is a good one).
    finished = {write.claim for write in await stage.writes() if write.run_id == poisoned and write.step_id}
    hurt = [count for before, count in zip(kills, beside[1:], strict=False) if count and before.claim not in finished]
    if not beside[0]:
        stage.problems.append("the job's first kill hit no other run: nothing was shown")
    elif hurt:
        stage.problems.append(f"a suspect killed processes with {hurt} others in them; it has to run alone")
    letters = await stage.database.fetch("SELECT run_id, error_message FROM dead_letter_queue")
    if [row["run_id"] for row in letters] != [poisoned]:
        stage.problems.append(f"{len(letters)} dead letters, not one for the job that kills its process")


async def _running_beside(stage: Stage, kills: Sequence[Execution]) -> list[int]:
    """Return how many other runs each process ran at the moment of its kill, by what was committed until then."""
    process_of = {(one.run_id, one.claim): one.pid for one in stage.executions()}
    writes = [write for write in await stage.writes() if write.status]
    counts: list[int] = []
    for kill in kills:
        last = {write.run_id: write for write in writes if write.at < kill.mono and write.run_id != kill.run_id}
        counts.append(
            sum(
                1
                for write in last.values()
                if write.status == "running" and process_of.get((write.run_id, write.claim)) == kill.pid
            )
        )
    return counts
