"""An event loop whose clock jumps to the next timer, so that a test of minutes takes milliseconds.

Only for code that waits for timers and for other tasks of the same loop: with sockets, time would jump
ahead of the answer.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Instead of waiting until a timer is due, moves the clock there."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("every task waits for something that will never happen")
            self.now += timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(test: Coroutine[Any, Any, T]) -> T:
    """Run `test` to its end in virtual time."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(test)


async def passes(seconds: float) -> None:
    """Let `seconds` of virtual time go by; fails in a loop where they would really have to be waited for."""
    assert isinstance(asyncio.get_running_loop(), _Loop), "run the test with virtual_time.run"
    await asyncio.sleep(seconds)
