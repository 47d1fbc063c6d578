"""Whether our stores answer: the gate that the claim loop passes and the probes report.

A store's failure closes the gate at once; a watcher asks again until all answer. Nothing is restarted and no
try is burned meanwhile. Who waits at the gate decides what to do with the work it holds.
Redis and Postgres are asked all the time; the store of artifacts, whose calls cost money, only after a failure.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from redis.asyncio import Redis

from synapse_worker.connections import ping_redis
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.store.blobs import Blobs
from synapse_worker.store.database import Database

log = logging.getLogger(__name__)

_CLOSED_PERIOD = 1.0
_OPEN_PERIOD = 5.0
_PING_SECONDS = 5.0


@dataclass(slots=True)
class StoreState:
    """What was last seen of one store; `problem` is one sentence, "" while it answers."""

    connected: bool = False
    problem: str = "has not answered yet"


class StoreGate:
    """Open while all stores answer. Starts closed."""

    def __init__(self, database: Database, client: Redis) -> None:
        self._database = database
        self._client = client
        self._open = asyncio.Event()
        self._tripped = asyncio.Event()
        self.redis = StoreState()
        self.postgres = StoreState()
        self.artifacts = StoreState(True, "")
        self._blobs: Blobs | None = None
        self._suspected = False

    def watch_also(self, blobs: Blobs) -> None:
        """Take the store of artifacts in, which is known only once Postgres has told of it; closed until it answers."""
        self._blobs = blobs
        self.artifacts = StoreState(False, "the store of artifacts has not answered yet")
        self._open.clear()
        self._tripped.set()

    @property
    def is_open(self) -> bool:
        """Whether all stores answered when last asked."""
        return self._open.is_set()

    @property
    def problem(self) -> str:
        """One sentence on what is wrong, "" while the gate is open."""
        return " ".join(state.problem for state in self._states if state.problem)

    @property
    def _states(self) -> tuple[StoreState, ...]:
        return self.redis, self.postgres, self.artifacts

    def trip(self, error: StoreUnavailable | StoreRefused) -> None:
        """Close the gate; the watcher looks at once and opens it again when all answer."""
        if self._open.is_set():
            log.warning("work is suspended: %s", error)
        self._open.clear()
        self._suspected = True
        self._tripped.set()

    async def wait(self, timeout: float) -> bool:
        """Wait until the gate is open, for at most `timeout` seconds; returns whether it is."""
        try:
            async with asyncio.timeout(timeout):
                await self._open.wait()
        except TimeoutError:
            return False
        return True

    async def watch(self) -> None:
        """Ask the stores for ever; run it as a task."""
        while True:
            self._tripped.clear()
            was_open = self._open.is_set()
            await asyncio.gather(self._look_at_redis(), self._look_at_postgres(), self._look_at_artifacts())
            if all(state.connected for state in self._states):
                if not was_open:
                    log.info("all stores answer")
                self._open.set()
            else:
                if was_open:
                    log.warning("work is suspended: %s", self.problem)
                self._open.clear()
            try:
                async with asyncio.timeout(_OPEN_PERIOD if self._open.is_set() else _CLOSED_PERIOD):
                    await self._tripped.wait()
                # Tripped: a short pause, so that a store that answers pings and nothing else is no hot loop.
                await asyncio.sleep(0.2)
            except TimeoutError:
                pass

    async def _look_at_redis(self) -> None:
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await ping_redis(self._client)
        except TimeoutError:
            self.redis = StoreState(False, f"Redis does not answer within {_PING_SECONDS:g} s")
        except (StoreUnavailable, StoreRefused) as error:
            self.redis = StoreState(False, str(error))
        else:
            self.redis = StoreState(True, "")

    async def _look_at_postgres(self) -> None:
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self._database.ping()
        except TimeoutError:
            self.postgres = StoreState(False, f"PostgreSQL does not answer within {_PING_SECONDS:g} s")
        except (StoreUnavailable, StoreRefused) as error:
            self.postgres = StoreState(False, str(error))
        else:
            self.postgres = StoreState(True, "")

    async def _look_at_artifacts(self) -> None:
        if self._blobs is None or (self.artifacts.connected and not self._suspected):
            return
        self._suspected = False
        try:
            await self._blobs.ping()  # bounds itself; giving it up would only leave its thread behind
        except (StoreUnavailable, StoreRefused) as error:
            self.artifacts = StoreState(False, str(error))
        else:
            self.artifacts = StoreState(True, "")
