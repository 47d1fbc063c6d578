"""What the page's tests share: workers in this process, servers in the forms that the page names, definitions, runs.

A worker here is `lifecycle.Worker` with settings from an environment, as `synapse-worker run` starts it, in the
test's own loop: a start takes milliseconds. Statements about processes use tests/support/workers.py.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from arq.connections import RedisSettings, create_pool
from redis.asyncio import Redis

from synapse_worker import settings
from synapse_worker.lifecycle import Worker
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import NewRun, enqueue_run, new_run_id
from synapse_worker.store import runs
from synapse_worker.store.database import Database
from synapse_worker.store.runs import RunView
from tests.support.servers import PostgresServer, RedisServer, Server, certify, free_port, program
from tests.support.workers import environment

Q = keys.queue("default")
SECONDS = 30.0
"""How long a test waits for what should come at once; the machine may be busy."""


async def eventually(what: str, check: Callable[[], Awaitable[bool]], *, seconds: float = SECONDS) -> None:
    """Poll `check` until it is true."""
    deadline = time.monotonic() + seconds
    while not await check():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the health port."""

    status: int
    body: str

    def json(self) -> dict[str, object]:
        """The body, decoded."""
        decoded: dict[str, object] = json.loads(self.body)
        return decoded


class Here:
    """A worker in this process."""

    def __init__(self, redis_url: str, postgres_url: str, **extra: str) -> None:
        variables = {"WORKER_HEALTH_PORT": str(free_port()), **extra}
        self.settings = settings.load(environment(redis_url, postgres_url, **variables))
        self.port = self.settings.health_port
        self._worker = Worker(self.settings)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> Here:
        """Start it; does not wait until it is ready."""
        self._task = asyncio.create_task(self._worker.run())
        return self

    async def get(self, path: str, *, authorization: str = "") -> Answer:
        """Ask its health port, without a thread; status 0 when nobody listens yet."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError as error:
            return Answer(0, str(error))
        header = f"Authorization: {authorization}\r\n" if authorization else ""
        writer.write(f"GET {path} HTTP/1.0\r\nHost: worker\r\n{header}\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, body = text.partition("\r\n\r\n")
        return Answer(int(head.split()[1]), body)

    async def health(self) -> dict[str, object]:
        """What /health says."""
        return (await self.get("/health")).json()

    async def ready(self) -> Here:
        """Wait until it serves its queues."""

        async def ok() -> bool:
            assert self._task is not None
            if self._task.done():
                await self._task
            answer = await self.get("/health")
            return answer.status == 200 and answer.json()["status"] == "ok"

        await eventually("the worker is ready", ok)
        return self

    def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        self._worker.stop()

    async def ended(self) -> None:
        """Wait until it has stopped."""
        assert self._task is not None
        async with asyncio.timeout(SECONDS):
            await self._task

    async def close(self) -> None:
        """End it at once if it still runs."""
        if self._task is not None and not self._task.done():
            self.stop()
            self.stop()
            await self.ended()


class TlsRedisServer(RedisServer):
    """A Redis that speaks TLS only, with a certificate of a CA of its own (`authority`)."""

    def __init__(self) -> None:
        super().__init__()
        certify(self.folder)
        self.authority = str(self.folder / "ca.crt")

    @property
    def url(self) -> str:
        """The URL without a database: it is optional."""
        return f"rediss://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        plain = super().command()
        plain[plain.index("--port") + 1] = "0"
        return [
            *plain,
            *("--tls-port", str(self.port), "--tls-auth-clients", "no", "--tls-ca-cert-file", self.authority),
            *("--tls-cert-file", str(self.folder / "server.crt"), "--tls-key-file", str(self.folder / "server.key")),
        ]


class TlsPostgresServer(PostgresServer):
    """A PostgreSQL that also speaks TLS."""

    def __init__(self) -> None:
        super().__init__()
        certify(self.folder)
        if self._user:
            shutil.chown(self.folder / "server.key", self._user)

    def command(self) -> list[str]:
        certificate, key = self.folder / "server.crt", self.folder / "server.key"
        return [*super().command(), "-c", "ssl=on", "-c", f"ssl_cert_file={certificate}", "-c", f"ssl_key_file={key}"]


class PgBouncerServer(Server):
    """A PgBouncer in transaction pooling mode in front of a PostgreSQL, with few connections to it."""

    POOL_SIZE = 3

    def __init__(self, postgres: PostgresServer) -> None:
        super().__init__("pgbouncer")
        self._as_user = postgres._as_user()  # PgBouncer refuses to run as root too
        self.folder.chmod(0o755)
        users = self.folder / "users.txt"
        users.write_text('"synapse" ""\n')
        (self.folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={postgres.port}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = trust\n"
            f"auth_file = {users}\n"
            "admin_users = synapse\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {self.POOL_SIZE}\n"
            "max_client_conn = 200\n"
        )

    def command(self) -> list[str]:
        return [*self._as_user, program("pgbouncer", "pgbouncer"), "-q", str(self.folder / "pgbouncer.ini")]

    def url(self, postgres_url: str) -> str:
        """The URL of the same database through this proxy."""
        return f"postgresql://synapse@127.0.0.1:{self.port}/{postgres_url.rsplit('/', 1)[1]}"

    def clients(self, postgres_url: str) -> int:
        """How many connections are open to a database here."""
        return sum(1 for row in self._show("CLIENTS") if row["database"] == postgres_url.rsplit("/", 1)[1])

    def mode(self) -> str:
        """The pooling mode that it says it has."""
        (mode,) = [row["value"] for row in self._show("CONFIG") if row["key"] == "pool_mode"]
        return mode

    def _show(self, what: str) -> list[dict[str, str]]:
        shown = subprocess.run(
            [
                program("psql", "postgresql-client"),
                f"postgresql://synapse@127.0.0.1:{self.port}/pgbouncer",
                *("-X", "--csv", "-c", f"SHOW {what}"),
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.splitlines()
        names = shown[0].split(",")
        return [dict(zip(names, line.split(","), strict=False)) for line in shown[1:]]


def printing(orchestration_id: str, content: str = "hello {state.user_input}") -> dict[str, object]:
    """A definition of one step that prints."""
    step = {"id": "say", "type": "print", "print_content": content, "output_key": "said"}
    return {"id": orchestration_id, "name": orchestration_id, "steps": [step]}


async def store_setting(database: Database, key: str, value: object) -> None:
    """Save a scale setting as the settings page does."""
    await database.execute(
        "INSERT INTO scale_settings (key, value, updated_at) VALUES ($1, $2, now())"
        " ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value",
        key,
        json.dumps(value),
    )


async def enqueue(database: Database, client: Redis, orchestration_id: str, *, tenant: str = "default") -> str:
    """Enqueue one run as our command line does; returns its id."""
    now_ms = int(time.time() * 1000)
    new = NewRun(orchestration_id, "hi", tenant)
    return await enqueue_run(database, client, new, run_id=new_run_id(now_ms), now_ms=now_ms)


async def enqueue_stock(port: int, run_id: str, orchestration_id: str, *, queue: str = Q, **arguments: object) -> None:
    """Enqueue a run as a main instance does: stock arq, pickle, keyword arguments, no row in Postgres."""
    pool = await create_pool(RedisSettings(port=port), default_queue_name=queue)
    try:
        job = await pool.enqueue_job(
            "run_orchestration_job",
            _job_id=run_id,
            **{"run_id": run_id, "orch_id": orchestration_id, **arguments},  # type: ignore[arg-type]
        )
        assert job is not None
    finally:
        await pool.aclose()


async def until(database: Database, run_id: str, *statuses: str) -> RunView:
    """Wait until a run has one of the statuses."""
    found: list[RunView] = []

    async def reached() -> bool:
        found[:] = await runs.get(database, [run_id])
        return bool(found) and found[0].status in statuses

    await eventually(f"{run_id} becomes {' or '.join(statuses)}", reached)
    return found[0]


async def completed(database: Database, run_ids: Sequence[str]) -> list[RunView]:
    """Wait until all of the runs are completed; returns them in the order given."""
    return [await until(database, run_id, "completed") for run_id in run_ids]
