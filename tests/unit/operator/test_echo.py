"""The echo, in virtual time: a deaf watch is found out, a slow or absent one is not called deaf."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from synapse_operator.echo import Echo, Version
from synapse_operator.errors import ApiUnavailable
from tests.unit.operator import virtual_time


class World:
    """What the API server lists, and what was reported as missed."""

    def __init__(self) -> None:
        self.listed: set[Version] = set()
        self.missed: list[Version] = []
        self.away = False

    async def list(self) -> Iterable[Version]:
        if self.away:
            raise ApiUnavailable("The API server cannot be reached.")
        return set(self.listed)


def play(script: Callable[[World, Echo], Coroutine[Any, Any, None]]) -> None:
    async def scene() -> None:
        world = World()
        echo = Echo(world.list, world.missed.append, period=60, patience=30)
        running = asyncio.create_task(echo.run())
        await script(world, echo)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    virtual_time.run(scene())


def version(generation: int = 1, uid: str = "u1") -> Version:
    return Version("ns", "scale", uid, generation, "scale")


def test_what_was_heard_is_no_problem() -> None:
    async def script(world: World, echo: Echo) -> None:
        world.listed = {version(3)}
        assert echo.heard("u1", 3) is True
        await virtual_time.passes(600)
        assert echo.problem is None
        assert world.missed == []

    play(script)


def test_a_generation_that_never_comes_is_a_problem_and_is_looked_at_anyway() -> None:
    async def script(world: World, echo: Echo) -> None:
        world.listed = {version(2)}
        echo.heard("u1", 1)
        await virtual_time.passes(60 + 29)
        assert not echo.problem
        assert world.missed == [version(2)]
        await virtual_time.passes(2)
        assert "generation 2 of ns/scale" in (echo.problem or "")

    play(script)


def test_a_watch_that_is_slow_within_the_patience_is_no_problem() -> None:
    async def script(world: World, echo: Echo) -> None:
        world.listed = {version(2)}
        await virtual_time.passes(80)
        echo.heard("u1", 2)
        await virtual_time.passes(600)
        assert echo.problem is None

    play(script)


def test_an_object_that_goes_during_the_patience_is_no_problem() -> None:
    async def script(world: World, echo: Echo) -> None:
        world.listed = {version(2)}
        await virtual_time.passes(80)
        world.listed = set()
        await virtual_time.passes(600)
        assert echo.problem is None

    play(script)


def test_an_api_server_that_is_away_is_no_problem() -> None:
    async def script(world: World, echo: Echo) -> None:
        world.listed = {version(2)}
        world.away = True
        await virtual_time.passes(600)
        assert echo.problem is None

    play(script)


def test_news_is_told_from_repetition() -> None:
    async def script(_: World, echo: Echo) -> None:
        assert [echo.heard("u1", 1), echo.heard("u1", 1), echo.heard("u1", 2)] == [True, False, True]
        echo.heard_gone("u1")
        assert echo.heard("u1", 1) is True

    play(script)
