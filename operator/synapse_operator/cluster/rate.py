"""A rate that many tasks share, so that a thousand small writes do not storm the API server."""

from __future__ import annotations

import asyncio


class Rate:
    """Turns, at most `per_second` of them, evenly spread, in the order in which they are asked for."""

    def __init__(self, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = 0.0

    async def turn(self) -> None:
        """Return when it is the caller's turn."""
        now = asyncio.get_running_loop().time()
        mine = max(now, self._next)
        self._next = mine + self._gap
        await asyncio.sleep(mine - now)
