"""Ends that are interrupted while they are written."""

from __future__ import annotations

import asyncio

import pytest

from synapse_worker import endings


async def test_an_end_that_has_begun_is_written_whole() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def ending() -> str:
        begun.set()
        await may_end.wait()
        return "released"

    task = asyncio.create_task(endings.whole(ending()))
    await begun.wait()
    task.cancel()
    asyncio.get_running_loop().call_soon(may_end.set)
    assert await task == "released"


async def test_an_end_that_cannot_be_written_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "LAST_WRITE_SECONDS", 0.01)
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def ending() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    task = asyncio.create_task(endings.whole(ending()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await stopped.wait()


async def test_an_error_of_an_end_is_told() -> None:
    async def ending() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await endings.whole(ending())
