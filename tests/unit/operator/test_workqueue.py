"""The work queue, in virtual time: no key waits twice, none runs beside itself, failures back off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from synapse_operator.errors import OperatorError
from synapse_operator.workqueue import Again, Pace, WorkQueue
from tests.unit.operator import virtual_time

EXACT = Pace(resync=60.0, jitter=0.0, first_retry=1.0, longest_retry=8.0)


class Recorder:
    """A handler that notes when it was called with what, and answers as told."""

    def __init__(self, answer: Callable[[str, int], Again | None] = lambda key, call: None, takes: float = 0.0) -> None:
        self.calls: list[tuple[float, str]] = []
        self.together = 0
        self.most_together = 0
        self._answer = answer
        self._takes = takes

    async def __call__(self, key: str) -> Again | None:
        self.calls.append((now(), key))
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await virtual_time.passes(self._takes)
            return self._answer(key, sum(1 for _, called in self.calls if called == key))
        finally:
            self.together -= 1

    def times(self, key: str = "a") -> list[float]:
        return [round(at, 3) for at, called in self.calls if called == key]


def now() -> float:
    return asyncio.get_running_loop().time()


def play(handler: Recorder, script: Callable[[WorkQueue[str]], Coroutine[Any, Any, None]], slots: int = 4) -> None:
    """Run `script` beside a queue in virtual time."""

    async def scene() -> None:
        queue = WorkQueue[str](handler, slots=slots, pace=EXACT)
        running = asyncio.create_task(queue.run())
        await script(queue)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    virtual_time.run(scene())


def test_a_key_that_waits_is_not_added_again() -> None:
    handler = Recorder()

    async def script(queue: WorkQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
        assert len(queue) == 1
        await virtual_time.passes(1)
        assert len(queue) == 0

    play(handler, script)
    assert handler.times() == [0.0]


def test_a_key_asked_for_while_it_is_handled_runs_once_more_and_never_beside_itself() -> None:
    handler = Recorder(takes=10.0)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        for _ in range(3):
            await virtual_time.passes(2)
            queue.add("a")
        await virtual_time.passes(100)

    play(handler, script)
    assert handler.times() == [0.0, 10.0]
    assert handler.most_together == 1


def test_different_keys_run_together_up_to_the_slots() -> None:
    handler = Recorder(takes=5.0)

    async def script(queue: WorkQueue[str]) -> None:
        for key in "abcde":
            queue.add(key)
        await virtual_time.passes(100)

    play(handler, script, slots=2)
    assert handler.most_together == 2
    assert [at for at, _ in handler.calls] == [0.0, 0.0, 5.0, 5.0, 10.0]


def test_a_slow_key_delays_nobody_else() -> None:
    slow = asyncio.Event

    class Slow(Recorder):
        async def __call__(self, key: str) -> Again | None:
            if key == "slow":
                await slow().wait()
            return await super().__call__(key)

    handler = Slow()

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("slow")
        await virtual_time.passes(1)
        queue.add("a")
        await virtual_time.passes(1)

    play(handler, script, slots=2)
    assert handler.times() == [1.0]


def test_the_earliest_time_asked_for_counts() -> None:
    handler = Recorder()

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a", 30)
        queue.add("a", 50)
        await virtual_time.passes(1)
        queue.add("a", 5)
        await virtual_time.passes(200)

    play(handler, script)
    assert handler.times() == [6.0]


def test_what_is_asked_for_during_a_run_keeps_its_delay() -> None:
    handler = Recorder(takes=2.0)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await virtual_time.passes(1)
        queue.add("a", 20)
        await virtual_time.passes(200)

    play(handler, script)
    assert handler.times() == [0.0, 21.0]


def test_failures_back_off_up_to_the_longest_and_a_success_forgets_them(caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: str, call: int) -> Again:
        if call in (1, 2, 3, 4, 5, 7):
            raise OperatorError("Not now.")
        return Again(after=10.0)

    handler = Recorder(answer)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await virtual_time.passes(45)

    play(handler, script)
    assert handler.times() == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 33.0, 34.0, 44.0]
    assert "a failed 5 times in a row, next try in 8.0 s: Not now." in caplog.messages
    assert not any(record.exc_info for record in caplog.records)


def test_a_bug_is_logged_with_its_traceback_and_backs_off_too(caplog: pytest.LogCaptureFixture) -> None:
    def answer(_: str, call: int) -> None:
        if call == 1:
            raise ZeroDivisionError

    handler = Recorder(answer)

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await virtual_time.passes(45)

    play(handler, script)
    assert handler.times() == [0.0, 1.0]
    assert caplog.records[0].exc_info is not None


def test_a_good_key_comes_back_at_the_resync_or_earlier_if_it_says_so() -> None:
    handler = Recorder(lambda key, call: Again(after=15.0 if call == 2 else 300.0 if call == 3 else None))

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await virtual_time.passes(140)

    play(handler, script)
    assert handler.times() == [0.0, 60.0, 75.0, 135.0]


def test_a_key_that_is_gone_is_forgotten() -> None:
    handler = Recorder()

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await virtual_time.passes(1000)

    play(handler, script)
    assert handler.times() == [0.0]


def test_the_resync_is_spread() -> None:
    pace = Pace(resync=60.0, jitter=0.1)
    waits = [pace.spread(60.0) for _ in range(200)]
    assert min(waits) >= 54.0
    assert max(waits) <= 66.0
    assert max(waits) - min(waits) > 6.0


def test_the_back_off_of_a_key_that_fails_for_days_stays_finite() -> None:
    assert EXACT.retry(1_000_000) == 8.0


def test_a_stopped_queue_leaves_no_timer() -> None:
    handler = Recorder()

    async def script(queue: WorkQueue[str]) -> None:
        queue.add("a", 3600)

    play(handler, script)
    assert handler.calls == []


def test_what_somebody_adds_is_told_and_what_comes_back_by_itself_is_not() -> None:
    told: list[str] = []
    handler = Recorder(lambda key, call: Again(after=5.0))

    async def scene() -> None:
        queue = WorkQueue[str](handler, slots=1, pace=EXACT, added=told.append)
        running = asyncio.create_task(queue.run())
        queue.add("a")
        await virtual_time.passes(12.0)
        queue.add("a", 60.0)  # its own turn comes sooner
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    virtual_time.run(scene())
    assert len(handler.calls) == 3
    assert told == ["a", "a"]
