"""Ends of chats' turns told to a real receiver: each once, whatever became of the turn, signed with its own secret."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker import chat_webhooks
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import CHAT_FUNCTION, NewTurn, cancel_turn, enqueue_turn, new_turn_id, retry_letter
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store import chat_turns, dead_letters, definitions, outbox
from synapse_worker.store.chat_turns import OwnedTurn
from synapse_worker.store.claims import ClaimRequest
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from synapse_worker.store.outbox import Attempt
from synapse_worker.webhooks import MOST_STATE_BYTES
from tests.support.api import StartApi
from tests.support.model_server import ModelServer, call, model_server, script
from tests.support.receiver import Received, Receiver, is_signed
from tests.support.runs import enqueue_as_upstream, eventually, outcome
from tests.support.workers import StartWorker

SECRET = "a-secret-that-nobody-may-see"
AGENT: dict[str, object] = {"id": "helper", "name": "Helper", "system_prompt": "You help.", "tools": []}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture(autouse=True)
async def agents(database: Database, server: ModelServer) -> None:
    """An agent, and a model for it."""
    rows = [Document(definitions.SETTINGS, key, "", "", value) for key, value in server.settings().items()]
    rows.append(Document(definitions.AGENTS, "helper", "Helper", "", AGENT))
    await definitions.upsert(database, rows, tenant_id="default")


async def say(
    database: Database,
    client: Redis,
    message: str,
    url: str | None,
    *,
    session_id: str = "s",
    agent: str = "helper",
    secret: str = SECRET,
) -> str:
    """Enqueue a turn with a webhook as the API does; returns its job's id."""
    now_ms = int(time.time() * 1000)
    job_id = new_turn_id(session_id, now_ms)
    turn = NewTurn(session_id, agent, message, "default", webhook_url=url, webhook_secret=SecretStr(secret))
    await enqueue_turn(database, client, turn, job_id=job_id, now_ms=now_ms)
    return job_id


async def all_settled(database: Database, count: int) -> None:
    """Poll until so many rows are delivered, and no other is there."""

    async def are_there() -> bool:
        rows = await database.fetch("SELECT delivered_at FROM webhook_outbox")
        return len(rows) == count and all(row["delivered_at"] for row in rows)

    await eventually(f"{count} are delivered", are_there)


async def outbox_rows(database: Database) -> list[tuple[object, ...]]:
    rows = await database.fetch("SELECT run_id, status, attempts, delivered_at IS NOT NULL FROM webhook_outbox")
    return [tuple(row) for row in rows]


def by_job(receiver: Receiver) -> dict[object, dict[str, object]]:
    """What the receiver was told of each job."""
    return {request.json()["job_id"]: request.json() for request in receiver.received}


async def test_every_end_of_a_turn_is_told_once(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    worker = start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
    async with Receiver() as receiver:
        url = receiver.url
        completed = await say(database, redis_client, "hello", url)
        assert await outcome(database, completed) == "completed"
        failed = await say(database, redis_client, "hello", url, agent="nobody")
        assert await outcome(database, failed) == "failed"
        slow = await say(database, redis_client, "Wait. " + script({"say": "late", "wait": 20}), url)
        await eventually("the model is asked", lambda: len(server.asked) == 2)
        await cancel_turn(redis_client, "s")
        assert await outcome(database, slow) == "cancelled"
        # Two that cannot start: one whose arguments cannot be used, one of another tenant's session.
        hook = {"webhook_url": url, "webhook_secret": SECRET}
        unusable = {"session_id": "s", "agent_id": "helper", "message": 3, **hook}
        await enqueue_as_upstream(redis_client, "chat_s_unusable", CHAT_FUNCTION, **unusable)
        foreign = {**unusable, "message": "hello", "tenant_id": "acme"}
        await enqueue_as_upstream(redis_client, "chat_s_foreign", CHAT_FUNCTION, **foreign)
        assert await outcome(database, "chat_s_unusable") == await outcome(database, "chat_s_foreign") == "failed"
        untold = await say(database, redis_client, "nobody is to know", None)
        assert await outcome(database, untold) == "completed"
        await all_settled(database, 5)
    assert len(receiver.received) == 5
    assert all(is_signed(request, SECRET) for request in receiver.received)
    told = by_job(receiver)
    ended_at = told[completed].pop("ended_at")
    assert told[completed] == {
        "event": "chat_turn_ended",
        "job_id": completed,
        "session_id": "s",
        "agent_id": "helper",
        "tenant_id": "default",
        "status": "completed",
        "error": None,
        "response": "hello",
    }
    assert ended_at
    assert (told[failed]["status"], told[failed]["agent_id"], told[failed]["response"]) == ("failed", "nobody", None)
    assert told[failed]["error"] == "agent 'nobody' does not exist; sync it, then send the message again"
    assert (told[slow]["status"], told[slow]["error"]) == ("cancelled", "cancelled")
    assert told["chat_s_unusable"]["error"] == "the job's argument message must be a text"
    assert told["chat_s_foreign"]["error"] == "the chat session 's' is another tenant's"
    assert (told["chat_s_foreign"]["status"], told["chat_s_foreign"]["tenant_id"]) == ("failed", "acme")
    assert {body["session_id"] for body in told.values()} == {"s"}
    assert SECRET not in worker.log


async def test_each_turn_is_told_to_its_own_webhook(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    async with Receiver() as one, Receiver() as other:
        first = await say(database, redis_client, "first", one.url, secret="ones-own")
        second = await say(database, redis_client, "second", other.url, secret="the-others")
        # What its producer noted says where to tell of it, when Redis does not.
        broken = await say(database, redis_client, "third", one.url, session_id="t", secret="ones-own")
        await redis_client.set(keys.job(broken), b"no payload")
        start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
        await all_settled(database, 3)
    assert {job: body["response"] for job, body in by_job(one).items()} == {first: "first", broken: None}
    assert {job: body["response"] for job, body in by_job(other).items()} == {second: "second"}
    assert by_job(one)[broken]["session_id"] == "t"
    assert all(is_signed(request, "ones-own") for request in one.received)
    assert all(is_signed(request, "the-others") for request in other.received)


async def test_a_turn_through_the_api_is_told_to_its_webhook(
    database: Database, start_api: StartApi, start_worker: StartWorker
) -> None:
    api = await asyncio.to_thread(start_api)
    start_worker(WEBHOOK_ALLOW="127.0.0.1")
    async with Receiver() as receiver, api.client() as client:
        turn = {"message": "hello", "agent_id": "helper", "webhook_secret": SECRET}
        refused = await client.post("/chat", json={**turn, "webhook_url": "ftp://x"})
        assert (refused.status_code, refused.json()["detail"]) == (
            422,
            "webhook_url: it must be an http or https URL",
        )
        answer = await client.post("/chat", json={**turn, "webhook_url": receiver.url})
        assert answer.status_code == 202, answer.text
        await all_settled(database, 1)
    (request,) = receiver.received
    assert is_signed(request, SECRET)
    body = request.json()
    assert {name: body[name] for name in ("job_id", "session_id")} == {
        name: answer.json()[name] for name in ("job_id", "session_id")
    }
    assert (body["status"], body["response"]) == ("completed", "hello")


async def test_a_turn_that_is_tried_again_or_handed_over_has_not_ended(
    database: Database, redis_client: Redis, server: ModelServer, start_worker: StartWorker
) -> None:
    first = start_worker(WORKER_MAX_RETRIES="1", WEBHOOK_ALLOW="127.0.0.1").wait_ready()
    rows = [
        Document(definitions.MCP_SERVERS, "gone", "gone", "", {"name": "gone", "url": "http://127.0.0.1:9/mcp"}),
        Document(definitions.AGENTS, "toolless", "T", "", {**AGENT, "id": "toolless", "tools": ["gone__tool"]}),
    ]
    await definitions.upsert(database, rows, tenant_id="default")
    async with Receiver() as receiver:
        retried = await say(database, redis_client, "hello", receiver.url, session_id="r", agent="toolless")
        assert await outcome(database, retried) == "failed"
        await all_settled(database, 1)
        assert "(after 2 executions)" in str(by_job(receiver)[retried]["error"])

        slow = "Go on. " + script({**call("no_such"), "wait": 2}, {"say": "two"})
        handed = await say(database, redis_client, slow, receiver.url)
        await eventually("the model is asked", lambda: server.asked)
        first.signal(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait) == 0
        (row,) = await database.fetch("SELECT outcome, owner FROM job_ledger WHERE job_id = $1", handed)
        assert tuple(row) == (None, None)
        assert [row[0] for row in await outbox_rows(database)] == [retried]
        start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
        assert await outcome(database, handed) == "completed"
        await all_settled(database, 2)
    assert len(receiver.received) == 2
    # Retried by somebody, its dead letter is a turn of its own, with an end of its own.
    mended = Document(definitions.AGENTS, "toolless", "T", "", {**AGENT, "id": "toolless"})
    await definitions.upsert(database, [mended], tenant_id="default")
    (letter,) = await dead_letters.unresolved(database, limit=10)
    again = await retry_letter(database, redis_client, letter, now_ms=int(time.time() * 1000))
    assert again is not None
    assert await outcome(database, again) == "completed"
    assert sorted(str(row[0]) for row in await outbox_rows(database)) == sorted([retried, handed, again])


async def test_an_end_is_told_although_its_worker_is_killed_right_after_it(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    killed = asyncio.Event()

    async def answer(_: Received) -> str:
        await killed.wait()  # nobody hears of an attempt of the first worker's
        return "200 OK"

    worker = start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
    async with Receiver(answer) as receiver:
        job_id = await say(database, redis_client, "hello", receiver.url)
        assert await outcome(database, job_id) == "completed"
        await asyncio.to_thread(worker.kill)
        killed.set()
        assert [(row[0], row[3]) for row in await outbox_rows(database)] == [(job_id, False)]
        await database.execute("UPDATE webhook_outbox SET next_attempt_at = now()")
        start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
        await all_settled(database, 1)
    assert len({request.headers["x-synapse-delivery"] for request in receiver.received}) == 1
    assert (receiver.received[-1].json()["status"], receiver.received[-1].json()["response"]) == ("completed", "hello")


async def taken(database: Database, job_id: str) -> OwnedTurn:
    """A turn with a webhook that this test owns."""
    arguments = {"webhook_secret": SECRET}
    envelope = encode(JobPayload(CHAT_FUNCTION, arguments))
    url = "http://127.0.0.1/hook"
    request = ClaimRequest(job_id, job_id, "q", envelope, 1, "helper", "s", "default", url, SECRET)
    turn = (await chat_turns.take(database, "w", request, "s")).turn
    assert turn is not None
    return turn


async def leased(database: Database) -> list[Attempt]:
    rows = await outbox.lease(database, busy=[], most_per_host=9, limit=9, seconds=60, most_state=MOST_STATE_BYTES)
    return [await chat_webhooks.with_secret(database, row) for row in rows]


async def test_an_end_is_one_row_whoever_writes_it_and_however_often(database: Database) -> None:
    turn = await taken(database, "job_1")
    assert await chat_turns.give_back(database, turn, active_seconds=1.0)
    former, turn = turn, await taken(database, "job_1")
    assert not await chat_turns.finish(database, former, "completed", "old", messages=[], active_seconds=1.0)
    assert await outbox_rows(database) == []
    for _ in range(2):  # the answer of the first got lost
        assert await chat_turns.finish(database, turn, "completed", "NUL: \x00", messages=[], active_seconds=1.0)
    (attempt,) = await leased(database)
    assert (attempt.session_id, attempt.error, attempt.known) == ("s", "NUL: \ufffd", True)
    assert attempt.secret == SecretStr(SECRET)


async def test_an_answer_that_is_too_large_is_left_out(database: Database) -> None:
    large = "x" * (MOST_STATE_BYTES + 1)
    await chat_turns.finish(
        database, await taken(database, "job_1"), "completed", large, messages=[], active_seconds=1.0
    )
    (attempt,) = await leased(database)
    assert (attempt.status, attempt.error) == ("completed", None)


async def test_without_its_payload_a_turn_is_not_told_unsigned(database: Database) -> None:
    await chat_turns.finish(database, await taken(database, "job_1"), "completed", "hi", messages=[], active_seconds=1)
    await database.execute("UPDATE job_ledger SET envelope = 'x'")
    (attempt,) = await leased(database)
    assert (attempt.known, attempt.secret) == (False, None)
