"""Leader election in virtual time against a Lease that behaves like the API server's, also a sick one.

tests/controlplane repeats the main cases with real processes and a real API server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast

import pytest
from kubernetes.aio.client import CoordinationV1Api, V1Lease, V1LeaseSpec

from synapse_operator.election import Elector, LeaseLost, Timing
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from tests.unit.operator import virtual_time

TIMING = Timing()


class Server:
    """One Lease with the API server's rules: optimistic locking, and moods in which it does not answer."""

    def __init__(self) -> None:
        self.lease: V1Lease | None = None
        self.writes = 0
        self.mood: Literal["well", "hangs", "down", "loses answers"] = "well"

    @property
    def holder(self) -> str | None:
        return self.lease.spec.holder_identity if self.lease and self.lease.spec else None

    @property
    def spec(self) -> V1LeaseSpec:
        assert self.lease
        assert self.lease.spec
        return self.lease.spec

    async def read_namespaced_lease(self, name: str, namespace: str) -> V1Lease:
        await self._arrive()
        if self.lease is None:
            raise ApiNotFound(404, "NotFound", "no such lease")
        return deepcopy(self.lease)

    async def create_namespaced_lease(self, namespace: str, body: V1Lease) -> V1Lease:
        await self._arrive()
        if self.lease is not None:
            raise ApiRefused(409, "AlreadyExists", "it exists")
        return await self._store(body)

    async def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease) -> V1Lease:
        await self._arrive()
        if self.lease is None:
            raise ApiNotFound(404, "NotFound", "no such lease")
        assert self.lease.metadata
        assert body.metadata
        if body.metadata.resource_version != self.lease.metadata.resource_version:
            raise ApiRefused(409, "Conflict", "it was modified")
        return await self._store(body)

    async def _arrive(self) -> None:
        await virtual_time.passes(0.01)
        if self.mood == "hangs":
            await asyncio.Event().wait()
        if self.mood == "down":
            raise ApiUnavailable("The API server cannot be reached.")

    async def _store(self, body: V1Lease) -> V1Lease:
        self.writes += 1
        self.lease = deepcopy(body)
        assert self.lease.metadata
        self.lease.metadata.resource_version = str(self.writes)
        if self.mood == "loses answers":
            await asyncio.Event().wait()
        return deepcopy(self.lease)


class Candidate:
    """One process: campaigns, then holds until it loses or is stopped; notes when it acted."""

    def __init__(self, server: Server, name: str) -> None:
        self.elector = Elector(
            cast("CoordinationV1Api", server), namespace="system", name="operator", identity=name, timing=TIMING
        )
        self.acting_since: float | None = None
        self.stopped_at: float | None = None
        self.task = asyncio.create_task(self._campaign())

    async def _campaign(self) -> None:
        await self.elector.acquire()
        self.acting_since = now()
        try:
            await self.elector.hold()
        except LeaseLost:
            self.stopped_at = now()

    async def terminate(self) -> None:
        """SIGTERM: stop, then release."""
        await self.kill()
        await self.elector.release()

    async def kill(self) -> None:
        """kill -9: no release."""
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task
        self.stopped_at = now()


def now() -> float:
    return asyncio.get_running_loop().time()


async def until(condition: Any, seconds: float) -> None:
    """Poll in virtual time."""
    deadline = now() + seconds
    while not condition():
        assert now() < deadline, "it did not happen in time"
        await virtual_time.passes(0.05)


@asynccontextmanager
async def electing() -> AsyncIterator[tuple[Server, Any]]:
    """A server, and a way to start candidates that are stopped at the end."""
    server = Server()
    candidates: list[Candidate] = []

    def candidate(name: str) -> Candidate:
        candidates.append(Candidate(server, name))
        return candidates[-1]

    try:
        yield server, candidate
    finally:
        for each in candidates:
            each.task.cancel()
        await asyncio.gather(*(each.task for each in candidates), return_exceptions=True)


def play(scene: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(scene)


def test_the_first_one_creates_the_lease_and_the_second_waits() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            second = candidate("second")
            await virtual_time.passes(300)
            assert first.task.done() is False
            assert second.acting_since is None
            assert server.holder == "first"
            assert server.spec.lease_transitions == 1
            # About one renewal for each retry, and nothing from the standby.
            assert server.writes == pytest.approx(300 / (TIMING.retry * 1.1), rel=0.1)

    play(scene())


def test_two_that_start_together_never_lead_together() -> None:
    async def scene() -> None:
        for _ in range(20):
            async with electing() as (_, candidate):
                both = [candidate("a"), candidate("b")]
                await virtual_time.passes(30)
                assert sum(each.acting_since is not None for each in both) == 1

    play(scene())


def test_release_lets_the_next_one_start_at_its_next_try() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            second = candidate("second")
            await virtual_time.passes(20)
            await first.terminate()
            released = now()
            await until(lambda: second.acting_since is not None, 15)
            assert now() - released <= TIMING.retry * 1.2 + 0.1
            assert server.spec.lease_transitions == 2

    play(scene())


def test_after_a_kill_the_next_one_starts_after_the_duration_and_within_fifteen_seconds() -> None:
    async def scene() -> None:
        for wait in (20.0, 21.3, 22.7):
            async with electing() as (_, candidate):
                first = candidate("first")
                await until(lambda first=first: first.acting_since is not None, 1)
                second = candidate("second")
                await virtual_time.passes(wait)
                await first.kill()
                killed = now()
                await until(lambda second=second: second.acting_since is not None, 15)
                assert now() - killed >= TIMING.duration - TIMING.retry * 1.2 - 0.1

    play(scene())


@pytest.mark.parametrize("mood", ["hangs", "down", "loses answers"])
def test_a_leader_that_cannot_renew_stops_by_itself_before_anyone_else_may_start(mood: Any) -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            second = candidate("second")
            await virtual_time.passes(20)
            server.mood = mood
            sick = now()
            await until(lambda: first.stopped_at is not None, TIMING.deadline + 0.2)
            assert first.stopped_at is not None
            assert first.stopped_at - sick <= TIMING.deadline
            server.mood = "well"
            await until(lambda: second.acting_since is not None, 20)
            assert second.acting_since is not None
            assert second.acting_since > first.stopped_at

    play(scene())


def test_an_api_server_that_is_away_for_less_than_the_deadline_costs_nothing() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            for mood in ("hangs", "down", "loses answers"):
                server.mood = mood
                # A renewal may be 2.4 s old then, and one that begins just before the end takes 2 s to be given up.
                await virtual_time.passes(2)
                server.mood = "well"
                await virtual_time.passes(10)
            assert first.stopped_at is None
            assert server.holder == "first"
            assert server.spec.lease_transitions == 1

    play(scene())


def test_a_lease_that_somebody_else_took_or_deleted_is_lost_at_the_next_renewal() -> None:
    async def scene() -> None:
        for takes in (True, False):
            async with electing() as (server, candidate):
                first = candidate("first")
                await until(lambda first=first: first.acting_since is not None, 1)
                if takes:
                    server.spec.holder_identity = "other"
                    assert server.lease
                    assert server.lease.metadata
                    server.lease.metadata.resource_version = "elsewhere"
                else:
                    server.lease = None
                await until(lambda first=first: first.stopped_at is not None, TIMING.retry * 1.2 + 0.2)

    play(scene())


def test_time_stamps_of_a_clock_that_is_wrong_do_not_matter() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            second = candidate("second")
            for _ in range(60):
                await virtual_time.passes(1)
                server.spec.renew_time = datetime.now(UTC) - timedelta(days=1)
            assert second.acting_since is None
            await first.kill()
            server.spec.renew_time = datetime.now(UTC) + timedelta(days=1)
            await until(lambda: second.acting_since is not None, 15)

    play(scene())


def test_a_process_that_was_frozen_notices_that_its_time_is_over() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            server.mood = "hangs"
            # Nothing of the process runs: one jump of the clock, as after SIGSTOP.
            asyncio.get_running_loop()._virtual.now += 60  # type: ignore[attr-defined]
            await until(lambda: first.stopped_at is not None, 0.2)

    play(scene())


def test_a_failed_release_is_no_error() -> None:
    async def scene() -> None:
        async with electing() as (server, candidate):
            first = candidate("first")
            await until(lambda: first.acting_since is not None, 1)
            server.mood = "hangs"
            await first.terminate()
            assert server.holder == "first"

    play(scene())


def test_an_identity_that_the_lease_already_names_is_ours() -> None:
    """The answer to our own taking may have been lost."""

    async def scene() -> None:
        async with electing() as (server, candidate):
            server.mood = "loses answers"
            first = candidate("first")
            await virtual_time.passes(3)
            assert server.holder == "first"
            assert first.acting_since is None
            server.mood = "well"
            await until(lambda: first.acting_since is not None, 3)

    play(scene())
