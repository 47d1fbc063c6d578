"""What runs and turns of chats have in common as jobs: their budget, and the ways in which they end.

A job has ended (its lease is released), or is given back, or is somebody else's (nothing more is written). What it
does, and what is written of its end, is its kind's: `run_job` and `chat_job`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from contextlib import suppress

from synapse_worker.endings import LAST_WRITE_SECONDS, whole
from synapse_worker.errors import JobFailed, JobRetry, OwnershipLost, StoreRefused, StoreUnavailable
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.loop import Control, Ending, StopReason
from synapse_worker.queueing.payload import JobPayload
from synapse_worker.queueing.stops import RunningJob
from synapse_worker.store.chat_turns import OwnedTurn
from synapse_worker.store.claims import OwnedRun
from synapse_worker.surroundings import Surroundings

log = logging.getLogger(__name__)

_RETRY_BASE_SECONDS = 1.0
_RETRY_MOST_SECONDS = 300.0

CRASH_LIMIT = 3
"""Crashes of a job that ran alone, without anything of it finished in between, until it is given up."""


def retry_delay_ms(job: str, failures: int) -> int:
    """Return how long a job waits that has failed so often."""
    delay = min(_RETRY_MOST_SECONDS, _RETRY_BASE_SECONDS * 2 ** (failures - 1))
    # Half of the delay is jitter, so that what failed together does not come back together.
    return int(delay * (0.5 + (hash((job, failures)) % 1000) / 2000) * 1000)


class ClaimedJob(ABC):
    """One job under one lease and one claim; see `queueing.loop.Job`."""

    def __init__(
        self,
        lease: Lease,
        payload: JobPayload,
        owned: OwnedRun | OwnedTurn,
        surroundings: Surroundings,
        running: dict[RunningJob, Control],
        ids: RunningJob,
        *,
        tenant_id: str,
        name: str,
    ) -> None:
        """Make it ready to run.

        Args:
            owned: what the claim owns; how often it failed, and how long it ran, before.
            running: the jobs that run in this process now.
            ids: how who cancels or aborts the job names it.
            tenant_id: whose place it has.
            name: what log lines call it, such as `run run_1`.
        """
        self.lease = lease
        self._payload = payload
        self._with = surroundings
        self._running = running
        self._ids = ids
        self._reserved_for = tenant_id
        self._name = name
        self._failures = owned.failures
        self._active_before = owned.active_seconds
        self._began = time.monotonic()
        self._control: Control | None = None
        self._crashed = owned.suspect and owned.crashes - lease.alone >= CRASH_LIMIT

    async def run(self, control: Control) -> Ending:
        """Run to the end, a boundary within it at a drain, or a stop; see `Job.run`."""
        self._with.reservations.hold(self.lease.job_id, self._reserved_for)
        self._with.metrics.active_runs.inc()
        self._running[self._ids] = self._control = control
        ending: Ending = None
        try:
            ending = await self._until_it_ends(control)
        finally:
            self._with.metrics.active_runs.dec()
            if self._running.get(self._ids) is control:  # else it was claimed here anew, and its place is that claim's
                del self._running[self._ids]
                ended = isinstance(ending, Release)
                self._with.reservations.free(self.lease.job_id, self._reserved_for, ended=ended)
        return ending

    async def _until_it_ends(self, control: Control) -> Ending:
        seconds = self._with.settings.job_timeout
        try:
            if (unwanted := await self._unwanted()) is not None:
                return await whole(self._cancel(unwanted))
            try:
                async with asyncio.timeout(max(0.0, seconds - self._active_before)) as timer:
                    if self._crashed:
                        raise JobFailed(
                            f"CrashLoop: its worker process ended {CRASH_LIMIT} times while it ran nothing but this"
                            " job, and no step was finished; the last log lines of the worker's pods say more"
                        )
                    return await self._work(control)
            except TimeoutError:
                if not timer.expired():
                    raise
                raise JobFailed(f"the job took over {seconds} active seconds (WORKER_JOB_TIMEOUT)") from None
        except asyncio.CancelledError:
            return await self._stopped(control)
        except JobFailed as error:
            return await whole(self._fail(str(error)))
        except JobRetry as error:
            return await whole(self._retry(str(error)))
        except OwnershipLost:
            log.warning("%s has another owner; this one stops", self._name)
            return None
        except Exception as error:
            log.exception("%s met an unexpected error", self._name)
            return await whole(self._retry(f"internal error: {type(error).__name__}"))

    @abstractmethod
    async def _unwanted(self) -> StopReason | None:
        """Return why the job need not begin, if it need not."""

    @abstractmethod
    async def _work(self, control: Control) -> Ending:
        """Do it, and end it with `whole`.

        Raises:
            JobFailed, JobRetry, OwnershipLost: it ends otherwise.
        """

    @abstractmethod
    async def _fail(self, sentence: str) -> Ending:
        """End the job as failed, for good."""

    @abstractmethod
    async def _cancel(self, reason: StopReason) -> Ending:
        """End the job because somebody wants it to end."""

    @abstractmethod
    async def _write_back(self, active_seconds: float, *, failed: bool) -> bool:
        """Note, in one call of PostgreSQL, that nobody owns the job any more; False = it is somebody else's.

        Args:
            active_seconds: how long this claim worked on it.
            failed: count this execution as a failed one.
        """

    async def _retry(self, sentence: str) -> Ending:
        """Count a failed execution; give the job back with back-off, or end it when the retries are used up."""
        failures, most = self._failures + 1, self._with.settings.max_retries
        if failures > most:
            return await self._fail(f"{sentence} (after {failures} executions)")
        log.warning("%s will be tried again (%d of %d): %s", self._name, failures, most, sentence)
        if not await self._give_back(failed=True):
            return None
        return HandBack(self.lease, retry_delay_ms(self._name, failures))

    async def _hand_over(self) -> Ending:
        return HandBack(self.lease, None) if await self._give_back(failed=False) else None

    async def _stopped(self, control: Control) -> Ending:
        """End a job that was interrupted; what it was doing is left without a trace."""
        if control.stop_reason in (StopReason.CANCELLED, StopReason.ABORTED):
            return await self._cancel(control.stop_reason)
        if control.stop_reason is StopReason.INTERRUPTED:
            return await self._hand_over()
        # The lease is lost, the rest may still be ours: the fence decides. Given back here, it need not wait for
        # somebody to notice; whether its queue entry is still there the sweep finds out.
        with suppress(StoreUnavailable, StoreRefused, TimeoutError):
            async with asyncio.timeout(LAST_WRITE_SECONDS):
                await self._write_back(self._active(), failed=False)
        return None

    async def _give_back(self, *, failed: bool) -> bool:
        active = self._active()
        return await self._with.persist(lambda: self._write_back(active, failed=failed))

    def _active(self) -> float:
        return time.monotonic() - self._began
