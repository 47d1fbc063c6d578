"""Looks at what quiet streams are about, for all streams of a process together: one statement, not one for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import Context

_TOGETHER_SECONDS = 0.5
"""How long a look waits for others."""


class Looks:
    """Answers whether something is still open.

    Args:
        ask: returns those of many ids that are.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[Collection[str]]]) -> None:
        self._ask = ask
        self._next: asyncio.Task[Collection[str]] | None = None
        self._ids: set[str] = set()

    async def is_open(self, each: str) -> bool:
        """Return whether it is.

        Raises:
            StoreUnavailable, StoreRefused: the store does not answer, or says no.
        """
        if self._next is None:
            # It asks for many: the call belongs to the trace of none of them.
            self._next = asyncio.create_task(self._look(), context=Context())
        self._ids.add(each)
        return each in await asyncio.shield(self._next)  # others wait for it too

    async def _look(self) -> Collection[str]:
        await asyncio.sleep(_TOGETHER_SECONDS)
        ids, self._ids, self._next = self._ids, set(), None
        return await self._ask(sorted(ids))
