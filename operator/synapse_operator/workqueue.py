"""The one queue that every trigger puts keys into.

Level, not edge: a key says "look at this object", never what happened to it. The queue makes sure that
a key waits at most once, that one key is never handled twice at the same time, that a failing key backs
off, and that a good one is looked at again after the resync. What a key means and how it is handled
belongs to `reconcile`; who adds keys to `handlers` and `echo`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from synapse_operator.errors import OperatorError

_log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Again:
    """A handler's answer: look again in `after` seconds, or a little later (None = at the resync)."""

    after: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """When a key comes back, in seconds.

    Attributes:
        resync: wait after a good handling that names no time of its own.
        jitter: share of every wait that is random (0.1 = up to a tenth less or more), so that what
            started together does not stay together.
        first_retry, longest_retry: the back-off doubles from one to the other.
    """

    resync: float = 60.0
    jitter: float = 0.1
    first_retry: float = 1.0
    longest_retry: float = 60.0

    def spread(self, seconds: float) -> float:
        """Return `seconds` with jitter."""
        return seconds * random.uniform(1 - self.jitter, 1 + self.jitter)  # noqa: S311  # no secret depends on it

    def again(self, answer: Again) -> float:
        """Return the wait after a good handling; what asks for a time gets it or a little more, never less."""
        resync = self.spread(self.resync)
        if answer.after is None:
            return resync
        return min(resync, answer.after * random.uniform(1, 1 + self.jitter))  # noqa: S311  # as above

    def retry(self, failures: int) -> float:
        """Return the wait after the `failures`-th failure in a row (from 1)."""
        # The exponent is capped because a key may fail for days.
        return self.spread(min(self.longest_retry, self.first_retry * 2 ** min(failures - 1, 16)))


class WorkQueue(Generic[Key]):
    """Keys, each handled by `handle`, at most `slots` at a time.

    `handle` returns `Again`, or None when the object is gone and the key may be forgotten. What it raises
    is logged and backs the key off. Not thread-safe: one event loop uses it.
    """

    def __init__(
        self,
        handle: Callable[[Key], Awaitable[Again | None]],
        *,
        slots: int,
        pace: Pace,
        added: Callable[[Key], None] = lambda _: None,
    ) -> None:
        """Args:
        handle: handles one key.
        slots: keys that are handled at once.
        pace: when a key comes back by itself.
        added: is told each key at once that somebody adds; one that comes back by itself is not told.
        """
        self._handle = handle
        self._added = added
        self._slots = slots
        self._pace = pace
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._running: dict[Key, float | None] = {}
        """Keys being handled, each with the earliest time (of the loop's clock) that was asked for meanwhile."""
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        """Keys that are due and wait for a slot."""
        return len(self._queued)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Have `key` handled in `delay` seconds, or earlier if that was asked for before."""
        self._added(key)
        self._schedule(key, delay)

    def _schedule(self, key: Key, delay: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if key in self._running:
            asked = self._running[key]
            self._running[key] = due if asked is None else min(asked, due)
            return
        if key in self._queued:
            return
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        if delay <= 0:
            self._push(key)
        else:
            self._timers[key] = loop.call_at(due, self._push, key)

    async def run(self) -> None:
        """Handle keys until cancelled; what is in hand is then cancelled too."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._slots):
                    group.create_task(self._work())
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    def _push(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._queued.add(key)
        self._ready.put_nowait(key)

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._running[key] = None
            delay = await self._try(key)
            asked = self._running.pop(key)
            if asked is not None:
                self._schedule(key, max(0.0, asked - asyncio.get_running_loop().time()))
            if delay is not None:
                self._schedule(key, delay)

    async def _try(self, key: Key) -> float | None:
        """Handle `key` once and return the seconds until it is due again, None = forget it."""
        try:
            answer = await self._handle(key)
        except Exception as error:
            failures = self._failures.get(key, 0) + 1
            self._failures[key] = failures
            delay = self._pace.retry(failures)
            # Our own errors are sentences; anything else is a bug of ours, and its traceback is wanted.
            bug = not isinstance(error, OperatorError)
            _log.warning(
                "%s failed %d times in a row, next try in %.1f s: %s", key, failures, delay, error, exc_info=bug
            )
            return delay
        self._failures.pop(key, None)
        return None if answer is None else self._pace.again(answer)
