"""Following streams of events: many connections, one reader, and the form that browsers and curl understand.

All connections of a process are served by one pipelined read of their streams a tenth of a second at most after the
one before: no connection of a client holds one to Redis, and streams may live on several nodes of a cluster. Whose
stream it is, and whether the caller may see it, the routes know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.errors import StoreRefused, StoreUnavailable

KEEPALIVE_SECONDS = 15.0
RETRY_MS = 1_000
"""How long a client waits before it comes back after a stream was cut by us."""
STREAM_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_POLL_SECONDS = 0.1
_PAGE = 200
_GRACE_SECONDS = 1.0
"""How long the events of what has begun may not be there yet."""
_LOOK_SECONDS = 3.0
"""A stream that has been silent for that long may have ended without a word: its owner's state is looked at."""
_MOST_SEEN = 2_000
"""How many of the newest event_ids a connection remembers; what is said again was said a moment before."""

log = logging.getLogger(__name__)

Event = dict[str, object]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream: its id and its event; {} for one that is not ours and cannot be read."""

    entry_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of what a stream is about, as an event.

    Attributes:
        begun: somebody has worked on it, so there were events.
        ended: no event can come any more.
    """

    event: Event
    begun: bool
    ended: bool


class Streams:
    """Reads the streams that somebody waits for. Run `read` as a task."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._waiting: dict[asyncio.Future[list[Entry]], tuple[str, str]] = {}
        self._asked = asyncio.Event()
        self.followed = 0
        """How many streams clients follow now."""

    async def read(self) -> None:
        """Serve whoever waits, for ever."""
        while True:
            await self._asked.wait()
            await self._read_once()
            await asyncio.sleep(_POLL_SECONDS)

    async def after(self, stream: str, entry_id: str, *, timeout: float) -> list[Entry]:
        """Return what follows an entry, as soon as there is something; [] when there is nothing in time.

        Raises:
            StoreUnavailable, StoreRefused: Redis does not answer, or says no.
        """
        found: asyncio.Future[list[Entry]] = asyncio.get_running_loop().create_future()
        self._waiting[found] = (stream, entry_id)
        self._asked.set()
        try:
            async with asyncio.timeout(timeout):
                return await found
        except TimeoutError:
            return []
        finally:
            self._waiting.pop(found, None)

    async def between(self, stream: str, first: str, last: str, count: int) -> list[Entry]:
        """Return the entries of a stream from one id to another, both included, `count` of them at most."""
        with redis_errors_as_ours():
            entries = await self._client.xrange(stream, first, last, count=count)
        return [_entry(*entry) for entry in entries]

    async def exists(self, stream: str) -> bool:
        """Return whether a stream has any entry."""
        with redis_errors_as_ours():
            return bool(await self._client.exists(stream))

    async def _read_once(self) -> None:
        asked = dict(self._waiting)
        if not asked:
            self._asked.clear()
            return
        pipeline = self._client.pipeline(transaction=False)
        for stream, entry_id in asked.values():
            pipeline.xrange(stream, f"({entry_id}" if entry_id else "-", "+", count=_PAGE)
        try:
            with redis_errors_as_ours():
                answers = await pipeline.execute(raise_on_error=False)
        except (StoreUnavailable, StoreRefused) as error:
            answers = [error] * len(asked)
        for found, answer in zip(asked, answers, strict=True):
            if found.done():
                continue
            if isinstance(answer, Exception):
                found.set_exception(_as_ours(answer))
            elif answer:
                found.set_result([_entry(*entry) for entry in answer])


async def follow(
    streams: Streams,
    stream: str,
    *,
    last_seen: str,
    stopping: asyncio.Event,
    is_open: Callable[[], Awaitable[bool]],
    snapshot: Callable[[], Awaitable[Snapshot]],
) -> AsyncGenerator[bytes, None]:
    """Yield a stream as server-sent events until it is `done` and nothing more can come.

    An event that was sent on this connection lately, by its event_id, is dropped. Where the events are gone (they
    expire), or their end was never written, one `snapshot` event tells the state instead.

    Args:
        last_seen: the entry after which to begin; "" = from the start.
        stopping: set when this process ends: the client is told to come back soon, to another one.
        is_open: whether events may still come, at little cost: what a quiet stream asks again and again.
        snapshot: reads the state of what the stream is about.
    """
    seen: dict[str, None] = {}
    position = last_seen
    quiet_for = 0.0
    try:
        if not await streams.exists(stream):
            state = await snapshot()
            # The first events follow the commit that they speak of.
            if (state.begun or state.ended) and not await streams.after(stream, "", timeout=_GRACE_SECONDS):
                yield _formatted(state.event)
                if state.ended:
                    return
        yield b": connected\n\n"
        while not stopping.is_set():
            entries = await _or_stop(streams.after(stream, position, timeout=_LOOK_SECONDS), stopping)
            for entry in entries:
                position = entry.entry_id
                event_id = entry.event.get("event_id")
                if isinstance(event_id, str):
                    if event_id in seen:
                        continue
                    seen[event_id] = None
                    if len(seen) > _MOST_SEEN:
                        del seen[next(iter(seen))]
                yield _formatted(entry.event, entry.entry_id)
            if stopping.is_set():
                break
            if entries:
                quiet_for = 0.0
                if entries[-1].event.get("type") == "done" and await _is_last(streams, stream, position, snapshot):
                    return
                continue
            quiet_for += _LOOK_SECONDS
            if not await is_open() and await _is_last(streams, stream, position, snapshot):
                yield _formatted((await snapshot()).event)
                return
            if quiet_for >= KEEPALIVE_SECONDS:
                quiet_for = 0.0
                yield b": keep-alive\n\n"
    except (StoreUnavailable, StoreRefused) as error:
        log.warning("a stream is cut: %s", error)
    yield f"retry: {RETRY_MS}\n\n".encode()


async def _or_stop(reading: Awaitable[list[Entry]], stopping: asyncio.Event) -> Sequence[Entry]:
    """Return what is read, or nothing as soon as the process is to stop."""
    read = asyncio.ensure_future(reading)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({read, stop}, return_when=asyncio.FIRST_COMPLETED)
        return read.result() if read.done() else []
    finally:
        stop.cancel()
        read.cancel()


async def _is_last(streams: Streams, stream: str, position: str, snapshot: Callable[[], Awaitable[Snapshot]]) -> bool:
    """Whether nothing comes after an entry: a run that is retried goes on behind its `done`, a chat does so always."""
    return (await snapshot()).ended and not await streams.between(stream, f"({position}" if position else "-", "+", 1)


def _formatted(event: Mapping[str, object], entry_id: str = "") -> bytes:
    head = f"id: {entry_id}\n" if entry_id else ""
    return f"{head}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode(errors="replace")


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    try:
        event = json.loads(fields[b"data"])
    except (ValueError, KeyError, RecursionError):  # what fails here would end the reader of all streams
        event = {}
    return Entry(entry_id.decode(), event if isinstance(event, dict) else {})


def _as_ours(error: Exception) -> Exception:
    if not isinstance(error, RedisError):
        return error
    try:
        with redis_errors_as_ours():
            raise error
    except (StoreUnavailable, StoreRefused) as ours:
        return ours
