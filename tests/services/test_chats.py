"""Turns of chats, in real worker processes, against a server that speaks a provider's protocol."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator, Sequence

import pytest
from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import CHAT_FUNCTION, NewTurn, cancel_turn, enqueue_turn, new_turn_id, retry_letter
from synapse_worker.store import chats, dead_letters, definitions
from synapse_worker.store.chats import SessionView
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from tests.support.api import StartApi, following
from tests.support.model_server import ModelServer, call, model_server, script
from tests.support.runs import Event, enqueue_as_upstream, eventually, outcome
from tests.support.workers import StartWorker

TOOL: dict[str, object] = {
    "id": "double",
    "name": "double",
    "tool_type": "python",
    "description": "Doubles a number",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    "code": "print(json.dumps({'doubled': _args['n'] * 2}))",
}
AGENT: dict[str, object] = {"id": "helper", "name": "Helper", "system_prompt": "You help.", "tools": ["double"]}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture(autouse=True)
async def agents(database: Database, server: ModelServer) -> None:
    """An agent with a tool, and a model for it."""
    rows = [Document(definitions.SETTINGS, key, "", "", value) for key, value in server.settings().items()]
    rows.append(Document(definitions.TOOLS, "double", "double", "", TOOL))
    rows.append(Document(definitions.AGENTS, "helper", "Helper", "", AGENT))
    await definitions.upsert(database, rows, tenant_id="default")


async def say(
    database: Database, client: Redis, message: str, *, agent: str = "helper", images: Sequence[str] | None = None
) -> str:
    """Enqueue a turn of the session `s` as the API does; returns its job's id."""
    now_ms = int(time.time() * 1000)
    job_id = new_turn_id("s", now_ms)
    turn = NewTurn("s", agent, message, "default", images)
    await enqueue_turn(database, client, turn, job_id=job_id, now_ms=now_ms)
    return job_id


async def session(database: Database, session_id: str = "s") -> SessionView:
    found = await chats.get(database, session_id)
    assert found is not None
    return found


async def events(client: Redis, session_id: str = "s") -> list[Event]:
    entries = await client.xrange(keys.chat_events(session_id))
    return [json.loads(fields[b"data"]) for _, fields in entries]


async def said_done(client: Redis, job_id: str, session_id: str = "s") -> list[Event]:
    """Poll until a turn's `done` is in the stream; returns the events of that turn."""

    async def is_there() -> bool:
        return f"{job_id}:done" in [event["event_id"] for event in await events(client, session_id)]

    await eventually("the turn is done", is_there)
    return [event for event in await events(client, session_id) if str(event["event_id"]).startswith(job_id)]


async def test_turns_use_tools_and_remember_what_was_said(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    worker = start_worker().wait_ready()
    first = "Double 21. " + script({**call("double", n=21), "say": "I double 21"}, {"say": "it is $last"})
    job_id = await say(database, redis_client, first)
    assert await outcome(database, job_id) == "completed"
    told = await said_done(redis_client, job_id)
    assert [event["type"] for event in told] == [
        "worker_picked_up",
        "thinking",
        "tool_execution",
        "tool_result",
        "final",
        "done",
    ]
    assert told[4]["response"] == 'it is {"doubled": 42}'
    ids = [event["event_id"] for event in told]
    assert len(set(ids)) == len(ids)

    # The server counts the answers that it is shown: what the first turn ended with is one.
    now = "And now? " + script({"say": "not asked"}, {"say": "the same"})
    second = await say(database, redis_client, now)
    assert await outcome(database, second) == "completed"
    await said_done(redis_client, second)
    view = await session(database)
    assert (view.status, view.agent_id, view.job_id) == ("completed", "helper", second)
    assert view.messages == [
        {"role": "user", "content": first},
        {"role": "assistant", "content": 'it is {"doubled": 42}'},
        {"role": "user", "content": now},
        {"role": "assistant", "content": "the same"},
    ]
    given = [(message["role"], message["content"]) for message in server.asked[-1].body["messages"]]
    assert given == [
        ("system", "You help."),
        ("user", first),
        ("assistant", 'it is {"doubled": 42}'),
        ("user", now),
    ]
    assert await database.fetch("SELECT 1 FROM run_turns") == []
    assert 'synapse_chat_jobs_total{status="completed",tenant_id="default"} 2.0' in worker.get("/metrics")[1]


async def test_a_main_instances_turn_makes_its_session(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    await enqueue_as_upstream(
        redis_client, "chat_u_1", CHAT_FUNCTION, session_id="u", agent_id="helper", message="hello", images=None
    )
    assert await outcome(database, "chat_u_1") == "completed"
    view = await session(database, "u")
    assert (view.status, view.tenant_id) == ("completed", "default")
    assert view.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]


async def test_turns_of_a_session_keep_their_order(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    said = ["first", "second", "third"]
    jobs = [await say(database, redis_client, message) for message in said]
    start_worker().wait_ready()
    start_worker().wait_ready()
    for job_id in jobs:
        assert await outcome(database, job_id) == "completed"
    view = await session(database)
    assert [message["content"] for message in view.messages if message["role"] == "user"] == said  # type: ignore[index]
    assert view.status == "completed"
    await said_done(redis_client, jobs[-1])
    assert [event["type"] for event in await events(redis_client)].count("done") == 3


async def test_a_turn_that_fails_for_good_is_a_dead_letter(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    job_id = await say(database, redis_client, "hello", agent="nobody")
    assert await outcome(database, job_id) == "failed"
    sentence = "agent 'nobody' does not exist; sync it, then send the message again"
    told = await said_done(redis_client, job_id)
    assert [(event["type"], event.get("error")) for event in told][1:] == [("error", sentence), ("done", None)]
    (letter,) = await dead_letters.unresolved(database, limit=10)
    assert (letter.function, letter.error, letter.tenant_id) == (CHAT_FUNCTION, sentence, "default")
    assert (letter.payload["session_id"], letter.payload["message"]) == ("s", "hello")
    view = await session(database)
    assert (view.status, view.messages) == ("failed", [])
    # Retried, it is a turn of the session again.
    rows = [Document(definitions.AGENTS, "nobody", "Nobody", "", {**AGENT, "id": "nobody"})]
    await definitions.upsert(database, rows, tenant_id="default")
    retried = await retry_letter(database, redis_client, letter, now_ms=int(time.time() * 1000))
    assert retried is not None
    assert await outcome(database, retried) == "completed"
    assert [message["content"] for message in (await session(database)).messages] == ["hello", "hello"]  # type: ignore[index]
    # A payload that cannot be used ends its turn too.
    await enqueue_as_upstream(redis_client, "chat_s_2", CHAT_FUNCTION, session_id="s", agent_id="helper", message=3)
    assert await outcome(database, "chat_s_2") == "failed"


async def test_a_turn_fails_whatever_characters_the_provider_says_no_in(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    job_id = await say(database, redis_client, "hello " + script({"status": 400, "say": "no\x00 \ud800"}))
    assert await outcome(database, job_id) == "failed"
    (letter,) = await dead_letters.unresolved(database, limit=10)
    assert letter.error.endswith("(HTTP 400: no\ufffd \ufffd).")


async def turns_kept(database: Database, count: int) -> None:
    """Poll until so many answers and results of a turn are kept."""

    async def are_there() -> bool:
        return len(await database.fetch("SELECT 1 FROM run_turns")) == count

    await eventually(f"{count} are kept", are_there)


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
async def test_another_worker_goes_on_within_a_turn(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker, ending: signal.Signals
) -> None:
    slow = "Double 21. " + script(call("double", n=21), {**call("double", n=2), "wait": 2}, {"say": "it is $last"})
    first = start_worker(WORKER_LEASE_SECONDS="5", K8S_MODE="1").wait_ready()
    job_id = await say(database, redis_client, slow)
    await turns_kept(database, 2)
    await eventually("the model is asked again", lambda: len(server.asked) == 2)
    first.signal(ending)
    first.wait()
    start_worker(WORKER_LEASE_SECONDS="5").wait_ready()
    assert await outcome(database, job_id) == "completed"
    # After kill -9 the request under way is made again; a drain waits for its answer. Nothing else is done again.
    assert server.turns == ([0, 1, 1, 2] if ending is signal.SIGKILL else [0, 1, 2])
    told = [event["type"] for event in await said_done(redis_client, job_id)]
    # What a killed worker had not written yet its successor says, behind its own first word.
    assert told.count("worker_picked_up") == 2
    assert [kind for kind in told if kind != "worker_picked_up"] == [
        *("tool_execution", "tool_result") * 2,
        *("final", "done"),
    ]
    assert len((await session(database)).messages) == 2


async def test_a_cancelled_turn_ends_and_the_next_one_is_answered(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    job_id = await say(database, redis_client, "Wait. " + script({"say": "late", "wait": 20}))
    await eventually("the model is asked", lambda: server.asked)
    next_one = await say(database, redis_client, "hello")
    assert (await session(database)).job_id == job_id
    await cancel_turn(redis_client, "s")
    assert await outcome(database, job_id) == "cancelled"
    told = await said_done(redis_client, job_id)
    assert [(event["type"], event.get("error")) for event in told][1:] == [("error", "cancelled"), ("done", None)]
    assert await outcome(database, next_one) == "completed"
    view = await session(database)
    assert (view.status, view.job_id) == ("completed", next_one)
    assert view.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    assert await redis_client.exists(keys.cancel_chat("s")) == 0


async def test_what_may_pass_is_tried_again_before_the_turn_fails(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    start_worker(WORKER_MAX_RETRIES="1").wait_ready()
    # A server of tools that nobody answers for: its tools cannot be listed now.
    rows = [
        Document(definitions.MCP_SERVERS, "gone", "gone", "", {"name": "gone", "url": "http://127.0.0.1:9/mcp"}),
        Document(definitions.AGENTS, "helper", "Helper", "", {**AGENT, "tools": ["gone__tool"]}),
    ]
    await definitions.upsert(database, rows, tenant_id="default")
    job_id = await say(database, redis_client, "hello")
    assert await outcome(database, job_id) == "failed"
    (letter,) = await dead_letters.unresolved(database, limit=10)
    assert letter.attempts == 2
    assert "(after 2 executions)" in letter.error
    assert server.asked == []


async def test_a_turn_through_the_api_is_streamed(
    database: Database, redis_client: Redis, start_api: StartApi, start_worker: StartWorker
) -> None:
    api = await asyncio.to_thread(start_api)
    start_worker()
    async with api.client() as client:
        answer = await client.post("/chat", json={"message": "hello", "agent_id": "helper"})
        assert answer.status_code == 202, answer.text
        path = str(answer.json()["stream_url"]).removeprefix("/api/v2")
        async with following(client, path) as messages:
            told = [message.event async for message in messages if message.event]
        assert [event["type"] for event in told] == ["worker_picked_up", "final", "done"]
        assert told[1]["response"] == "hello"
        status = (await client.get(path.replace("/stream", "/status"))).json()
    assert status["status"] == "completed"
    assert [message["content"] for message in status["messages"]] == ["hello", "hello"]


async def test_images_are_shown_to_the_model_now_and_later(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    start_worker().wait_ready()
    image = "data:image/png;base64,iVBORw0KGgo="
    job_id = await say(database, redis_client, "What is this?", images=[image])
    assert await outcome(database, job_id) == "completed"
    assert await outcome(database, await say(database, redis_client, "And its colour?")) == "completed"
    for asked in server.asked:
        first = next(message for message in asked.body["messages"] if message["role"] == "user")
        assert first["content"][0] == {"type": "text", "text": "What is this?"}
        assert first["content"][1]["image_url"]["url"] == image
    assert (await session(database)).messages[0] == {"role": "user", "content": "What is this?", "images": [image]}

    refused = await say(database, redis_client, "And this?", images=["http://127.0.0.1/secret.png"])
    assert await outcome(database, refused) == "failed"
    (letter,) = await dead_letters.unresolved(database, limit=10)
    assert letter.error.startswith("image 1 of the message cannot be shown to a model; accepted are base64 data URLs")
    assert len(server.asked) == 2


@pytest.mark.parametrize("further", [False, True])
async def test_a_turn_whose_payload_cannot_be_read_leaves_no_session_waiting(
    database: Database, redis_client: Redis, start_worker: StartWorker, *, further: bool
) -> None:
    broken = await say(database, redis_client, "hello")
    await redis_client.set(keys.job(broken), b"no payload")
    if further:
        second = await say(database, redis_client, "Again. " + script({"say": "yes"}))
        await database.execute("UPDATE chat_sessions SET job_id = $1 WHERE session_id = 's'", broken)
    start_worker().wait_ready()
    assert await outcome(database, broken) == "failed"
    told = await said_done(redis_client, broken)
    assert [event["type"] for event in told] == ["error", "done"]
    if further:
        assert await outcome(database, second) == "completed"
    assert (await session(database)).status == ("completed" if further else "failed")
