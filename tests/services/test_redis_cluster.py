"""Redis that is clustered: runs complete, move, end and survive a failover as on one node; wrong URLs say why."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_redis, ping_redis, read_each
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.events import EventWriter
from synapse_worker.gate import StoreGate
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, cancel_run, enqueue_run, put, queue_figures
from synapse_worker.queueing.lease import HandBack, LeaseQueue, Release
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.routing import Topology
from synapse_worker.store import topology
from synapse_worker.store.database import Database
from tests.support.runs import (
    assert_each_step_once,
    claim_of,
    claimed_anew,
    enqueue,
    events_of,
    said_done,
    steps_reach,
    store,
    until,
    view,
)
from tests.support.servers import RedisCluster, RedisNode, RedisServer, free_port, wait_until
from tests.support.workers import PRINT_IF_PRINT, WorkerProcess, chain, command, slow_steps

Q = keys.queue("default")
ENVELOPE = encode(JobPayload("run_orchestration_job", {"run_id": "r"}))
NODE_SENTENCE = "Redis is a node of a Redis Cluster and sends us to others; write its URL as redis+cluster://host:port"


class Workers:
    """Worker processes on one Redis, ended with the test."""

    def __init__(self, postgres_url: str) -> None:
        self._postgres_url = postgres_url
        self._started: list[WorkerProcess] = []

    def start(self, redis_url: str, **extra: str) -> WorkerProcess:
        """Start one; does not wait until it is ready."""
        worker = WorkerProcess(redis_url, self._postgres_url, **{"K8S_MODE": "1", "WORKER_LEASE_SECONDS": "3", **extra})
        self._started.append(worker)
        return worker.start()

    def close(self) -> None:
        """End those that still run."""
        for worker in self._started:
            worker.close()


@pytest.fixture
def workers(postgres_url: str) -> Iterator[Workers]:
    """Starts workers."""
    started = Workers(postgres_url)
    yield started
    started.close()


@pytest.fixture
async def client(redis_cluster: RedisCluster) -> AsyncIterator[Redis]:
    """A client of an empty cluster."""
    opened = open_redis(SecretStr(redis_cluster.url))
    yield opened
    await opened.aclose()


@pytest.fixture(scope="module")
def secure_cluster() -> Iterator[RedisCluster]:
    """A cluster that speaks TLS only and wants a password."""
    cluster = RedisCluster(password="p@ss:word", tls=True)
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
def lone_node() -> Iterator[RedisCluster]:
    """One server with cluster support that owns all slots: how a cluster looks that hides behind one endpoint."""
    cluster = RedisCluster(masters=1)
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
def replicated_cluster() -> Iterator[RedisCluster]:
    """A cluster of three masters, each with a replica, for a test that takes one away."""
    cluster = RedisCluster(replicas=1)
    cluster.start()
    yield cluster
    cluster.remove()


def _plain_url(cluster: RedisCluster, node: int = 0) -> str:
    return f"redis://127.0.0.1:{cluster.masters[node].port}/0"


def _documented_rights() -> list[str]:
    page = Path("docs/operations.md").read_text(encoding="utf-8").splitlines()
    (command_line,) = [line for line in page if line.startswith("ACL SETUSER synapse on >password ")]
    return command_line.split()


async def _nothing_is_left(client: Redis) -> None:
    for name in (Q, keys.again(Q), keys.leases(Q)):
        assert await client.zcard(name) == 0, name
    assert await client.hlen(keys.claims(Q)) == 0


# ---- runs


async def test_two_workers_complete_what_our_producer_enqueues(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    for worker in [workers.start(redis_cluster.url) for _ in range(2)]:
        worker.wait_ready()
    run_ids = [await enqueue(database, client, "three") for _ in range(60)]
    for run_id in run_ids:
        await until(database, run_id, "completed")
    types = [event["type"] for event in await said_done(client, run_ids[0])]
    assert types[:3] == ["worker_picked_up", "orchestration_start", "step_start"]
    assert types[-3:] == ["orchestration_complete", "final", "done"]

    async def released() -> bool:
        return (await queue_figures(client, [Q]))[Q].active == 0

    await _until(released)
    await _nothing_is_left(client)
    # The jobs' own keys live in other slots than the queue; they are gone, and arq's results are there.
    assert set(await read_each(client, [keys.job(run_id) for run_id in run_ids])) == {None}
    assert None not in await read_each(client, [keys.result(run_id) for run_id in run_ids])


async def test_a_tenant_pool_serves_queues_on_every_node(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    await topology.write(database, None, Topology(isolation=True), enabled=True, owner_uid="u")
    tenants = [f"tenant-{number}" for number in range(12)]
    run_ids = []
    for tenant in tenants:
        run_ids.append(f"run_{tenant}_1")
        await enqueue_run(database, client, NewRun("three", "hi", tenant), run_id=run_ids[-1], now_ms=1)
    await client.delete(keys.ACTIVE_TENANTS)  # so that the worker has to find them
    workers.start(redis_cluster.url, WORKER_QUEUE_SHARD="tenants")
    for run_id in run_ids:
        await until(database, run_id, "completed")

    async def empty() -> bool:
        figures = await queue_figures(client, [keys.queue(tenant) for tenant in tenants])
        return all(figure.empty for figure in figures.values())

    await _until(empty)


async def test_tls_a_private_ca_and_a_password(
    database: Database, postgres_url: str, secure_cluster: RedisCluster, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    extra = {"REDIS_CA_FILE": secure_cluster.authority}
    workers.start(secure_cluster.url, **extra).wait_ready()
    done = command(secure_cluster.url, postgres_url, "enqueue", "three", "-n", "3", "--wait", "30", **extra)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completed") == 3


async def test_an_acl_user_with_the_documented_rights_is_enough(
    database: Database, secure_cluster: RedisCluster, workers: Workers
) -> None:
    for node in secure_cluster.nodes:
        assert node.ask(*_documented_rights()) == "OK"
    url = secure_cluster.url_for("synapse:password@")
    await store(database, chain("slow", slow_steps(3, 0.1)))
    workers.start(url, REDIS_CA_FILE=secure_cluster.authority).wait_ready()
    client = open_redis(SecretStr(url), ca_file=secure_cluster.authority)
    assert (await ping_redis(client)).maxmemory_policy == "noeviction"
    run_id = await enqueue(database, client, "slow")
    await until(database, run_id, "completed")
    await said_done(client, run_id)
    assert await cancel_run(database, client, run_id) == "completed"
    await client.aclose()


async def test_a_killed_workers_run_goes_on_after_its_last_checkpoint(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, chain("slow", slow_steps(12, 0.15)))
    first = workers.start(redis_cluster.url).wait_ready()
    run_id = await enqueue(database, client, "slow")
    await steps_reach(database, run_id, 3)
    first.kill()
    killed = time.monotonic()
    before = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    workers.start(redis_cluster.url).wait_ready()
    await steps_reach(database, run_id, len(before) + 1)
    assert time.monotonic() - killed < 3 + 5
    await until(database, run_id, "completed")
    rows = await database.fetch("SELECT step_id, visit, claim FROM run_steps WHERE run_id = $1", run_id)
    assert len(rows) == 12
    assert {tuple(row) for row in before} <= {tuple(row) for row in rows}
    assert_each_step_once(await said_done(client, run_id), 12)


async def test_sigterm_hands_a_run_over(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    # Long enough to outlast the start of the second worker, which takes seconds.
    await store(database, chain("slow", slow_steps(40, 0.15)))
    first = workers.start(redis_cluster.url).wait_ready()
    run_id = await enqueue(database, client, "slow")
    await steps_reach(database, run_id, 2)
    workers.start(redis_cluster.url).wait_ready()
    claim, _ = await claim_of(database, run_id)
    assert (await view(database, run_id)).status == "running", "it ended before there was somebody to hand it to"
    first.signal(signal.SIGTERM)
    await claimed_anew(database, run_id, claim, seconds=2)
    assert first.wait(20) == 0
    await until(database, run_id, "completed")
    assert len(await database.fetch("SELECT 1 FROM run_steps WHERE run_id = $1", run_id)) == 40


async def test_a_cancelled_run_ends(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, chain("slow", slow_steps(10, 0.4)))
    workers.start(redis_cluster.url).wait_ready()
    run_id = await enqueue(database, client, "slow")
    await steps_reach(database, run_id, 1)
    assert await cancel_run(database, client, run_id) == "running"
    await until(database, run_id, "cancelled", seconds=5)
    await said_done(client, run_id)
    assert not await client.exists(keys.cancel(run_id))


async def test_a_run_id_with_braces_is_refused_and_disturbs_no_other(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    hostile = encode(JobPayload("run_orchestration_job", {"run_id": "run_{a}_1", "orch_id": "three"}))
    assert await put(client, Q, "job-1", hostile)
    workers.start(redis_cluster.url).wait_ready()
    run_id = await enqueue(database, client, "three")
    await until(database, run_id, "completed")
    await said_done(client, run_id)
    letters = await database.fetch("SELECT error_message FROM dead_letter_queue")
    assert [row["error_message"] for row in letters] == ["the job's argument run_id must not hold braces"]


async def test_an_entry_that_is_no_text_stops_nobody(
    database: Database, redis_cluster: RedisCluster, client: Redis, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    await client.zadd(Q, {b"\xff\xfe": 1})
    workers.start(redis_cluster.url).wait_ready()
    run_id = await enqueue(database, client, "three")
    await until(database, run_id, "completed")

    async def gone() -> bool:
        return (await queue_figures(client, [Q]))[Q].queued == 0

    await _until(gone)


# ---- failures of nodes


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_a_master_that_goes_away_costs_no_run_and_doubles_none(
    how: signal.Signals, replicated_cluster: RedisCluster, database: Database, workers: Workers
) -> None:
    dying = replicated_cluster.master_of(Q)
    # One node is enough to begin with; the one that dies is known from the layout only.
    url = f"redis+cluster://127.0.0.1:{next(node.port for node in replicated_cluster.masters if node is not dying)}"
    client = open_redis(SecretStr(url))
    try:
        await store(database, chain("slow", slow_steps(5, 0.1)))
        started = [workers.start(url, WORKER_CONCURRENCY="4").wait_ready() for _ in range(2)]
        run_ids = [await enqueue(database, client, "slow") for _ in range(20)]
        await steps_reach(database, run_ids[0], 2)
        running = [run_id for run_id in run_ids if (await view(database, run_id)).status == "running"]
        assert running
        dying.signal(how)
        # Enqueued in the middle: durable in PostgreSQL at once, whatever Redis says.
        for _ in range(5):
            with suppress(StoreUnavailable):
                run_ids.append(await enqueue(database, client, "slow"))
        wait_until("a worker sees it", lambda: any("work is suspended" in worker.log for worker in started))
        await _finished(database, client, run_ids)
        await _assert_nothing_lost_or_doubled(database, client, run_ids, steps=5)
        assert not any("Traceback" in worker.log for worker in started), [worker.log for worker in started]
    finally:
        await client.aclose()


async def _finished(database: Database, client: Redis, run_ids: list[str]) -> None:
    """Sweep as a worker would, sooner, until every run has ended; what the dead master took with it is queued again."""
    keeper = Housekeeper(database, client, StoreGate(database, client))
    deadline = time.monotonic() + 90
    while True:
        rows = await database.fetch("SELECT run_id, status FROM orchestration_runs WHERE status <> 'completed'")
        if not rows:
            break
        assert time.monotonic() < deadline, [tuple(row) for row in rows]
        with suppress(StoreUnavailable):
            await keeper.sweep(overdue_seconds=2)
        await asyncio.sleep(0.2)
    known = await database.fetch("SELECT run_id FROM orchestration_runs")
    assert {row["run_id"] for row in known} >= set(run_ids)


async def _assert_nothing_lost_or_doubled(database: Database, client: Redis, run_ids: list[str], *, steps: int) -> None:
    done = await database.fetch("SELECT run_id, step_id, claim FROM run_steps ORDER BY run_id, step_id")
    per_run = Counter(row["run_id"] for row in done)
    assert set(per_run.values()) == {steps}, per_run
    for run_id in run_ids:
        claims = [row["claim"] for row in done if row["run_id"] == run_id]
        assert claims == sorted(claims), "an older claim wrote after a newer one"
        said: set[object] = set()
        for event in await events_of(client, run_id):
            if event["type"] == "step_complete":
                said.add(event["orch_step_id"])
            assert event["type"] != "step_start" or event["orch_step_id"] not in said, "a finished step began again"
    ledger = await database.fetch("SELECT outcome, failures FROM job_ledger")
    assert {tuple(row) for row in ledger} == {("completed", 0)}
    assert await database.fetch("SELECT 1 FROM dead_letter_queue") == []

    async def empty() -> bool:
        figures = (await queue_figures(client, [Q]))[Q]
        return figures.queued == figures.active == 0

    await _until(empty)
    await _nothing_is_left(client)


async def test_slots_that_move_are_followed() -> None:
    cluster = RedisCluster(masters=2)
    client = open_redis(SecretStr(cluster.url))
    try:
        cluster.start()
        source = cluster.master_of(Q)
        (target,) = [node for node in cluster.masters if node is not source]
        slot = source.ask("CLUSTER", "KEYSLOT", Q)
        worker = LeaseQueue(client, Q, worker_id="w", lease_seconds=30)
        assert await worker.claim(1, 0.0) == []
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.node_id)
        # The slot is empty where it was, so ASK leads to the other node; a script over several keys has to wait.
        assert await client.zadd(Q, {"during": 1}) == 1
        assert (source.ask("CLUSTER", "COUNTKEYSINSLOT", slot), await client.zcard(Q)) == ("0", 1)
        pipeline = client.pipeline(transaction=False)
        pipeline.zcard(Q)
        pipeline.zcard(keys.queue("0"))
        assert await pipeline.execute() == [1, 0]
        with pytest.raises(StoreUnavailable, match="is moving keys of ours to another node"):
            await put(client, Q, "waits", ENVELOPE)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.node_id)
        assert await put(client, Q, "after", ENVELOPE)  # MOVED
        figures = await queue_figures(client, [Q, keys.queue("0"), keys.queue("1")])
        assert figures[Q].queued == 2
        assert [lease.job_id for lease in await worker.claim(5, 0.0)] == ["during", "after"]
    finally:
        await client.aclose()
        cluster.remove()


async def test_a_cluster_that_was_away_is_found_again() -> None:
    cluster = RedisCluster()
    client = open_redis(SecretStr(cluster.url))
    try:
        cluster.start()
        await ping_redis(client)
        ports = [node.port for node in cluster.nodes]
        for node in cluster.nodes:
            node.stop(signal.SIGKILL)
        # Many calls at once, each of which finds a dead node and looks for the layout.
        calls = [put(client, keys.queue(str(number)), f"j{number}", ENVELOPE) for number in range(40)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        with pytest.raises(StoreUnavailable, match=r"none of the cluster's nodes answers \(3 asked\)"):
            await ping_redis(client)
        for node in cluster.nodes:
            node.start()
        assert [node.port for node in cluster.nodes] == ports

        async def answers() -> bool:
            try:
                return await put(client, Q, "back", ENVELOPE)
            except StoreUnavailable:
                return False

        await _until(answers)
        assert (await ping_redis(client)).clustered
    finally:
        await client.aclose()
        cluster.remove()


async def test_a_first_node_that_is_dead_is_passed_over(redis_cluster: RedisCluster) -> None:
    scheme, _, hosts = redis_cluster.url.partition("://")
    client = open_redis(SecretStr(f"{scheme}://127.0.0.1:{free_port()},{hosts}"))
    assert (await ping_redis(client)).clustered
    await client.aclose()


async def test_scripts_that_a_node_has_forgotten_are_loaded_again(redis_cluster: RedisCluster, client: Redis) -> None:
    worker = LeaseQueue(client, Q, worker_id="w", lease_seconds=30)
    assert await put(client, Q, "a", ENVELOPE)
    for node in redis_cluster.nodes:
        node.ask("SCRIPT", "FLUSH")
    (lease,) = await worker.claim(1, 0.0)
    for node in redis_cluster.nodes:
        node.ask("SCRIPT", "FLUSH")
    assert await worker.extend([lease]) == set()
    assert await worker.hand_back([HandBack(lease, None)]) == set()
    assert await client.zscore(keys.again(Q), "a") == lease.score


async def test_events_are_written_once_when_one_node_has_forgotten_the_script(
    redis_cluster: RedisCluster, client: Redis
) -> None:
    writer = EventWriter(client, ttl_seconds=60)
    writing = asyncio.create_task(writer.write())
    run_ids = [f"run_{number}" for number in range(20)]
    for number in range(2):
        for run_id in run_ids:
            writer.hand(run_id, 1, [{"type": "thinking", "number": number}])
        for run_id in run_ids:
            await writer.written(run_id)
        redis_cluster.masters[0].ask("SCRIPT", "FLUSH")
    writing.cancel()
    for run_id in run_ids:
        assert [event["number"] for event in await events_of(client, run_id)] == [0, 1]


async def test_a_single_redis_that_becomes_a_replica_suspends_and_work_goes_on_when_it_is_a_master_again(
    database: Database, redis_client: Redis, redis_server: RedisServer, workers: Workers
) -> None:
    await store(database, PRINT_IF_PRINT)
    worker = workers.start(redis_server.url).wait_ready()
    await redis_client.replicaof("127.0.0.1", str(free_port()))
    try:
        wait_until("readiness is gone", lambda: worker.get("/readyz")[0] == 503)
        assert "Redis is a read-only replica now; waiting for the failover" in worker.get("/readyz")[1]
        assert worker.get("/livez")[0] == 200
    finally:
        await redis_client.replicaof("NO", "ONE")
    run_id = await enqueue(database, redis_client, "three")
    await until(database, run_id, "completed")


# ---- a cluster behind one endpoint


async def test_behind_one_endpoint_stock_peers_are_left_out_with_one_line_and_work_goes_on(
    database: Database, lone_node: RedisCluster, workers: Workers
) -> None:
    url = _plain_url(lone_node)
    await store(database, chain("slow", slow_steps(3, 0.1)), PRINT_IF_PRINT)
    worker = workers.start(url).wait_ready()
    client = open_redis(SecretStr(url))
    run_ids = [await enqueue(database, client, "three") for _ in range(20)]
    run_ids.append(await enqueue(database, client, "slow"))
    for run_id in run_ids:
        await until(database, run_id, "completed")
        await said_done(client, run_id)
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    (line,) = [line for line in worker.log.splitlines() if "NoArqPeers" in line]
    assert f"no stock arq worker may serve {Q} beside ours" in line
    await _nothing_is_left(client)
    assert set(await read_each(client, [keys.job(run_id) for run_id in run_ids])) == {None}
    assert None not in await read_each(client, [keys.result(run_id) for run_id in run_ids])
    await client.aclose()


async def test_a_lost_lease_is_lost_there_too(lone_node: RedisCluster) -> None:
    client = open_redis(SecretStr(_plain_url(lone_node)))
    for number in range(5):
        assert await put(client, Q, f"j{number}", ENVELOPE)
    worker = LeaseQueue(client, Q, worker_id="w", lease_seconds=30)
    leases = await worker.claim(5, 0.0)
    assert len(leases) == 5
    await client.zadd(keys.leases(Q), {leases[0].job_id: 1})  # what time would do
    other = LeaseQueue(client, Q, worker_id="other", lease_seconds=30)
    (recovered,) = await other.claim(5, 0.0)
    assert (recovered.job_id, recovered.score) == (leases[0].job_id, leases[0].score)
    assert await worker.extend(leases) == {leases[0].job_id}
    assert await worker.release([Release(lease, b"result") for lease in leases]) == {leases[0].job_id}
    assert await client.exists(keys.job(recovered.job_id)) == 1
    assert await client.exists(keys.result(recovered.job_id)) == 0
    assert await other.release([Release(recovered, b"result")]) == set()
    await client.aclose()


# ---- wrong URLs


async def _problem(url: str, *, ca_file: str = "") -> str:
    client = open_redis(SecretStr(url), ca_file=ca_file)
    try:
        with pytest.raises((StoreUnavailable, StoreRefused)) as caught:
            await ping_redis(client)
        return str(caught.value)
    finally:
        await client.aclose()


async def test_a_wrong_password_is_one_sentence_without_it(secure_cluster: RedisCluster) -> None:
    for credentials in (":hush@", "nobody:hush@", ""):
        said = await _problem(secure_cluster.url_for(credentials), ca_file=secure_cluster.authority)
        assert said == "Redis refuses the user name or password of its URL"


async def test_a_certificate_of_another_ca_is_refused(secure_cluster: RedisCluster) -> None:
    said = await _problem(secure_cluster.url)
    assert said.startswith(
        "Redis shows a certificate that we cannot trust: none of the cluster's nodes answers (3 asked): "
    )
    assert "certificate verify failed" in said


async def test_the_host_name_of_a_certificate_is_checked(secure_cluster: RedisCluster) -> None:
    said = await _problem(secure_cluster.url.replace("127.0.0.1", "localhost"), ca_file=secure_cluster.authority)
    assert "Hostname mismatch" in said


async def test_a_clusters_url_at_a_single_redis_says_so(redis_server: RedisServer) -> None:
    assert await _problem(f"redis+cluster://127.0.0.1:{redis_server.port}") == (
        f"REDIS_URL has the scheme of a Redis Cluster, but 127.0.0.1:{redis_server.port} is a single Redis;"
        " use redis:// (rediss:// with TLS)"
    )


async def test_a_single_nodes_url_at_a_cluster_says_so(
    database: Database, postgres_url: str, redis_cluster: RedisCluster, workers: Workers
) -> None:
    for node in range(3):
        assert (await _problem(_plain_url(redis_cluster, node))).startswith(NODE_SENTENCE)
    worker = workers.start(_plain_url(redis_cluster))
    wait_until("the worker says so", lambda: f"start-up waits: {NODE_SENTENCE}" in worker.log)
    # Of 20 runs at least one has its keys elsewhere; the command says it in a sentence and nothing else.
    done = command(_plain_url(redis_cluster), postgres_url, "enqueue", "three", "-n", "20")
    assert done.returncode == 1
    assert done.stderr.startswith(f"synapse-worker: {NODE_SENTENCE}")
    assert len(done.stderr.splitlines()) == 1


async def test_nodes_that_nobody_reaches_are_counted() -> None:
    said = await _problem(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    assert said.startswith("Redis cannot be reached: none of the cluster's nodes answers (2 asked): ")
    assert "Connect call failed" in said


async def test_a_node_without_slots_is_no_cluster_yet() -> None:
    node = RedisNode()
    node.start()
    said = await _problem(f"redis+cluster://127.0.0.1:{node.port}")
    node.remove()
    assert said == "Redis cannot be reached: none of the cluster's nodes answers (1 asked): it serves no hash slots"


async def _until(check: Callable[[], Awaitable[bool]], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
