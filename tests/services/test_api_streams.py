"""Streams of events over HTTP: what is replayed, what is not sent twice, how they end."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Sequence
from contextlib import suppress

import httpx2
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.api import admission, process, sse
from synapse_worker.api.looks import Looks
from synapse_worker.api.sse import Snapshot, Streams, follow
from synapse_worker.connections import open_redis
from synapse_worker.queueing import keys
from synapse_worker.settings import load
from synapse_worker.store.database import Database
from synapse_worker.store.open_work import busy_sessions, open_runs
from tests.page.support import printing
from tests.support.api import ApiProcess, Message, StartApi, following
from tests.support.runs import eventually, said_done, store, until
from tests.support.servers import RedisServer, free_port
from tests.support.workers import StartWorker, chain, environment, slow_steps

RUN = "/orchestrations/hello/run"


@pytest.fixture
async def api(database: Database, redis_client: Redis, start_api: StartApi) -> ApiProcess:
    """An API without keys, and orchestrations `hello` and `slow`."""
    await store(database, printing("hello"), chain("slow", slow_steps(6, 0.3)))
    return await asyncio.to_thread(start_api)


async def enqueued(api: ApiProcess, orchestration_id: str = "hello") -> str:
    """Enqueue a run; returns the path of its stream."""
    async with api.client() as client:
        answer = await client.post(f"/orchestrations/{orchestration_id}/run", json={})
    assert answer.status_code == 202
    return str(answer.json()["stream_url"]).removeprefix("/api/v2")


def run_of(path: str) -> str:
    """Return the run whose stream has this path."""
    return path.split("/")[-2]


def with_data(messages: list[Message]) -> list[Message]:
    """Return the messages that carry an event."""
    return [message for message in messages if message.event]


async def test_a_stream_that_was_cut_goes_on_where_it_was(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    path = await enqueued(api, "slow")
    async with api.client() as client:
        first: list[Message] = []
        async with following(client, path) as messages:
            start_worker()
            async for message in messages:
                first.append(message)
                if message.event.get("type") == "step_complete":
                    break
        last_id = first[-1].fields["id"]
        rest: list[Message] = []
        async with following(client, path, last_id=last_id) as messages:
            rest = [message async for message in messages]
        stored = await said_done(redis_client, run_of(path))
        assert [message.event for message in with_data(first + rest)] == stored
        assert rest[-1].event["type"] == "done"
        over = await client.get(path, headers={"Last-Event-ID": rest[-1].fields["id"]})
        assert over.status_code == 204


async def test_an_event_is_sent_once_on_a_connection(redis_client: Redis, api: ApiProcess) -> None:
    path = await enqueued(api)
    stream = keys.run_events(run_of(path))
    for event_id in ("a", "b", "a", "c"):
        await redis_client.xadd(stream, {"data": json.dumps({"type": "thinking", "event_id": event_id})})
    await redis_client.xadd(stream, {"data": "not ours"})
    async with api.client() as client:
        await client.post(path.replace("/stream", "/cancel"))  # so that it ends
        async with following(client, path) as messages:
            got = with_data([message async for message in messages])
    assert [message.event.get("event_id") for message in got[:3]] == ["a", "b", "c"]
    assert got[3].event["type"] == "snapshot"  # nobody wrote `done`
    assert got[3].event["status"] == "cancelled"


async def test_events_that_have_expired_are_one_snapshot(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    path = await enqueued(api)
    start_worker()
    await until(database, run_of(path), "completed")
    await said_done(redis_client, run_of(path))
    await redis_client.delete(keys.run_events(run_of(path)))
    async with api.client() as client:
        for last_id in ("", "1-0"):
            async with following(client, path, last_id=last_id) as messages:
                (message,) = [message async for message in messages]
            assert message.event["type"] == "snapshot"
            assert message.event["shared_state"] == {"user_input": "", "said": "hello "}
            assert "id" not in message.fields


async def test_a_retried_run_is_followed_behind_its_first_end(
    database: Database, redis_client: Redis, api: ApiProcess, start_worker: StartWorker
) -> None:
    path = await enqueued(api)
    stream = keys.run_events(run_of(path))
    await redis_client.xadd(stream, {"data": json.dumps({"type": "done"})})
    async with api.client() as client, following(client, path) as messages:
        start_worker()
        got = with_data([message async for message in messages])
    assert [message.event["type"] for message in got].count("done") == 2


async def test_a_stop_sends_streams_on_to_another_replica(
    redis_client: Redis, api: ApiProcess, start_api: StartApi, database: Database, start_worker: StartWorker
) -> None:
    other = await asyncio.to_thread(start_api)
    path = await enqueued(api)
    stream = keys.run_events(run_of(path))
    entry_id = (await redis_client.xadd(stream, {"data": json.dumps({"type": "thinking"})})).decode()
    async with api.client() as client, following(client, path) as messages:
        before = [await anext(messages), await anext(messages)]
        api.signal(signal.SIGTERM)
        after = [message async for message in messages]
    assert before[1].fields["id"] == entry_id
    assert after[-1].fields["retry"] == "1000"
    assert await asyncio.to_thread(api.wait) == 0
    async with other.client() as client, following(client, path, last_id=entry_id) as messages:
        start_worker()
        got = with_data([message async for message in messages])
    assert "thinking" not in [message.event["type"] for message in got]
    assert got[-1].event["type"] == "done"


async def test_a_last_event_id_that_is_none(api: ApiProcess) -> None:
    path = await enqueued(api)
    async with api.client() as client:
        answer = await client.get(path, headers={"Last-Event-ID": "x"})
        assert (answer.status_code, "Last-Event-ID" in answer.json()["detail"]) == (422, True)
        bounds = await client.get(path.replace("/stream", "/events"), params={"start": "x"})
        assert bounds.json() == {"detail": "start: it must be the id of an event, - or +"}


async def yes() -> bool:
    """More may come."""
    return True


async def waiting() -> Snapshot:
    """The state of a run that nobody has begun."""
    return Snapshot({"type": "snapshot", "status": "queued"}, begun=False, ended=False)


async def test_a_silent_stream_says_that_it_is_there(redis_client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sse, "KEEPALIVE_SECONDS", 0.1)
    streams = Streams(redis_client)
    reading = asyncio.create_task(streams.read())
    chunks = follow(streams, "stream", last_seen="", stopping=asyncio.Event(), is_open=yes, snapshot=waiting)
    try:
        assert [await anext(chunks) for _ in range(3)] == [b": connected\n\n", *[b": keep-alive\n\n"] * 2]
    finally:
        await chunks.aclose()
        reading.cancel()


async def test_a_connection_remembers_so_many_events_and_no_more(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "_MOST_SEEN", 2)
    for event_id in ("a", "b", "a", "c", "a"):
        await redis_client.xadd("stream", {"data": json.dumps({"event_id": event_id})})
    streams = Streams(redis_client)
    reading = asyncio.create_task(streams.read())
    chunks = follow(streams, "stream", last_seen="", stopping=asyncio.Event(), is_open=yes, snapshot=waiting)
    try:
        assert await anext(chunks) == b": connected\n\n"
        sent = [json.loads((await anext(chunks)).partition(b"data: ")[2]) for _ in range(4)]
        assert [event["event_id"] for event in sent] == ["a", "b", "c", "a"]
    finally:
        await chunks.aclose()
        reading.cancel()


async def test_an_entry_that_cannot_be_read_ends_nobodys_stream(redis_client: Redis) -> None:
    await redis_client.xadd("odd", {"data": "[" * 100_000})
    await redis_client.xadd("good", {"data": '{"type": "x"}'})
    streams = Streams(redis_client)
    reading = asyncio.create_task(streams.read())
    try:
        assert [entry.event for entry in await streams.after("odd", "", timeout=5)] == [{}]
        assert [entry.event for entry in await streams.after("good", "", timeout=5)] == [{"type": "x"}]
    finally:
        reading.cancel()


async def test_without_redis_a_stream_ends_and_asks_to_come_back() -> None:
    client = open_redis(SecretStr("redis://127.0.0.1:1"))
    try:
        chunks = follow(
            Streams(client), "stream", last_seen="", stopping=asyncio.Event(), is_open=yes, snapshot=waiting
        )
        assert [chunk async for chunk in chunks] == [b"retry: 1000\n\n"]
    finally:
        await client.aclose()


async def test_quiet_streams_are_looked_at_together() -> None:
    asked: list[Sequence[str]] = []

    async def ask(ids: Sequence[str]) -> set[str]:
        asked.append(ids)
        return {"a", "b"}

    looks = Looks(ask)
    answers = await asyncio.gather(*map(looks.is_open, ["a", "b", "c", "a"]))
    assert answers == [True, True, False, True]
    assert asked == [["a", "b", "c"]]


async def test_what_is_open(database: Database) -> None:
    for status in ("queued", "running", "paused", "completed", "failed", "cancelled"):
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
            " VALUES ($1, 'o', 'default', $1, '{}', '[]')",
            status,
        )
        await database.execute(
            "INSERT INTO chat_sessions (session_id, tenant_id, status, messages) VALUES ($1, 'default', $1, '[]')",
            status,
        )
    asked = ["gone", "queued", "running", "paused", "completed", "failed", "cancelled"]
    assert await open_runs(database, asked) == {"queued", "running", "paused"}
    assert await busy_sessions(database, asked) == {"queued", "running"}


async def test_a_stream_too_many_is_refused(
    database: Database,
    redis_client: Redis,
    redis_server: RedisServer,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "MOST_STREAMS", 1)
    port = free_port()
    settings = load(environment(redis_server.url, postgres_url, API_PORT=str(port), API_AUTH="off"))
    served = process.ApiProcess(settings)
    serving = asyncio.create_task(served.run())
    await store(database, printing("hello"))
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v2") as client:

            async def ready() -> bool:
                with suppress(httpx2.HTTPError):
                    return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
                return False

            await eventually("the API is ready", ready)
            path = (await client.post("/orchestrations/hello/run", json={})).json()["stream_url"]
            async with client.stream("GET", f"http://127.0.0.1:{port}{path}") as first:
                assert first.status_code == 200
                lines = first.aiter_lines()
                assert await anext(lines) == ": connected"
                refused = await client.get(f"http://127.0.0.1:{port}{path}")
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert "follow 1 streams" in refused.json()["detail"]
    finally:
        signal.raise_signal(signal.SIGTERM)
        await serving
