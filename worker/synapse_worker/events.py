"""A run's events on their way to its Redis stream: in order, fenced by the claim, many runs in one round trip.

Events are handed over after the commit they speak of and written in the background; a run that ends waits
until its own are there. What a crash swallows is written again by the next owner from run_steps.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from synapse_worker import tracing
from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import load_script

log = logging.getLogger(__name__)

Event = Mapping[str, object]

_ENCODE = json.JSONEncoder(default=str).encode
_TAIL = 64
_RETRY_SECONDS = 0.5
_PACE_SECONDS = 0.02
"""Events of a running run are sent at most so often, many at a time; what a run's end waits for goes at once."""


@dataclass(slots=True)
class _Waiting:
    claim: int
    events: deque[str]


async def append(client: Redis, run_id: str, claim: int, events: Iterable[Event], *, ttl_seconds: int) -> None:
    """Write events to a run's stream now, for who owns no run and has no writer: whoever ends one that waits."""
    stream = keys.run_events(run_id)
    arguments: list[str | int] = [claim, ttl_seconds, keys.RUN_STREAM_MAX_LENGTH, *map(_ENCODE, events)]
    with redis_errors_as_ours():
        await load_script(client, "append_events")(keys=[stream, keys.event_claim(stream)], args=arguments)


class EventWriter:
    """Writes events of all runs of a process. Run `write` as a task.

    `stream` names the stream of an id, `length` is the number of its events: those of runs, or of chats by their
    sessions' ids.
    """

    def __init__(
        self,
        client: Redis,
        *,
        ttl_seconds: int,
        stream: Callable[[str], str] = keys.run_events,
        length: int = keys.RUN_STREAM_MAX_LENGTH,
    ) -> None:
        self._client = client
        self._ttl = ttl_seconds
        self._stream = stream
        self._length = length
        self._append = load_script(client, "append_events")
        self._waiting: dict[str, _Waiting] = {}
        self._writing: dict[str, _Waiting] = {}
        self._urgent: set[str] = set()
        self._handed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._written = asyncio.Condition()

    def hand(self, run_id: str, claim: int, events: Iterable[Event]) -> None:
        """Take events to write to a run's stream, after those handed before."""
        stream = self._stream(run_id)
        waiting = self._waiting.setdefault(stream, _Waiting(claim, deque(maxlen=self._length)))
        waiting.claim = claim
        waiting.events.extend(map(_ENCODE, events))
        self._handed.set()

    async def written(self, run_id: str) -> None:
        """Wait until all events handed for this run so far are in Redis."""
        stream = self._stream(run_id)
        if stream in self._waiting:
            self._urgent.add(stream)
            self._hurry.set()
        with tracing.redis("append events"):
            async with self._written:
                await self._written.wait_for(lambda: stream not in self._waiting and stream not in self._writing)

    async def tail_ids(self, run_id: str) -> set[str]:
        """Return the event_ids at the end of a run's stream, enough to cover its last step."""
        with redis_errors_as_ours():
            entries = await self._client.xrevrange(self._stream(run_id), count=_TAIL)
        found: set[str] = set()
        for _, fields in entries:
            try:
                found.add(str(json.loads(fields[b"data"]).get("event_id")))
            except (ValueError, KeyError, AttributeError):  # not one of ours
                continue
        return found

    async def write(self) -> None:
        """Write what is handed over, for ever."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            await self._handed.wait()
            if clock() < due:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._hurry.wait()
            everything = clock() >= due
            self._take(everything)
            while self._writing:
                try:
                    await self._write_once()
                except (StoreUnavailable, StoreRefused) as error:
                    log.debug("events wait: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)
            if everything:
                due = clock() + _PACE_SECONDS
            async with self._written:
                self._written.notify_all()

    def _take(self, everything: bool) -> None:
        """Move what is to be written now, all that waits or what somebody waits for, from waiting to writing."""
        self._hurry.clear()
        chosen = list(self._waiting) if everything else [name for name in self._urgent if name in self._waiting]
        self._writing = {name: self._waiting.pop(name) for name in chosen}
        self._urgent.difference_update(chosen)
        if not self._waiting:
            self._handed.clear()

    async def _write_once(self) -> None:
        """Write all that is to be written; what is in Redis then is not written again when the rest has to wait."""
        with redis_errors_as_ours():
            answers = await self._append_to(list(self._writing))
            unknown = [stream for stream, answer in answers.items() if isinstance(answer, NoScriptError)]
            if unknown:  # a Redis that was restarted, or another one after a failover
                await self._client.script_load(self._append.script)
                answers |= await self._append_to(unknown)
            failed: Exception | None = None
            for stream, answer in answers.items():
                if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                    failed = answer
                    continue
                del self._writing[stream]
                if isinstance(answer, Exception):
                    log.error("events were not written to %s: another program uses that key", stream)
                elif not answer:
                    log.info("events of an outdated claim were not written to %s", stream)
            if failed is not None:
                raise failed

    async def _append_to(self, streams: Sequence[str]) -> dict[str, int | Exception]:
        """Call the script for each stream; not through its own call, which asks each time whether Redis knows it."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in streams:
            waiting = self._writing[stream]
            fence = (str(waiting.claim), str(self._ttl), str(self._length))
            pipeline.evalsha(self._append.sha, 2, stream, keys.event_claim(stream), *fence, *waiting.events)
        return dict(zip(streams, await pipeline.execute(raise_on_error=False), strict=True))
