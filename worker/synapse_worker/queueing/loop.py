"""The claim loop: takes jobs while slots are free, keeps their leases alive, ends or gives them back.

It knows leases and time, not what a job does: a `Handler` turns claimed leases into jobs, a job says how its
lease ends. While the ends of jobs are being written, the next ones are claimed; they begin when the slots are free.
A lease that is lost, or that could not be prolonged in time, stops its job before anything else is written for it.
Signals and deadlines are `lifecycle`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from enum import StrEnum
from functools import partial
from typing import Protocol

from synapse_worker.errors import StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.lease import HandBack, Lease, Release
from synapse_worker.queueing.served import Served
from synapse_worker.queueing.turns import Turns

log = logging.getLogger(__name__)

Ending = Release | HandBack | None
"""How a lease ends; None = it is not ours any more, touch nothing."""

_MAX_BATCH = 50
"""Jobs of one claim: small enough that the stores work on one batch while we work on another."""
_BUSY_POLL = 0.01
_IDLE_POLL = 0.1
_GATE_WAIT = 1.0
_ISOLATION_SECONDS = 5.0
"""How long a worker's word counts that it gets empty for a suspect; it is renewed every second."""
_CHUNK = 500
_REFUSED_SECONDS = 5.0
"""How long a queue whose keys cannot be used is left alone before it is tried again."""


class StopReason(StrEnum):
    """Why a running job is told to stop."""

    LOST = "lost"
    """Its lease belongs to nobody or to another worker: it may write nothing more."""
    INTERRUPTED = "interrupted"
    """The drain's deadline has come: it gives its run back as far as the last checkpoint."""
    CANCELLED = "cancelled"
    """A user wants it to end."""
    ABORTED = "aborted"
    """The same, by arq's `Job.abort()`, which waits for a result that says so."""


class Control:
    """What a running job is told by its surroundings."""

    def __init__(self, loop: ClaimLoop) -> None:
        self._loop = loop
        self.task: asyncio.Task[Ending] | None = None
        self.stop_reason: StopReason | None = None
        self.is_ending = False

    def ends(self) -> None:
        """Say that the work is done and only its end is to be written: the slot's next job may be claimed."""
        if not self.is_ending and self.task is not None:
            self.is_ending = True
            self._loop.one_ends()

    @property
    def hand_over(self) -> bool:
        """Whether the job should give its run back at the next step boundary."""
        return self._loop.handing_over

    def stop(self, reason: StopReason) -> None:
        """Interrupt the job; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self.task is not None:
                self.task.cancel()


class Job(Protocol):
    """A claimed job, ready to run."""

    @property
    def lease(self) -> Lease:
        """The lease it runs under."""

    async def run(self, control: Control) -> Ending:
        """Do the work; never raises but CancelledError after `control.stop`."""


class Handler(Protocol):
    """Turns leases into jobs."""

    async def begin(self, leases: Sequence[Lease]) -> Sequence[Job | Release | HandBack]:
        """Read the leases' payloads and own their runs.

        Raises:
            StoreUnavailable, StoreRefused: nothing can be started now; the leases are given back.
        """


class _Held:
    """A lease that this process answers for, from claim to release."""

    __slots__ = ("control", "expires", "lease", "waits")

    def __init__(self, lease: Lease, control: Control) -> None:
        self.lease = lease
        self.control = control
        self.expires = lease.expires
        self.waits = True
        """For its slot: nobody has looked at the job yet."""


class ClaimLoop:
    """Serves queues with a number of slots. Run `run` as a task; `stop` ends it.

    `weight` says how much of a full house a queue gets beside the others, by its key.
    """

    def __init__(
        self,
        served: Served,
        handler: Handler,
        gate: StoreGate,
        *,
        slots: int,
        lease_seconds: int,
        weight: Callable[[str], int] = lambda _: 1,
    ) -> None:
        self._served = served
        self._turns = Turns(weight)
        self._handler = handler
        self._gate = gate
        self.slots = slots
        self._lease_seconds = lease_seconds
        self._held: dict[str, _Held] = {}
        self._busy = 0
        """Jobs that have a slot or wait for one."""
        self._begun = 0
        """Jobs that have a slot."""
        self._ending = 0
        """Those of them whose end is being written."""
        self._begins = asyncio.Lock()
        self._fewer_begun = asyncio.Event()
        self._alone: str | None = None
        """The suspect that this process runs, and nothing beside it."""
        self._endings: list[tuple[Lease, Release | HandBack]] = []
        self._ended = asyncio.Event()
        self._slot_freed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._starting: set[asyncio.Task[None]] = set()
        self._refused: dict[str, float] = {}  # queue -> when to try it again
        self.handing_over = False
        self.last_turn = asyncio.get_running_loop().time()
        """Monotonic time (s) of the last turn of the claim loop, failed ones included."""
        self.lost_leases = 0

    @property
    def active(self) -> int:
        """Jobs that hold a slot."""
        return self._begun

    @property
    def stuck(self) -> int:
        """Slots whose job was told to stop and has not."""
        return sum(1 for held in self._held.values() if held.control.stop_reason is not None and held.control.task)

    @property
    def recovered(self) -> int:
        """Leases of dead owners that this process returned to their queues."""
        return self._served.recovered

    async def run(self) -> None:
        """Claim until `stop`, then wait until every lease has ended."""
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(self._keep_leases())
            fence = group.create_task(self._fence_leases())
            ender = group.create_task(self._end_leases())
            await self._claim()
            while self._starting or self._held:
                await self._wait(self._slot_freed, 0.2)
            keeper.cancel()
            fence.cancel()
            ender.cancel()

    def stop(self, *, hand_over: bool) -> None:
        """Claim nothing more; with `hand_over`, running jobs give their runs back at the next step boundary.

        What has no slot yet then goes back to its queue as it is.
        """
        self.handing_over = self.handing_over or hand_over
        self._stopping.set()
        self._slot_freed.set()
        self._fewer_begun.set()

    def interrupt(self) -> None:
        """Stop what still runs; the runs are given back as far as their last checkpoint."""
        for held in list(self._held.values()):
            held.control.stop(StopReason.INTERRUPTED)

    def one_ends(self) -> None:
        """Let the next job be claimed for a slot that is about to come free."""
        self._ending += 1
        self._slot_freed.set()

    async def _claim(self) -> None:
        clock = asyncio.get_running_loop().time
        pause = _BUSY_POLL
        while not self._stopping.is_set():
            self.last_turn = clock()
            if not self._gate.is_open:
                await self._gate.wait(_GATE_WAIT)
                continue
            free = self.slots + self._ending - self._busy
            if free <= 0 or self._alone is not None:
                await self._wait(self._slot_freed, _GATE_WAIT)
                continue
            try:
                if await self._isolates():
                    await self._wait(self._slot_freed, _GATE_WAIT)
                    continue
                claimed = await self._claim_from_each(min(free, _MAX_BATCH))
            except (StoreUnavailable, StoreRefused) as error:
                self._gate.trip(error)
                continue
            pause = _BUSY_POLL if claimed else min(_IDLE_POLL, pause * 1.5)
            if not claimed:
                await self._wait(self._stopping, pause * random.uniform(0.75, 1.0))  # noqa: S311 - spreads polls

    async def _claim_from_each(self, free: int) -> int:
        clock = asyncio.get_running_loop().time
        await self._served.look(clock())
        queues = {
            queue.queue_key: queue
            for queue in self._served.to_ask
            if self._refused.get(queue.queue_key, 0.0) <= clock()
        }
        idle = {queue_key for queue_key, queue in queues.items() if queue.drained}
        claimed: list[Lease] = []
        try:
            for queue_key, most in self._turns.share(free, list(queues), idle):
                if len(claimed) >= free:
                    break
                try:
                    leases = await queues[queue_key].claim(min(most, free - len(claimed)), clock())
                except WrongKeyType as error:
                    self._refuse(queue_key, error)
                    continue
                if self._refused.pop(queue_key, None) is not None:
                    log.info("queue %s is served again", queue_key)
                self._turns.took(queue_key, len(leases))
                claimed += leases
        finally:
            if claimed:
                self._hold(claimed)
        return len(claimed)

    async def _isolates(self) -> bool:
        """Take a suspect when this process is empty, or get empty for one; False = claim as usual.

        A job whose owner crashed is run where nothing else runs, so that it can hurt nobody, and so that a further
        crash is known to be its own.
        """
        for queue in self._served.queues:
            if not queue.suspects or queue.queue_key in self._refused:
                continue
            if self._held or self._starting:
                if await queue.shall_isolate(_ISOLATION_SECONDS):
                    return True
            elif leases := await queue.claim_suspect(asyncio.get_running_loop().time()):
                self._alone = leases[0].job_id
                self._hold(leases)
                return True
        return False

    def _hold(self, leases: Sequence[Lease]) -> None:
        self._busy += len(leases)
        for lease in leases:
            former = self._held.get(lease.job_id)
            if former is not None and former.control.stop_reason is not StopReason.LOST:
                log.warning("the lease of job %s was lost and is claimed here anew", lease.job_id)
                self._lose(former)
            self._held[lease.job_id] = _Held(lease, Control(self))
        self._start_soon(self._start(leases))

    def _refuse(self, queue_key: str, error: WrongKeyType) -> None:
        """Leave one queue alone for a while; the others are served."""
        if queue_key not in self._refused:
            log.error("queue %s is not served until that is repaired: %s", queue_key, error)
        self._refused[queue_key] = asyncio.get_running_loop().time() + _REFUSED_SECONDS

    async def _start(self, leases: Sequence[Lease]) -> None:
        """Begin jobs as slots come free, those first that were claimed first."""
        async with self._begins:
            while True:
                while self._begun >= self.slots and not self.handing_over:
                    self._fewer_begun.clear()
                    await self._fewer_begun.wait()
                if self.handing_over:
                    self._return(leases)
                    return
                now, leases = leases[: self.slots - self._begun], leases[self.slots - self._begun :]
                self._begun += len(now)
                if not leases:
                    break
                self._start_soon(self._begin(now))
        await self._begin(now)

    def _return(self, leases: Sequence[Lease]) -> None:
        """Give back what has not begun."""
        self._begun += len(leases)  # which they leave at once
        for lease in leases:
            if self._ours(lease) is not None:
                self._end(lease, HandBack(lease, None, suspect=lease.alone))

    def _ours(self, lease: Lease) -> _Held | None:
        """Return what is held of a lease; one that was lost meanwhile is forgotten: its run may be somebody else's."""
        held = self._held_under(lease)
        if held is None or held.control.stop_reason is StopReason.LOST:
            self._forget(lease)
            return None
        return held

    def _start_soon(self, starting: Coroutine[None, None, None]) -> None:
        start = asyncio.create_task(starting)
        self._starting.add(start)
        start.add_done_callback(self._starting.discard)

    async def _begin(self, leases: Sequence[Lease]) -> None:
        ours: list[Lease] = []
        for lease in leases:
            if (held := self._ours(lease)) is not None:
                held.waits = False
                ours.append(lease)
        if ours:
            await self._begin_ours(ours)

    async def _begin_ours(self, leases: Sequence[Lease]) -> None:
        try:
            begun = await self._handler.begin(leases)
        except (StoreUnavailable, StoreRefused) as error:
            self._gate.trip(error)
            begun = [HandBack(lease, None) for lease in leases]
        except Exception:
            if len(leases) > 1:  # nobody waits for a neighbour that cannot be started
                for lease in leases:
                    await self._begin_ours([lease])
                return
            log.exception("claimed jobs could not be started; they are given back")
            begun = [HandBack(lease, 5_000) for lease in leases]
        for item in begun:
            if (held := self._ours(item.lease)) is None:
                continue
            if isinstance(item, Release | HandBack):
                self._end(item.lease, item)
            else:
                held.control.task = asyncio.create_task(item.run(held.control), name=item.lease.job_id)
                held.control.task.add_done_callback(partial(self._done, item.lease, held.control))
                if held.control.stop_reason is not None:
                    held.control.task.cancel()

    def _done(self, lease: Lease, control: Control, task: asyncio.Task[Ending]) -> None:
        if control.is_ending:
            self._ending -= 1
        if task.cancelled():
            ending: Ending = None
        elif (error := task.exception()) is not None:
            log.error("job %s ended in an unexpected error; its lease runs out", lease.job_id, exc_info=error)
            ending = None
        else:
            ending = task.result()
        if ending is None:
            self._forget(lease)
        else:
            self._end(lease, ending)

    def _end(self, lease: Lease, ending: Release | HandBack) -> None:
        """Free the slot; the lease is prolonged until Redis has taken the ending."""
        self._free_slot(lease)
        if (held := self._held_under(lease)) is not None:
            held.control.task = None
        self._endings.append((lease, ending))
        self._ended.set()

    def _held_under(self, lease: Lease) -> _Held | None:
        """Return what is held of a lease; None when it was let go of, or its job was claimed here anew since."""
        held = self._held.get(lease.job_id)
        return held if held is not None and held.lease == lease else None

    def _let_go(self, lease: Lease) -> None:
        if self._held_under(lease) is not None:
            del self._held[lease.job_id]

    def _forget(self, lease: Lease) -> None:
        self._let_go(lease)
        self._free_slot(lease)

    def _free_slot(self, lease: Lease) -> None:
        self._busy -= 1
        self._begun -= 1
        self._fewer_begun.set()
        if self._alone == lease.job_id:
            self._alone = None
        self._slot_freed.set()

    async def _end_leases(self) -> None:
        while True:
            await self._ended.wait()
            self._ended.clear()
            batch, self._endings = self._endings, []
            by_queue: dict[str, tuple[list[Release], list[HandBack]]] = defaultdict(lambda: ([], []))
            for lease, ending in batch:
                by_queue[lease.queue_key][isinstance(ending, HandBack)].append(ending)  # type: ignore[arg-type]
            try:
                for queue_key, (releases, hand_backs) in by_queue.items():
                    queue = self._served[queue_key]
                    try:
                        for start in range(0, len(releases), _CHUNK):
                            await queue.release(releases[start : start + _CHUNK])
                        for start in range(0, len(hand_backs), _CHUNK):
                            await queue.hand_back(hand_backs[start : start + _CHUNK])
                    except WrongKeyType as error:  # the ledger knows what had ended; the sweep brings the rest back
                        self._refuse(queue_key, error)
            except (StoreUnavailable, StoreRefused) as error:
                self._gate.trip(error)
                now = asyncio.get_running_loop().time()
                # What has run out meanwhile returns to its queue by itself; the ledger knows what had ended.
                kept = [item for item in batch if self._expires(item[0]) > now]
                for lease, _ in batch:
                    if self._expires(lease) <= now:
                        self._let_go(lease)
                self._endings = kept + self._endings
                await self._gate.wait(_GATE_WAIT)
                self._ended.set()
                continue
            for lease, _ in batch:
                self._let_go(lease)
            self._slot_freed.set()

    def _expires(self, lease: Lease) -> float:
        held = self._held_under(lease)
        return held.expires if held is not None else lease.expires

    async def _keep_leases(self) -> None:
        """Prolong all leases every third of their time; stop jobs whose lease is not ours any more."""
        clock = asyncio.get_running_loop().time
        period = self._lease_seconds / 3
        due = clock() + period
        while True:
            await asyncio.sleep(min(0.5, period / 4))
            if clock() >= due:
                started = clock()
                due = started + (period if await self._extend_all(started, period) else min(1.0, period / 4))

    async def _fence_leases(self) -> None:
        """Stop jobs whose lease could not be prolonged, before it ends; never waits for Redis."""
        clock = asyncio.get_running_loop().time
        margin = self._lease_seconds / 6
        while True:
            await asyncio.sleep(margin / 4)
            now = clock()
            for held in list(self._held.values()):
                if held.expires - margin <= now and held.control.stop_reason is not StopReason.LOST:
                    log.warning(
                        "the lease of job %s could not be prolonged; the job is stopped here", held.lease.job_id
                    )
                    self._lose(held)

    async def _extend_all(self, started: float, timeout: float) -> bool:
        by_queue: dict[str, list[_Held]] = defaultdict(list)
        for held in self._held.values():
            by_queue[held.lease.queue_key].append(held)
        # One after the other, and each for itself: in a cluster, one queue's node may be away and others there.
        return all(
            [await self._extend_queue(queue_key, helds, started, timeout) for queue_key, helds in by_queue.items()]
        )

    async def _extend_queue(self, queue_key: str, helds: list[_Held], started: float, timeout: float) -> bool:
        try:
            for start in range(0, len(helds), _CHUNK):
                chunk = helds[start : start + _CHUNK]
                async with asyncio.timeout(timeout):
                    lost = await self._served[queue_key].extend([held.lease for held in chunk])
                for held in chunk:
                    if held.lease.job_id not in lost:
                        held.expires = started + self._lease_seconds
                    elif held.control.task is not None or held.waits:
                        log.warning("the lease of job %s is lost; the job is stopped here", held.lease.job_id)
                        self._lose(held)
        except WrongKeyType as error:  # these leases run out, those of other queues do not
            self._refuse(queue_key, error)
        except (StoreUnavailable, StoreRefused) as error:
            self._gate.trip(error)
            return False
        except TimeoutError:
            self._gate.trip(StoreUnavailable("Redis", "does not answer a heartbeat in time"))
            return False
        return True

    def _lose(self, held: _Held) -> None:
        if held.control.stop_reason is StopReason.LOST:
            return  # it is told already, and gives back what it can
        self.lost_leases += 1
        if held.control.task is None and held.control.stop_reason is None:
            held.control.stop_reason = StopReason.LOST
            return
        # A job that is being cancelled for a softer reason must not write on either.
        held.control.stop_reason = StopReason.LOST
        if held.control.task is not None:
            held.control.task.cancel()

    async def _wait(self, event: asyncio.Event, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            pass
        if event is self._slot_freed:
            event.clear()
