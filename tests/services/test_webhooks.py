"""Webhooks against real receivers: sent once, signed, repeated, given up, and never to where they may not go."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from synapse_worker import egress as egress_module
from synapse_worker import webhooks as webhooks_module
from synapse_worker.egress import Egress
from synapse_worker.egress_policy import Allowed
from synapse_worker.errors import EgressFailed, EgressRefused
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from synapse_worker.telemetry import Metrics
from synapse_worker.webhooks import MOST_ATTEMPTS, Webhooks
from tests.support.receiver import Received, Receiver, is_signed
from tests.support.runs import enqueue_as_upstream, eventually, steps_reach, store
from tests.support.servers import RedisServer, certify, free_port
from tests.support.workers import PRINT_IF_PRINT, StartWorker, chain, command, slow_steps

LOOPBACK = "127.0.0.0/8"
SECRET = "a-secret-that-nobody-may-see"
BROKEN = chain("broken", [{"id": "t", "type": "transform", "transform_code": "result = state['nope']"}])

Row = dict[str, object]
StartSender = Callable[..., Awaitable[Metrics]]


@pytest.fixture
async def start_sender(database: Database, redis_client: Redis) -> AsyncIterator[StartSender]:
    """Starts senders in this process, which look for due rows all the time."""
    tasks: list[asyncio.Task[None]] = []
    gate = StoreGate(database, redis_client)
    tasks.append(asyncio.create_task(gate.watch()))
    egresses: list[Egress] = []

    async def start(allow: str = LOOPBACK) -> Metrics:
        metrics, egress = Metrics(), Egress(Allowed.parse(allow))
        egresses.append(egress)
        tasks.append(asyncio.create_task(Webhooks(database, gate, egress, metrics).send()))
        return metrics

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for egress in egresses:
        await egress.__aexit__(None, None, None)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for due rows all the time."""
    monkeypatch.setattr(webhooks_module, "IDLE_SECONDS", 0.02)


async def end_run(database: Database, run_id: str, url: str) -> None:
    """Write a run that waits, and end it."""
    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
        " webhook_url, webhook_secret) VALUES ($1, 'three', 'acme', 'queued', '{\"a\": 1}', '[]', $2, $3)",
        run_id,
        url,
        SECRET,
    )
    assert await runs.cancel_queued(database, run_id) == "queued"


async def row_of(database: Database, run_id: str) -> Row:
    """The outbox's row of a run that has ended once."""
    (row,) = await database.fetch("SELECT * FROM webhook_outbox WHERE run_id = $1", run_id)
    return dict(row)


async def settled(database: Database, run_id: str) -> Row:
    """Poll until a row is delivered or given up."""
    deadline = time.monotonic() + 20
    while True:
        row = await row_of(database, run_id)
        if row["delivered_at"] or row["given_up_at"]:
            assert row["next_attempt_at"] is None
            return row
        assert time.monotonic() < deadline, row
        await asyncio.sleep(0.02)


async def make_due(database: Database) -> None:
    """Let the time pass until the next attempts."""
    await database.execute("UPDATE webhook_outbox SET next_attempt_at = now() WHERE next_attempt_at IS NOT NULL")


async def test_every_end_of_a_run_is_told(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT, BROKEN, chain("slow", slow_steps(20, 0.3)))
    worker = start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
    async with Receiver() as receiver:
        hook = {"webhook_url": receiver.url, "webhook_secret": SECRET, "tenant_id": "acme"}
        for run_id, orchestration in (("run_ok", "three"), ("run_bad", "broken"), ("run_slow", "slow")):
            await enqueue_as_upstream(
                redis_client, run_id, RUN_FUNCTION, run_id=run_id, orch_id=orchestration, initial_input="hi", **hook
            )
        await steps_reach(database, "run_slow", 1)
        await asyncio.to_thread(command, redis_server.url, postgres_url, "runs", "cancel", "run_slow")
        await eventually("all three are told", lambda: len(receiver.received) == 3)
        for run_id in ("run_ok", "run_bad", "run_slow"):
            assert (await settled(database, run_id))["delivered_at"] is not None
    told = {str(request.json()["run_id"]): request.json() for request in receiver.received}
    assert {run_id: body["status"] for run_id, body in told.items()} == {
        "run_ok": "completed",
        "run_bad": "failed",
        "run_slow": "cancelled",
    }
    assert {body["tenant_id"] for body in told.values()} == {"acme"}
    state = told["run_ok"]["shared_state"]
    assert isinstance(state, dict)
    assert (state["a"], state["b"]) == ("hello hi", "bye")
    assert told["run_ok"]["error"] is None
    assert "nope" in str(told["run_bad"]["error"])
    assert all(told[run_id]["ended_at"] for run_id in told)
    assert all(is_signed(request, SECRET) for request in receiver.received)
    _, metrics = await asyncio.to_thread(worker.get, "/metrics")
    assert 'synapse_webhook_deliveries_total{status="delivered"} 3.0' in metrics
    assert SECRET not in worker.log


async def test_a_worker_killed_before_it_noted_the_answer_sends_it_again_under_the_same_id(
    database: Database, postgres_url: str, start_worker: StartWorker
) -> None:
    locked = asyncio.Event()

    async def answer(_: Received) -> str:
        await locked.wait()
        return "200 OK"

    async def note_waits() -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return bool(await database.fetch(waiting))

    async with Receiver(answer) as receiver:
        await end_run(database, "run_1", receiver.url)
        connection = await asyncpg.connect(postgres_url)
        transaction = connection.transaction()
        worker = start_worker(WEBHOOK_ALLOW="127.0.0.1")
        await eventually("the attempt is leased", lambda: attempts_of(database, "run_1"))
        # Its note waits for this lock, which is taken before the receiver answers.
        await transaction.start()
        await connection.execute("SELECT 1 FROM webhook_outbox FOR UPDATE")
        locked.set()
        await eventually("the answer is to be noted", note_waits)
        worker.kill()
        # PostgreSQL would do what it has been asked although nobody waits for its answer any more.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await transaction.rollback()
        await connection.close()
        assert (await row_of(database, "run_1"))["delivered_at"] is None
        start_worker(WEBHOOK_ALLOW="127.0.0.1").wait_ready()
        await make_due(database)
        row = await settled(database, "run_1")
    assert (row["attempts"], row["delivered_at"] is not None) == (2, True)
    first, second = receiver.received
    assert first.headers["x-synapse-delivery"] == second.headers["x-synapse-delivery"] == str(row["id"])
    assert first.body == second.body


async def test_a_worker_that_is_told_to_stop_ends_the_attempt_under_way(
    database: Database, start_worker: StartWorker
) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(_: Received) -> str:
        asked.set()
        await may_answer.wait()
        return "200 OK"

    async with Receiver(answer) as receiver:
        await end_run(database, "run_1", receiver.url)
        worker = start_worker(WEBHOOK_ALLOW="127.0.0.1")
        await asyncio.wait_for(asked.wait(), 20)
        worker.signal(signal.SIGTERM)
        await eventually("it drains", lambda: "draining" in worker.log)
        may_answer.set()
        assert await asyncio.to_thread(worker.wait) == 0
    row = await row_of(database, "run_1")
    assert (row["attempts"], row["delivered_at"] is not None) == (1, True)
    assert "Traceback" not in worker.log


async def attempts_of(database: Database, run_id: str) -> object:
    return (await row_of(database, run_id))["attempts"]


async def test_what_fails_is_repeated_later_and_given_up_at_last(
    database: Database, start_sender: StartSender, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answers = ["500 Oops", "302 Found\r\nLocation: http://127.0.0.1/elsewhere", "429 Slow"]

    async def answer(_: Received) -> str:
        return answers.pop(0) if answers else "503 Later"

    async with Receiver(answer) as receiver:
        await end_run(database, "run_1", f"{receiver.url}?token=hidden-in-the-url")
        metrics = await start_sender()
        for number, (status, delay) in enumerate([(500, 5), (302, 10), (429, 20), (503, 40)], start=1):
            await eventually("it is put off", lambda status=status: said(database, f"answers {status}"))
            row = await row_of(database, "run_1")
            waits = await database.fetch(
                "SELECT extract(epoch FROM next_attempt_at - now())::float8 AS s FROM webhook_outbox"
            )
            assert 0.5 * delay < waits[0]["s"] < 1.3 * delay
            assert (row["attempts"], row["given_up_at"], len(receiver.received)) == (number, None, number)
            await make_due(database)
        await database.execute("UPDATE webhook_outbox SET attempts = $1", MOST_ATTEMPTS - 1)
        await make_due(database)
        row = await settled(database, "run_1")
    assert (row["delivered_at"], row["attempts"]) == (None, MOST_ATTEMPTS)
    assert "answers 503" in str(row["last_error"])
    assert {request.path for request in receiver.received} == {"/hook?token=hidden-in-the-url"}
    assert len({request.headers["x-synapse-delivery"] for request in receiver.received}) == 1
    text = metrics.text().decode()
    assert 'synapse_webhook_deliveries_total{status="given_up"} 1.0' in text
    (line,) = [record.getMessage() for record in caplog.records if "given up" in record.getMessage()]
    assert "run_1" in line
    assert SECRET not in caplog.text
    assert "hidden-in-the-url" not in caplog.text


async def said(database: Database, error: str) -> bool:
    return error in str((await row_of(database, "run_1"))["last_error"])


async def test_a_receiver_that_wants_no_more_is_not_asked_again(database: Database, start_sender: StartSender) -> None:
    async def answer(_: Received) -> str:
        return "410 Gone"

    async with Receiver(answer) as receiver:
        await end_run(database, "run_1", receiver.url)
        await start_sender()
        row = await settled(database, "run_1")
    assert row["given_up_at"] is not None
    assert len(receiver.received) == 1


async def test_two_workers_send_each_row_once(database: Database, start_sender: StartSender) -> None:
    async def answer(_: Received) -> str:
        await asyncio.sleep(0.01)
        return "204 No Content"

    async with Receiver(answer) as receiver:
        for number in range(60):
            await end_run(database, f"run_{number}", receiver.url)
        for _ in range(3):
            await start_sender()
        for number in range(60):
            assert (await settled(database, f"run_{number}"))["attempts"] == 1
    assert len(receiver.received) == 60


async def test_slow_receivers_hold_up_nobody_else(database: Database, start_sender: StartSender) -> None:
    stuck = asyncio.Event()

    async def never(_: Received) -> str:
        await stuck.wait()
        return "200 OK"

    async with Receiver(never, host="127.0.0.2") as slow, Receiver(host="127.0.0.3") as quick:
        for number in range(300):  # more than are looked at together, and all are due before the other
            await end_run(database, f"slow_{number}", slow.url)
        await end_run(database, "quick", quick.url)
        await start_sender()
        row = await settled(database, "quick")
        assert row["delivered_at"] is not None
        assert len(slow.received) <= webhooks_module.AT_ONCE_PER_HOST
        stuck.set()


async def test_an_attempt_ends_in_time_however_slow_the_answer(
    database: Database, start_sender: StartSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks_module, "ATTEMPT_SECONDS", 0.3)

    drips: list[asyncio.Task[None]] = []

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        drips.append(task)
        try:
            while True:
                writer.write(b"H")
                await writer.drain()
                await asyncio.sleep(0.05)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    port = free_port()
    server = await asyncio.start_server(drip, "127.0.0.1", port)
    await end_run(database, "run_1", f"http://127.0.0.1:{port}/")
    await start_sender()
    await eventually("it has failed", lambda: said(database, "does not answer within 0.3 s"))
    server.close()
    for task in drips:
        task.cancel()
    await asyncio.wait(drips)


async def test_a_run_that_went_on_or_is_too_large_is_told_of_without_its_state(
    database: Database, start_sender: StartSender
) -> None:
    async with Receiver() as receiver:
        for run_id in ("run_gone_on", "run_large", "run_removed"):
            await end_run(database, run_id, receiver.url)
        await database.execute("UPDATE orchestration_runs SET ended_at = NULL WHERE run_id = 'run_gone_on'")
        await database.execute(
            "UPDATE orchestration_runs SET shared_state = jsonb_build_object('a', repeat('x', 1000001))"
            " WHERE run_id = 'run_large'"
        )
        await database.execute("DELETE FROM orchestration_runs WHERE run_id = 'run_removed'")
        await start_sender()
        assert (await settled(database, "run_removed"))["given_up_at"] is not None
        assert (await settled(database, "run_gone_on"))["delivered_at"] is not None
        assert (await settled(database, "run_large"))["delivered_at"] is not None
    told = {request.json()["run_id"]: request.json()["shared_state"] for request in receiver.received}
    assert told == {"run_gone_on": None, "run_large": None}


REFUSED = (
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://2130706433:{port}/",
    "http://127.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://0:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://10.0.0.1/",
    "http://224.0.0.1/",
    "http://user:word@127.0.0.1:{port}/",
    "http://example.com@127.0.0.1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "http:///hook",
    "//127.0.0.1/",
    "not a url",
    "http://127.0.0.1:99999/",
    "http://127.0.0.1:0/",
)


async def test_private_and_odd_targets_are_refused_unsent(database: Database, start_sender: StartSender) -> None:
    async with Receiver() as receiver:
        for number, url in enumerate(REFUSED):
            await end_run(database, f"run_{number}", url.format(port=receiver.port))
        metrics = await start_sender(allow="")
        for number, url in enumerate(REFUSED):
            row = await settled(database, f"run_{number}")
            assert (row["delivered_at"], row["attempts"]) == (None, 1), url
            assert row["last_error"], url
    assert receiver.received == []
    assert f'synapse_webhook_deliveries_total{{status="given_up"}} {len(REFUSED)}.0' in metrics.text().decode()


async def test_a_name_is_resolved_once_and_the_judged_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DNS rebinding: whatever the name resolves to a moment later."""
    asked: list[str] = []

    def resolve(host: str) -> list[object]:
        asked.append(host)
        return [ip_address("127.0.0.1")] if len(asked) == 1 else [ip_address("127.0.0.9")]

    monkeypatch.setattr(egress_module, "_addresses", resolve)
    certify(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    async with Receiver(tls=tls) as receiver, Egress(Allowed.parse("127.0.0.1")) as egress:

        async def post(host: str) -> int:
            url = f"https://{host}:{receiver.port}/hook"
            return await egress.post(url, headers={}, content=b"{}", seconds=5)

        assert await post("receiver.test") == 200
        assert asked == ["receiver.test"]
        assert receiver.received[0].headers["host"] == f"receiver.test:{receiver.port}"
        with pytest.raises(EgressRefused, match="no public address"):
            await post("receiver.test")
        asked.clear()
        # The certificate is for the name; another name that leads there is not believed.
        with pytest.raises(EgressFailed, match="cannot be reached"):
            await post("other.test")
    assert len(receiver.received) == 1


async def test_of_several_addresses_only_permitted_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [ip_address("127.0.0.8"), ip_address("127.0.0.7"), ip_address("127.0.0.1")]
    monkeypatch.setattr(egress_module, "_addresses", lambda host: places)
    async with (
        Receiver() as receiver,
        Receiver(host="127.0.0.8") as private,
        Egress(Allowed.parse("127.0.0.7, 127.0.0.1")) as egress,
    ):
        url = f"http://receiver.test:{receiver.port}/"
        assert await egress.post(url, headers={}, content=b"", seconds=5) == 200
    assert len(receiver.received) == 1
    assert private.received == []


async def test_a_name_that_does_not_resolve_is_tried_again(database: Database, start_sender: StartSender) -> None:
    await end_run(database, "run_1", "http://nobody.invalid/hook")
    await start_sender()
    await eventually("it has failed", lambda: said(database, "cannot be resolved"))
    assert (await row_of(database, "run_1"))["given_up_at"] is None


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver(host="127.0.0.1") as receiver, Receiver(host="127.0.0.2") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.2:{proxy.port}")
        monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.2:{proxy.port}")
        async with Egress(Allowed.parse(LOOPBACK)) as egress:
            assert await egress.post(receiver.url, headers={}, content=b"", seconds=5) == 200
    assert (len(receiver.received), len(proxy.received)) == (1, 0)
