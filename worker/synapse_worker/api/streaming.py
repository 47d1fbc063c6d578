"""Answers that are streams of events: of a run, or of a chat session."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from fastapi import Header, Request
from fastapi.responses import Response, StreamingResponse

from synapse_worker.api import admission
from synapse_worker.api.context import Context, refuse
from synapse_worker.api.models import MOST_EVENTS, StoredEvent, StoredEvents
from synapse_worker.api.problems import Problem
from synapse_worker.api.sse import STREAM_ID, Snapshot, follow

LastEventId = Annotated[str | None, Header(max_length=50, description="The last event that was seen: go on after it")]

STREAM_ANSWERS: dict[int | str, dict[str, object]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}},
    204: {"description": "All events have been seen, and no more will come"},
}


async def stream_answer(
    request: Request,
    context: Context,
    stream: str,
    last_event_id: str | None,
    is_open: Callable[[], Awaitable[bool]],
    snapshot: Callable[[], Awaitable[Snapshot]],
) -> Response:
    """Return a stream of events as it comes, from the start or after the last event that was seen.

    Raises:
        Problem: 422, Last-Event-ID is no id of an event; 503, clients of this process follow too many streams.
    """
    last_seen = last_event_id or ""
    if last_seen and not STREAM_ID.fullmatch(last_seen):
        raise Problem(422, "Last-Event-ID must be the id of an event, such as 1700000000000-0")
    if last_seen and await _has_all(context, stream, last_seen) and (await snapshot()).ended:
        return Response(status_code=204)  # which tells a browser to stop coming back

    refuse(request, admission.too_many_streams(context.streams.followed))

    async def counted() -> AsyncIterator[bytes]:
        context.streams.followed += 1
        try:
            with context.metrics.streams.track_inprogress():
                async for chunk in follow(
                    context.streams,
                    stream,
                    last_seen=last_seen,
                    stopping=context.stopping,
                    is_open=is_open,
                    snapshot=snapshot,
                ):
                    yield chunk
        finally:
            context.streams.followed -= 1

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(counted(), media_type="text/event-stream", headers=headers)


async def stored_events(context: Context, stream: str, start: str, end: str) -> StoredEvents:
    """Return the events of a stream that are still stored."""
    entries = await context.streams.between(stream, start, end, MOST_EVENTS)
    return StoredEvents(
        events=[StoredEvent.model_validate({"id": each.entry_id, "event": each.event}) for each in entries]
    )


def snapshot_event(state: str) -> dict[str, object]:
    """Return the event that stands in for events that are gone.

    Args:
        state: what the status would say, as JSON.
    """
    return {"type": "snapshot", **json.loads(state)}


async def _has_all(context: Context, stream: str, last_seen: str) -> bool:
    return await context.streams.exists(stream) and not await context.streams.between(stream, f"({last_seen}", "+", 1)
