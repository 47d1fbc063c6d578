"""Finds out that the watch has gone deaf, so that no silent zombie holds the Lease.

A watch stream can end without an error and leave an operator that looks healthy and does nothing. Every
minute our own client lists our custom resources; what the list shows and the watch did not bring within the
patience is proof. `probes` then fails liveness, and the pod restarts. The list also puts every key
into the queue that the watch has not brought, so nothing waits for the restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from synapse_operator.errors import OperatorError

_log = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Version:
    """One generation of one custom resource; `scale` is the SynapseScale that it is, or belongs to."""

    namespace: str
    name: str
    uid: str
    generation: int
    scale: str


class Echo:
    """What the watch has brought, and the judgement whether it hears."""

    def __init__(
        self,
        listed: Callable[[], Awaitable[Iterable[Version]]],
        missed: Callable[[Version], None],
        *,
        period: float = PERIOD_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Args:
        listed: asks the API server for what exists; raises `OperatorError`.
        missed: is told each version that the watch did not bring.
        period, patience: seconds between lists, and until a version must have come.
        """
        self._listed = listed
        self._missed = missed
        self._period = period
        self._patience = patience
        self._seen: dict[str, int] = {}
        self.problem: str | None = None
        """Why the process must be restarted, in one sentence; None while the watch hears."""

    def heard(self, uid: str, generation: int) -> bool:
        """Record what the watch brought and return whether that generation is news."""
        news = self._seen.get(uid, 0) < generation
        self._seen[uid] = max(generation, self._seen.get(uid, 0))
        return news

    def heard_gone(self, uid: str) -> None:
        """Record that the watch brought the end of an object."""
        self._seen.pop(uid, None)

    async def run(self) -> None:
        """Judge for ever."""
        while True:
            await asyncio.sleep(self._period)
            await self._judge()

    async def _judge(self) -> None:
        suspects = await self._unheard()
        if suspects:
            for version in suspects:
                self._missed(version)
            await asyncio.sleep(self._patience)
            # Still listed and still unheard: neither a slow stream nor an object that went meanwhile.
            suspects &= await self._unheard()
        if suspects:
            first = min(suspects, key=lambda version: (version.namespace, version.name))
            self.problem = (
                f"The watch did not bring generation {first.generation} of {first.namespace}/{first.name} "
                f"within {self._patience:.0f} s; the process must be restarted."
            )
            _log.error("%s", self.problem)

    async def _unheard(self) -> set[Version]:
        try:
            listed = await self._listed()
        except OperatorError as error:
            # An API server that is away makes nobody deaf: the watch is away with it and comes back with it.
            _log.info("cannot compare the watch with a list now: %s", error)
            return set()
        return {version for version in listed if self._seen.get(version.uid, 0) < version.generation}
