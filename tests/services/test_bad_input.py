"""What others may put into our stores, and stores that are not as they should be: one sentence each, nothing else hurt.

Hostile and unreadable pickles, unknown functions and ids without payload are in test_runs, resumes of nothing in
test_resume.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker import connections, settings
from synapse_worker.connections import RedisFacts, open_database
from synapse_worker.errors import ConfigurationError
from synapse_worker.lifecycle import Worker
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.store.database import Database
from tests.page.support import TlsPostgresServer, TlsRedisServer, certify
from tests.support.runs import enqueue, enqueue_as_upstream, outcome, said_done, steps_reach, store, until
from tests.support.servers import PostgresServer, RedisServer, free_port, wait_until
from tests.support.workers import (
    PRINT_IF_PRINT,
    StartWorker,
    WorkerProcess,
    chain,
    command,
    environment,
    slow_steps,
)

Q = keys.queue("default")
SECRET = "hush-hush"


def raw(**changes: object) -> bytes:
    """A job that asks for a run of `three`, with changed parts of its envelope or, for others, arguments."""
    envelope = {name: changes.pop(name) for name in ("f", "et") if name in changes}
    arguments = {"run_id": "run_x", "orch_id": "three", "webhook_secret": SECRET, **changes}
    return pickle.dumps({"t": 1, "f": RUN_FUNCTION, "a": (), "k": arguments, "et": 1, **envelope})


async def test_what_no_store_can_hold_ends_alone(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    refused: dict[bytes, tuple[bytes, str]] = {
        b"nan": (raw(initial_state={"x": float("nan")}), "the number nan"),
        b"huge": (raw(initial_state={"x": 10**5000}), "a whole number of over 1024 bits"),
        b"nul": (raw(f="run\x00", run_id="run_nul"), "unknown job function 'run\\x00'"),
        b"long": (raw(run_id="r" * 300), "run_id must be a text of 1 to 255 characters"),
        b"surrogate": (raw(run_id="run_s", tenant_id="\ud800"), "tenant_id must be a text of 1 to 255 characters"),
        b"\xff\xfe\x00": (raw(), "the job's id is not a text of 1 to 255 characters"),
        b"i" * 300: (raw(), "the job's id is not a text of 1 to 255 characters"),
    }
    for job_id, (payload, _) in refused.items():
        await redis_client.set(b"arq:job:" + job_id, payload)
        await redis_client.zadd(Q, {job_id: 1})
    await redis_client.zadd(Q, {b"\xfe": 1})  # no text and no payload
    # Odd, and no reason to refuse: when it was enqueued is only for people.
    for job_id, et, score in (("run_future", 10**30, 1), ("run_first", -1, "-inf")):
        await redis_client.set(keys.job(job_id), raw(run_id=job_id, et=et))
        await redis_client.execute_command("ZADD", Q, score, job_id)  # type: ignore[no-untyped-call]
    worker = start_worker().wait_ready()
    good = await enqueue(database, redis_client, "three")
    for run_id in (good, "run_future", "run_first"):
        await until(database, run_id, "completed")
    wait_until("the queue is empty", lambda: worker.log.count("cannot be run") == len(refused) + 1)
    sentences = {row["error_message"] for row in await database.fetch("SELECT error_message FROM dead_letter_queue")}
    for job_id, (_, sentence) in refused.items():
        assert any(sentence in said for said in sentences), job_id
    deadline = asyncio.get_running_loop().time() + 10
    while await redis_client.zcard(Q) or await redis_client.zcard(keys.leases(Q)):
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.05)
    assert await redis_client.exists(b"arq:job:\xff\xfe\x00") == 0
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log


async def test_sentences_that_no_store_can_hold_are_said_as_far_as_they_can(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(
        database,
        chain("bad", [{"id": "t", "type": "transform", "transform_code": "raise ValueError('a\\x00b')"}]),
        chain("ask", [{"id": "h", "type": "human", "human_prompt": "is it {state.user_input}?"}]),
    )
    start_worker().wait_ready()
    failed = await until(database, await enqueue(database, redis_client, "bad"), "failed", seconds=10)
    assert "ValueError: a\ufffdb" in str(failed.error)
    for run_id, given in (("run_nul", "a\x00b"), ("run_half", "a\ud800b")):
        await enqueue_as_upstream(redis_client, run_id, RUN_FUNCTION, run_id=run_id, orch_id="ask", initial_input=given)
        paused = await until(database, run_id, "paused", "failed", seconds=10)
        assert paused.human_prompt == "is it a\ufffdb?"


async def test_positional_arguments_of_a_producer_are_named(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT, chain("broken", [{"id": "t", "type": "transform", "transform_code": "x"}]))
    for run_id, orchestration in (("run_good", "three"), ("run_bad", "broken")):
        positional = (run_id, orchestration, "Ada", None, None, None, SECRET)
        await redis_client.set(keys.job(run_id), encode(JobPayload(RUN_FUNCTION, {}, positional)))
        await redis_client.zadd(Q, {run_id: 1})
    start_worker().wait_ready()
    assert (await until(database, "run_good", "completed")).state["a"] == "hello Ada"
    await until(database, "run_bad", "failed")
    row = await database.fetchrow("SELECT job_payload::text AS payload FROM dead_letter_queue")
    assert row is not None
    assert json.loads(row["payload"])["initial_input"] == "Ada"  # so that a retry has all of it


async def test_secrets_are_hidden_in_every_listing(
    database: Database, redis_client: Redis, redis_server: RedisServer, postgres_url: str, start_worker: StartWorker
) -> None:
    worker = start_worker().wait_ready()
    await enqueue_as_upstream(
        redis_client,
        "run_s",
        RUN_FUNCTION,
        run_id="run_s",
        orch_id="gone",
        webhook_url="https://h",
        webhook_secret=SECRET,
    )
    assert await outcome(database, "run_s") == "failed"

    async def said(*words: str) -> str:
        answer = await asyncio.to_thread(command, redis_server.url, postgres_url, *words)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout + answer.stderr

    (letter,) = json.loads(await said("dlq", "list", "-o", "json"))
    commands = [("dlq", "show", letter["id"]), ("dlq", "list"), ("runs", "list"), ("runs", "show", "run_s")]
    for form in ("table", "json"):
        shown, *listings = await asyncio.gather(*(said(*words, "-o", form) for words in commands))
        assert "(hidden)" in shown
        assert not any(SECRET in listing for listing in (shown, *listings))
    retried = json.loads(await said("dlq", "retry", letter["id"], "-o", "json"))
    assert [set(entry) for entry in retried] == [{"id", "run_id", "job_id"}]
    assert await outcome(database, retried[0]["job_id"]) == "failed"
    (again,) = json.loads(await said("dlq", "list", "-o", "json"))
    discarded = json.loads(await said("dlq", "discard", again["id"], "-o", "json"))
    assert discarded == [{"id": again["id"], "run_id": "run_s"}]
    assert SECRET not in worker.log
    # Hidden, not lost: the job itself has it.
    row = await database.fetchrow("SELECT job_payload->>'webhook_secret' AS secret FROM dead_letter_queue LIMIT 1")
    assert row is not None
    assert row["secret"] == SECRET


async def test_a_deleted_definition_stops_new_runs_and_no_running_one(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, chain("slow", slow_steps(6, 0.2)), PRINT_IF_PRINT)
    start_worker().wait_ready()
    running = await enqueue(database, redis_client, "slow")
    await steps_reach(database, running, 1)
    await database.execute("DELETE FROM orchestrations WHERE id = 'slow'")
    await database.execute("UPDATE orchestrations SET definition = '[1]' WHERE id = 'three'")
    late = await enqueue(database, redis_client, "slow")
    assert (await until(database, late, "failed")).error == (
        "orchestration 'slow' does not exist; sync it, then enqueue the run again"
    )
    shapeless = await enqueue(database, redis_client, "three")
    assert "has no steps" in str((await until(database, shapeless, "failed")).error)
    assert (await until(database, running, "completed")).steps_done == 6


async def test_a_key_of_the_wrong_type_stops_its_queue_until_it_is_repaired(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT)
    queues = {shard: keys.queue(shard) for shard in ("default", "0", "1", "2")}
    broken = dict(zip(queues, (lambda queue: queue, keys.again, keys.leases, keys.claims), strict=True))

    async def put(queue: str, run_id: str) -> None:
        await redis_client.set(keys.job(run_id), raw(run_id=run_id))
        await redis_client.zadd(queue, {run_id: 1})

    for shard, queue in queues.items():
        await redis_client.set(broken[shard](queue), "somebody else's")
        if broken[shard](queue) != queue:
            await put(queue, f"run_first_{shard}")
    worker = start_worker(WORKER_QUEUE_SHARD="default,0,1,2,acme").wait_ready()
    sentences = [
        f"queue {queue} is not served until that is repaired: Redis holds a key of ours with another type"
        for queue in queues.values()
    ]
    wait_until("it says so of each", lambda: all(sentence in worker.log for sentence in sentences))
    for number in range(3):
        await put(keys.queue("acme"), f"run_acme_{number}")
        await until(database, f"run_acme_{number}", "completed")
    assert worker.get("/readyz")[0] == 200
    waited = [f"run_first_{shard}" for shard, queue in queues.items() if broken[shard](queue) != queue]
    for shard, queue in queues.items():
        await redis_client.delete(broken[shard](queue))
        await put(queue, f"run_later_{shard}")
        waited.append(f"run_later_{shard}")
    for run_id in waited:
        await until(database, run_id, "completed", seconds=15)
    assert all(f"queue {queue} is served again" in worker.log for queue in queues.values())
    assert [worker.log.count(sentence) for sentence in sentences] == [1, 1, 1, 1]
    assert "Traceback" not in worker.log


async def test_a_key_that_breaks_under_running_jobs_costs_the_other_queue_nothing(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    # The one whose lease breaks lasts longer than a lease in any case.
    await store(database, chain("slow", slow_steps(12, 0.3)), chain("slower", slow_steps(40, 0.3)))
    worker = start_worker(WORKER_QUEUE_SHARD="default,acme", WORKER_LEASE_SECONDS="3").wait_ready()
    payload = JobPayload(RUN_FUNCTION, {"run_id": "run_acme", "orch_id": "slow"})
    await redis_client.set(keys.job("run_acme"), encode(payload))
    await redis_client.zadd(keys.queue("acme"), {"run_acme": 1})
    run_id = await enqueue(database, redis_client, "slower")
    await steps_reach(database, run_id, 1)
    await steps_reach(database, "run_acme", 1)
    await redis_client.set(keys.leases(Q), "somebody else's")
    # Its lease cannot be prolonged any more: the run is given back, not run on without one.
    await until(database, run_id, "queued", seconds=10)
    assert (await until(database, "run_acme", "completed")).steps_done == 12
    row = await database.fetchrow("SELECT count(DISTINCT claim) AS n FROM run_steps WHERE run_id = 'run_acme'")
    assert row is not None
    assert row["n"] == 1  # it never lost its owner
    assert worker.get("/livez")[0] == 200


async def test_other_keys_of_the_wrong_type_cost_what_they_hold_and_no_more(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, PRINT_IF_PRINT, chain("slow", slow_steps(4, 0.3)))
    await redis_client.set(keys.ABORT, "somebody else's")
    await redis_client.set(keys.parked(Q), "somebody else's")
    await redis_client.set(keys.run_events("run_silent"), "somebody else's")
    await redis_client.lpush(keys.job("run_list"), "somebody else's")  # type: ignore[misc]
    await redis_client.zadd(Q, {"run_list": 1})
    worker = start_worker().wait_ready()
    for run_id, orchestration in (("run_silent", "three"), ("run_slow", "slow")):
        await enqueue_as_upstream(redis_client, run_id, RUN_FUNCTION, run_id=run_id, orch_id=orchestration)
        await until(database, run_id, "completed")
    await said_done(redis_client, "run_slow")
    assert await outcome(database, "run_list") == "expired"
    wait_until("it says so", lambda: "events were not written to synapse:run:run_silent:events" in worker.log)
    wait_until("it says so", lambda: f"what is parked of queue {Q} cannot be looked after" in worker.log)
    assert "suspended" not in worker.log
    assert "Traceback" not in worker.log


async def test_an_eviction_policy_that_drops_keys_is_said_at_start(
    redis_client: Redis, start_worker: StartWorker
) -> None:
    await redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        worker = start_worker().wait_ready()
        assert "Redis has maxmemory-policy allkeys-lru and may drop queued jobs" in worker.log
    finally:
        await redis_client.config_set("maxmemory-policy", "noeviction")


async def test_an_old_redis_is_refused_at_start(
    redis_server: RedisServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(node: Redis) -> RedisFacts:
        """An old Redis cannot be installed beside a new one; what it says of itself is known."""
        return RedisFacts("6.0.16", "noeviction", clustered=False)

    monkeypatch.setattr(connections, "_ask_node", ask)
    own = settings.load(environment(redis_server.url, postgres_url, WORKER_HEALTH_PORT=str(free_port())))
    with pytest.raises(ConfigurationError) as caught:
        async with asyncio.timeout(20):
            await Worker(own).run()
    assert str(caught.value) == "Redis 6.0.16 is too old; 6.2 or newer is needed."


def waits_for(worker: WorkerProcess, sentence: str) -> None:
    """The worker says what it waits for, in its log and at its probe, and says no secret."""
    wait_until("it says so", lambda: f"start-up waits: {sentence}" in worker.log)
    wait_until("its probe says so", lambda: worker.get("/readyz")[0] == 503 and sentence in worker.get("/readyz")[1])
    assert worker.get("/livez")[0] == 200
    assert "Traceback" not in worker.log
    assert SECRET not in worker.log


@pytest.fixture
async def locked_postgres(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A user of the session's PostgreSQL that has to show a password."""
    admin = open_database(SecretStr(postgres_server.url()))
    access = Path(postgres_server.folder) / "data" / "pg_hba.conf"
    before = access.read_text(encoding="utf-8")
    await admin.execute("CREATE ROLE locked LOGIN PASSWORD 'right'")
    access.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}", encoding="utf-8")
    await admin.execute("SELECT pg_reload_conf()")
    yield "locked"
    access.write_text(before, encoding="utf-8")
    await admin.execute("SELECT pg_reload_conf()")
    await admin.execute("DROP ROLE locked")
    await admin.close()


@pytest.fixture
def other_authority(tmp_path: Path) -> str:
    """The certificate of a CA that has signed nothing here."""
    certify(tmp_path)
    return str(tmp_path / "ca.crt")


@pytest.fixture
def start_on(postgres_url: str) -> Iterator[Any]:
    """Starts a worker on other stores than the test's own."""
    started: list[WorkerProcess] = []

    def start(redis_url: str, postgres: str = postgres_url, **extra: str) -> WorkerProcess:
        started.append(WorkerProcess(redis_url, postgres, K8S_MODE="1", **extra).start())
        return started[-1]

    yield start
    for worker in started:
        worker.close()


def test_a_wrong_password_of_redis(start_on: Any, postgres_url: str) -> None:
    server = RedisServer(password="right")
    server.start()
    try:
        url = f"redis://:{SECRET}@127.0.0.1:{server.port}/0"
        waits_for(start_on(url), "Redis refuses the user name or password of its URL")
        answer = command(url, postgres_url, "enqueue", "three")
        assert answer.returncode == 1
        assert SECRET not in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
    finally:
        server.remove()


async def test_a_wrong_password_of_postgresql(
    start_on: Any, redis_server: RedisServer, postgres_server: PostgresServer, locked_postgres: str
) -> None:
    url = f"postgresql://{locked_postgres}:{SECRET}@127.0.0.1:{postgres_server.port}/postgres"
    sentence = "PostgreSQL refuses the user name or password of its URL"
    await asyncio.to_thread(waits_for, start_on(redis_server.url, url), sentence)
    answer = await asyncio.to_thread(command, redis_server.url, url, "runs", "list")
    assert (answer.returncode, answer.stderr) == (1, f"synapse-worker: {sentence}\n")


def test_a_ca_that_did_not_sign_the_certificate_of_redis(start_on: Any, other_authority: str) -> None:
    server = TlsRedisServer()
    server.start()
    try:
        worker = start_on(server.url, REDIS_CA_FILE=other_authority)
        waits_for(worker, "Redis shows a certificate that we cannot trust")
    finally:
        server.remove()


def test_a_ca_that_did_not_sign_the_certificate_of_postgresql(
    start_on: Any, redis_server: RedisServer, other_authority: str
) -> None:
    server = TlsPostgresServer()
    server.start()
    try:
        url = f"{server.url()}?sslmode=verify-full"
        worker = start_on(redis_server.url, url, POSTGRES_CA_FILE=other_authority)
        waits_for(worker, "PostgreSQL shows a certificate that we cannot trust")
    finally:
        server.remove()
