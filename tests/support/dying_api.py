"""`synapse-worker api` that is killed, as by kill -9, right after one of the writes of its first job.

    python -m tests.support.dying_api WHERE

It is the product with one function wrapped; WHERE is one of `POINTS`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from synapse_worker.api.process import ApiProcess
from synapse_worker.eventloop import run
from synapse_worker.queueing import client
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.settings import load
from synapse_worker.store import idempotency, runs

P = ParamSpec("P")
T = TypeVar("T")

POINTS: dict[str, tuple[object, str]] = {
    "remember": (idempotency, "remember"),
    "take_place": (Quotas, "take_place"),
    "admit": (Quotas, "admit"),
    "row": (runs, "create_queued"),
    "put": (client, "put"),
    "settle": (Quotas, "settle"),
}
"""The writes of a job, in their order."""


def deadly(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Wrap a function so that this process does not outlive its first call."""

    async def wrapped(*arguments: P.args, **named: P.kwargs) -> T:
        await function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable: the process is gone")

    return wrapped


async def serve() -> None:
    """Serve until then."""
    await ApiProcess(load()).run()


if __name__ == "__main__":
    owner, name = POINTS[sys.argv[1]]
    setattr(owner, name, deadly(getattr(owner, name)))
    run(serve())
