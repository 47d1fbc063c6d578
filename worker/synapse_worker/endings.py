"""An end that has begun is written whole: a stop that comes meanwhile waits for it, as long as a last write may take.

Without that, a job that is interrupted while its failure or its completion is being written would keep its owner in the
ledger, as if its process had crashed over it, and its last events would never be said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")

LAST_WRITE_SECONDS = 2.0


async def whole(ending: Coroutine[object, object, T]) -> T:
    """Return what an ending returns, also when its task is cancelled meanwhile and the ending ends in time.

    Raises:
        CancelledError: it was cancelled, and the ending has not ended in time.
    """
    task = asyncio.create_task(ending)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not (await asyncio.wait({task}, timeout=LAST_WRITE_SECONDS))[0]:
            raise
        return task.result()
    finally:
        task.cancel()
