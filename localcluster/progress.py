"""Short lines about what is going on, on standard error.

Standard output is kept for answers (a path, a table), so that commands can be
used in scripts. On a terminal a running step rewrites its line; elsewhere (a CI
log) it adds a line only now and then.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds between lines of a running step where lines cannot be rewritten.
QUIET_INTERVAL = 20.0
# Seconds between rewrites on a terminal: smooth enough, and cheap.
TERMINAL_INTERVAL = 0.5


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 05 s."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s"


def remaining(done: int, total: int, elapsed: float) -> float | None:
    """Seconds left at the pace so far; None while there is too little to judge by."""
    if done <= 0 or total <= 0 or elapsed < 2:
        return None
    return max(0.0, elapsed / done * (total - done))


class Step:
    """One thing under way; `advance` reports how far it is."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.started = time.monotonic()
        self._shown = self.started
        self._terminal = sys.stderr.isatty()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def advance(self, detail: str) -> None:
        now = time.monotonic()
        if now - self._shown < (TERMINAL_INTERVAL if self._terminal else QUIET_INTERVAL):
            return
        self._shown = now
        line = f"  {self.what}: {detail}, {duration(self.elapsed)} so far"
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def finish(self, outcome: str) -> None:
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr)
        say(f"  {self.what}: {outcome}")


@contextmanager
def step(what: str) -> Iterator[Step]:
    """Names a step when it ends, with the time it took, or that it failed."""
    current = Step(what)
    try:
        yield current
    except BaseException:
        current.finish(f"failed after {duration(current.elapsed)}")
        raise
    current.finish(duration(current.elapsed))
