"""One scenario's stage: its stores, its workers, its load, and in the end the verdict over what they left.

The scenarios say what breaks and when; what counts as lost or doubled is `evidence`'s. The stage's own clients
open a connection for each call where they may outlive a store, so an outage of the scenario is none of theirs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis.exceptions
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_worker.connections import open_database, open_redis, redis_errors_as_ours
from synapse_worker.errors import StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id
from synapse_worker.store import definitions, migrate
from synapse_worker.store.database import Database
from tests.chaos import evidence
from tests.chaos.evidence import ENDED, Event, Execution, Expected, Row, Write
from tests.chaos.servers import DurableRedis
from tests.chaos.worker import JOURNAL, SWEEP
from tests.support.servers import PostgresServer
from tests.support.workers import WorkerProcess

Q = keys.queue("default")
LEASE_SECONDS = 3
"""The shortest that the product takes."""
_DATABASE_PATIENCE = 40.0
_SETTLE_SECONDS = 10.0
_COMPONENTS = 4
"""Steps of one round of the definition."""

_TRIGGERS = """
CREATE TABLE chaos_writes (id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), run_id text,
  claim bigint, run_claim bigint, step_id text, visit int, status text, was text);
CREATE FUNCTION chaos_note_step() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_writes (run_id, claim, run_claim, step_id, visit) VALUES (NEW.run_id, NEW.claim,
    (SELECT claim FROM orchestration_runs WHERE run_id = NEW.run_id), NEW.step_id, NEW.visit);
  RETURN NULL; END $$;
CREATE FUNCTION chaos_note_status() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_writes (run_id, claim, run_claim, status, was) VALUES (NEW.run_id, NEW.claim, NEW.claim,
    NEW.status, CASE WHEN TG_OP = 'UPDATE' THEN OLD.status END);
  RETURN NULL; END $$;
CREATE TRIGGER chaos_step AFTER INSERT OR UPDATE ON run_steps FOR EACH ROW EXECUTE FUNCTION chaos_note_step();
CREATE TRIGGER chaos_status AFTER INSERT OR UPDATE OF status, claim ON orchestration_runs
  FOR EACH ROW EXECUTE FUNCTION chaos_note_status();
"""


def definition(rounds: int) -> dict[str, object]:
    """Return a cyclic definition: `rounds` times work, count (user code), tell, again; then bye."""
    return {
        "id": f"rounds-{rounds}",
        "name": f"{rounds} rounds",
        "entry_step_id": "work",
        "max_total_turns": 100_000,
        "state_schema": {"n": {"type": "number", "default": 0}},
        "steps": [
            _step("work", "print", next_step_id="count", print_content="round {state.n}", output_key="w"),
            _step("count", "transform", next_step_id="tell", transform_code="result = state['n'] + 1", output_key="n"),
            _step("tell", "print", next_step_id="again", print_content="did {state.n}", output_key="t"),
            _step(
                "again", "if_else", if_condition=f"state.n < {rounds}", if_true_step_id="work", if_false_step_id="bye"
            ),
            _step("bye", "print", print_content="bye", output_key="b"),
        ],
    }


def _step(name: str, kind: str, **fields: object) -> dict[str, object]:
    return {"id": name, "name": name, "type": kind, "max_iterations": 100_000, **fields}


class ChaosWorker(WorkerProcess):
    """A worker process with the journal of `tests.chaos.worker`."""

    COMMAND = (sys.executable, "-m", "tests.chaos.worker")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a scenario came to. `problems` are sentences on what else is not as promised, and the lost and doubled."""

    started: int
    finished: int
    lost: int
    doubled: int
    slowest: float
    problems: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether all was as promised."""
        return not self.problems


@dataclass
class Stage:
    """An async context manager; everything that it started ends with it.

    Attributes:
        postgres: a server that the scenario may stop, as long as it starts it again.
        say: takes one line of progress.
        step_seconds: how long each step of a run lasts.
    """

    postgres: PostgresServer
    say: Callable[[str], None]
    step_seconds: float = 0.2
    expected: dict[str, Expected] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """Scenarios add sentences on what else is not as promised."""
    workers: list[ChaosWorker] = field(default_factory=list)
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)
    """What scenarios open for themselves; closed once the workers have ended."""

    async def __aenter__(self) -> Stage:
        self.folder = Path(tempfile.mkdtemp(prefix="synapse-test-chaos-"))
        self.journal = self.folder / "journal"
        self._faults: list[float] = []
        self._stored: set[int] = set()
        self._doubtful: dict[str, int] = {}
        self.redis = await self.start_redis()
        self.redis_url = self.redis.url
        self.client: Redis = open_redis(SecretStr(self.redis_url))
        self.postgres_url = await asyncio.to_thread(self.postgres.new_database)
        # "pgbouncer" is a connection for each call: none is left over from before an outage.
        self.database: Database = open_database(SecretStr(self.postgres_url), pgbouncer=True)
        await migrate.migrate(self.database)
        async with self.database.transaction() as transaction:
            await transaction.execute(_TRIGGERS)
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await asyncio.to_thread(worker.close)
        await self.resources.aclose()
        await self.client.aclose()
        await self.database.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def start_redis(self, *, replica_of: int | None = None) -> DurableRedis:
        """Start a Redis that lasts as long as the stage."""
        server = DurableRedis(replica_of=replica_of)
        self.resources.callback(server.remove)
        await asyncio.to_thread(server.start)
        return server

    async def use_redis(self, url: str) -> None:
        """Look at another Redis from now on."""
        await self.client.aclose()
        self.client = open_redis(SecretStr(url))

    async def start_workers(self, count: int, *, sweep: float | None = None, **extra: str) -> list[ChaosWorker]:
        """Start so many workers and wait until all are ready; see `start_worker`."""
        started = [self.start_worker(sweep=sweep, **extra) for _ in range(count)]
        for worker in started:
            await asyncio.to_thread(worker.wait_ready)
        return started

    def start_worker(self, *, sweep: float | None = None, **extra: str) -> ChaosWorker:
        """Start a worker; does not wait until it is ready.

        Args:
            sweep: the sweep's patience in seconds; None is the product's own.
            extra: variables of its environment, REDIS_URL and SCALE_POSTGRES_URL for other ways to the stores.
        """
        variables = {
            "K8S_MODE": "1",
            "WORKER_LEASE_SECONDS": str(LEASE_SECONDS),
            "WORKER_CONCURRENCY": "40",
            "LOG_LEVEL": "warning",
            JOURNAL: str(self.journal),
            **({SWEEP: str(sweep)} if sweep else {}),
            **extra,
        }
        worker = ChaosWorker(self.redis_url, self.postgres_url, **variables)
        self.workers.append(worker)
        worker.start()
        return worker

    async def enqueue(self, count: int, *, rounds: int = 3, message: str = "") -> list[str]:
        """Enqueue runs of `rounds` rounds of four steps, as our command line does; `message` is for other inputs.

        A run whose enqueueing fails because a store is away counts as started when it has a row: it is durable then.
        """
        await self.store(rounds)
        now_ms = int(time.time() * 1000)
        new = NewRun(f"rounds-{rounds}", message or str(self.step_seconds), "default")
        run_ids = [new_run_id(now_ms) for _ in range(count)]
        for run_id in run_ids:
            try:
                await enqueue_run(self.database, self.client, new, run_id=run_id, now_ms=now_ms)
            except StoreUnavailable:
                self._doubtful[run_id] = rounds
            else:
                self.expect(run_id, rounds)
        return run_ids

    @asynccontextmanager
    async def load(self, *, every: float, rounds: int = 3) -> AsyncIterator[None]:
        """Enqueue a run every so many seconds while the block runs, also while the stores are away."""
        await self.store(rounds)

        async def feed() -> None:
            while True:
                await self.enqueue(1, rounds=rounds)
                await asyncio.sleep(every)

        feeding = asyncio.create_task(feed())
        try:
            yield
        finally:
            feeding.cancel()
            (ended,) = await asyncio.gather(feeding, return_exceptions=True)
            if isinstance(ended, Exception):
                raise ended

    def expect(self, run_id: str, rounds: int) -> None:
        """Count a run as started: it has to complete with all its steps."""
        self.expected[run_id] = Expected("completed", _COMPONENTS * rounds + 1, rounds)

    async def store(self, rounds: int) -> None:
        """Put the definition with so many rounds into Postgres."""
        if rounds not in self._stored:
            document = definition(rounds)
            name = str(document["id"])
            await definitions.upsert(
                self.database,
                [definitions.Document("orchestrations", name, name, "", document)],
                tenant_id="default",
            )
            self._stored.add(rounds)

    def fault(self) -> None:
        """Note that something breaks now; for an outage, that it ends now. Recovery is counted from here."""
        self._faults.append(time.monotonic())

    async def under_way(self, run_ids: Sequence[str], *, seconds: float = 30) -> None:
        """Wait until every one of these runs has begun a step."""
        deadline = time.monotonic() + seconds
        while missing := set(run_ids) - {execution.run_id for execution in self.executions()}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} of {len(run_ids)} runs do not start within {seconds:g} s")
            await asyncio.sleep(0.05)

    async def steps_begun(self, count: int, *, seconds: float = 30) -> None:
        """Wait until so many more steps have begun."""
        wanted = len(self.executions()) + count
        deadline = time.monotonic() + seconds
        while len(self.executions()) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {count} steps begin within {seconds:g} s")
            await asyncio.sleep(0.05)

    async def owned_by(self, worker: ChaosWorker) -> dict[str, int]:
        """Return run id -> claim of the runs that a worker runs now."""
        worker_id = json.loads((await asyncio.to_thread(worker.get, "/health"))[1])["worker_id"]
        rows = await self.database.fetch(
            "SELECT run_id, claim FROM orchestration_runs WHERE worker_id = $1 AND status = 'running'", worker_id
        )
        return {row["run_id"]: row["claim"] for row in rows}

    async def ended(self, *, seconds: float) -> None:
        """Wait until every run has ended, for at most `seconds`; what has not by then is lost."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            await self._settle_doubts()
            rows = await self._rows()
            if len(rows) == len(self.expected) and all(row.status in ENDED for row in rows.values()):
                return
            await asyncio.sleep(0.2)

    async def _settle_doubts(self) -> None:
        rows = await self.database.fetch(
            "SELECT run_id FROM orchestration_runs WHERE run_id = ANY($1::text[])", list(self._doubtful)
        )
        for row in rows:
            self.expect(row["run_id"], self._doubtful.pop(row["run_id"]))

    async def verdict(self) -> Verdict:
        """Judge what the scenario left; call it after `ended`."""
        rows = await self._rows()
        executions, writes = self.executions(), await self.writes()
        lost = evidence.lost(self.expected, rows)
        doubled = evidence.doubled(executions, writes, await self._streams())
        problems = [*self.problems, *(f"lost: {sentence}" for sentence in lost)]
        problems += [f"doubled: {run_id}: {sentence}" for run_id, sentence in doubled.items()]
        if left := await self._left_in_redis():
            problems.append(f"Redis still holds {left} although every run has ended")
        return Verdict(
            started=len(self.expected),
            finished=sum(1 for row in rows.values() if row.status in ENDED),
            lost=len(lost),
            doubled=len(doubled),
            slowest=evidence.slowest_recovery(self._faults, executions, writes),
            problems=tuple(problems),
        )

    def executions(self) -> list[Execution]:
        """Return the steps that were started so far."""
        if not self.journal.exists():
            return []
        notes = [json.loads(line) for line in self.journal.read_text(encoding="ascii").splitlines()]
        return [
            Execution(**{name: value for name, value in note.items() if name != "what"})
            for note in notes
            if note["what"] == "start"
        ]

    async def writes(self) -> list[Write]:
        """Return the committed writes so far, in order."""
        # The triggers' clock is that of PostgreSQL, on this machine: the same as ours.
        offset = time.time() - time.monotonic()
        rows = await self.database.fetch(
            "SELECT run_id, extract(epoch FROM at)::float8 AS at, coalesce(claim, 0) AS claim,"
            " coalesce(run_claim, 0) AS run_claim, coalesce(step_id, '') AS step_id, coalesce(visit, 0) AS visit,"
            " coalesce(status, '') AS status, coalesce(was, '') AS was FROM chaos_writes ORDER BY id"
        )
        return [Write(**{**dict(row), "at": row["at"] - offset}) for row in rows]

    async def _rows(self) -> dict[str, Row]:
        rows = await self.database.fetch(
            "SELECT run_id, status, coalesce(error, '') AS error, shared_state::json ->> 'n' AS count,"
            " (SELECT count(*) FROM run_steps s WHERE s.run_id = r.run_id) AS steps"
            "  FROM orchestration_runs r WHERE run_id = ANY($1::text[])",
            list(self.expected),
        )
        return {row["run_id"]: Row(row["status"], row["error"], row["steps"], int(row["count"] or 0)) for row in rows}

    async def _streams(self) -> dict[str, list[Event]]:
        streams: dict[str, list[Event]] = {}
        for run_id in self.expected:
            events: list[Event] = []
            for _, fields in await self.client.xrange(keys.run_events(run_id)):
                event = json.loads(fields[b"data"])
                event_id = str(event["event_id"])
                parts = event_id.split(":")
                events.append(
                    Event(
                        event_id,
                        int(parts[2]) if event["type"] == "worker_picked_up" else 0,
                        (parts[1], int(parts[2])) if event["type"] == "step_complete" else None,
                    )
                )
            streams[run_id] = events
        return streams

    async def _left_in_redis(self) -> str:
        """Return what is left of jobs, in words, once there was time to put it away."""
        names = (Q, keys.again(Q), keys.leases(Q))
        deadline = time.monotonic() + LEASE_SECONDS + _SETTLE_SECONDS
        while True:
            counts = {name: await self.client.zcard(name) for name in names}
            if not any(counts.values()) or time.monotonic() > deadline:
                return ", ".join(f"{count} in {name}" for name, count in counts.items() if count)
            await asyncio.sleep(0.1)

    async def taken_over(self, claims: Mapping[str, int], *, seconds: float) -> None:
        """Wait until each of these runs belongs to another claim than the one given."""
        deadline = time.monotonic() + seconds
        while True:
            rows = await self.database.fetch(
                "SELECT run_id, claim FROM orchestration_runs WHERE run_id = ANY($1::text[])", list(claims)
            )
            waiting = [row["run_id"] for row in rows if row["claim"] == claims[row["run_id"]]]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody takes {len(waiting)} of {len(claims)} runs over within {seconds:g} s")
            await asyncio.sleep(0.05)

    def interrupted(self) -> int:
        """Return how many steps began and never ended: what the faults hit in the middle."""
        whats = [json.loads(line)["what"] for line in self.journal.read_text(encoding="ascii").splitlines()]
        return whats.count("start") - whats.count("end")

    def in_a_step(self) -> set[int]:
        """Return the ids of the processes that have begun a step and not ended it."""
        notes = [json.loads(line) for line in self.journal.read_text(encoding="ascii").splitlines()]
        begun = Counter(note["pid"] for note in notes if note["what"] == "start")
        begun.subtract(note["pid"] for note in notes if note["what"] == "end")
        return {pid for pid, steps in begun.items() if steps > 0}

    async def ledger(self) -> Mapping[str, int]:
        """Return the sums of failures and crashes over all jobs."""
        row = await self.database.fetchrow("SELECT sum(failures)::int AS f, sum(crashes)::int AS c FROM job_ledger")
        assert row is not None
        return {"failures": row["f"] or 0, "crashes": row["c"] or 0}

    async def answers(self) -> None:
        """Wait until the Redis of this stage answers."""
        deadline = time.monotonic() + _DATABASE_PATIENCE
        while True:
            try:
                with redis_errors_as_ours():
                    await self.client.ping()
                    return
            except (StoreUnavailable, redis.exceptions.RedisError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)
