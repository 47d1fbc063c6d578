"""The ways in which a job ends that does not end by itself; what is written then, the kinds of jobs say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from synapse_worker.claimed_job import CRASH_LIMIT, ClaimedJob
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, StopReason
from synapse_worker.queueing.payload import JobPayload
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.store.chat_turns import OwnedTurn
from synapse_worker.surroundings import Surroundings

LEASE = Lease("q", "j", "t", 1.0, 30.0)


class Noted:
    """Surroundings of a job, and what it did with them."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.running = 0
        self.settings = SimpleNamespace(job_timeout=60, max_retries=2)
        self.reservations = SimpleNamespace(
            hold=lambda job, tenant: self.places.append(f"+{tenant}"),
            free=lambda job, tenant, ended: self.places.append(f"-{tenant}{' for good' if ended else ''}"),
        )
        self.metrics = SimpleNamespace(active_runs=SimpleNamespace(inc=lambda: None, dec=lambda: None))

    async def persist(self, call: Callable[[], Awaitable[bool]]) -> bool:
        return await call()


class AJob(ClaimedJob):
    """A job that does what the test says."""

    def __init__(self, work: Callable[[], Awaitable[Ending]], noted: Noted, *, failures: int = 0, crashes: int = 0):
        turn = OwnedTurn("j", "s", "helper", "acme", None, 1, [], failures, 0.0, crashes > 0, crashes)
        self.running: dict[RunningJob, Control] = {}
        surroundings, payload = cast(Surroundings, noted), JobPayload("f", {})
        ids = RunningJob("s", "j")
        super().__init__(LEASE, payload, turn, surroundings, self.running, ids, tenant_id="acme", name="job j")
        self._do = work
        self.written: list[str] = []
        self.wanted: StopReason | None = None

    async def _unwanted(self) -> StopReason | None:
        return self.wanted

    async def _work(self, control: Control) -> Ending:
        assert list(self.running) == [RunningJob("s", "j")]
        return await self._do()

    async def _fail(self, sentence: str) -> Ending:
        self.written.append(f"failed: {sentence}")
        return Release(LEASE, b"")

    async def _cancel(self, reason: StopReason) -> Ending:
        self.written.append(f"cancelled: {reason}")
        return Release(LEASE, b"")

    async def _write_back(self, active_seconds: float, *, failed: bool) -> bool:
        self.written.append("given back, failed" if failed else "given back")
        return True


def raises(error: BaseException) -> Callable[[], Awaitable[Ending]]:
    async def work() -> Ending:
        raise error

    return work


async def forever() -> Ending:
    await asyncio.Event().wait()
    return None


def a_control() -> Control:
    return cast(Control, SimpleNamespace(stop_reason=None))


@pytest.mark.parametrize(
    ("error", "failures", "written", "ending"),
    [
        (JobFailed("bad"), 0, ["failed: bad"], Release),
        (JobRetry("away"), 1, ["given back, failed"], HandBack),
        (JobRetry("away"), 2, ["failed: away (after 3 executions)"], Release),
        (OwnershipLost("j"), 0, [], type(None)),
        (ZeroDivisionError(), 0, ["given back, failed"], HandBack),
    ],
)
async def test_what_is_raised_ends_a_job(
    error: BaseException, failures: int, written: list[str], ending: type[object]
) -> None:
    noted = Noted()
    job = AJob(raises(error), noted, failures=failures)
    assert isinstance(await job.run(a_control()), ending)
    given_back = "-acme for good" if ending is Release else "-acme"
    assert (job.written, noted.places, job.running) == (written, ["+acme", given_back], {})


async def test_a_job_may_take_its_seconds_and_no_more() -> None:
    noted = Noted()
    noted.settings.job_timeout = 0
    job = AJob(forever, noted)
    assert isinstance(await job.run(a_control()), Release)
    assert job.written == ["failed: the job took over 0 active seconds (WORKER_JOB_TIMEOUT)"]


async def test_a_job_that_crashes_its_worker_is_given_up() -> None:
    job = AJob(forever, Noted(), crashes=CRASH_LIMIT)
    assert isinstance(await job.run(a_control()), Release)
    assert job.written[0].startswith("failed: CrashLoop: its worker process ended 3 times")


async def test_a_job_that_nobody_wants_does_not_begin() -> None:
    job = AJob(forever, Noted())
    job.wanted = StopReason.ABORTED
    assert isinstance(await job.run(a_control()), Release)
    assert job.written == ["cancelled: aborted"]


@pytest.mark.parametrize(
    ("reason", "written", "ending"),
    [
        (StopReason.CANCELLED, ["cancelled: cancelled"], Release),
        (StopReason.INTERRUPTED, ["given back"], HandBack),
        (StopReason.LOST, ["given back"], type(None)),
    ],
)
async def test_a_job_that_is_stopped(reason: StopReason, written: list[str], ending: type[object]) -> None:
    began = asyncio.Event()

    async def work() -> Ending:
        began.set()
        return await forever()

    job, control = AJob(work, Noted()), a_control()
    task = asyncio.create_task(job.run(control))
    await began.wait()
    control.stop_reason = reason
    task.cancel()
    assert isinstance(await task, ending)
    assert job.written == written


async def test_a_job_that_was_claimed_here_anew_leaves_its_place_to_that_claim() -> None:
    noted, began = Noted(), asyncio.Event()

    async def work() -> Ending:
        began.set()
        return await forever()

    job, control = AJob(work, noted), a_control()
    task = asyncio.create_task(job.run(control))
    await began.wait()
    anew = job.running[RunningJob("s", "j")] = a_control()
    control.stop_reason = StopReason.LOST
    task.cancel()
    assert await task is None
    assert (noted.places, job.running) == (["+acme"], {RunningJob("s", "j"): anew})
