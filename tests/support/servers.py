"""Real servers for tests: each starts on a free port with its data in a temporary folder and stops by its own handle.

A server that is not installed fails the test with the command that installs it; nothing is skipped.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

START_SECONDS = 30.0


class NotInstalled(Exception):
    """A program that a test needs is missing."""


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def program(name: str, package: str, *folders: str) -> str:
    """Return the path of a program.

    Raises:
        NotInstalled: it is not there; the message names the command that installs it.
    """
    path = shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"]))
    if path is None:
        raise NotInstalled(f"{name} is not installed; run: apt-get install -y --no-install-recommends {package}")
    return path


def wait_until(what: str, check: Callable[[], bool], *, seconds: float = START_SECONDS) -> None:
    """Poll `check` until it is true, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} within {seconds:g} s")
        time.sleep(0.02)  # the poll's period; the deadline above bounds it


def accepts(port: int) -> bool:
    """Return whether something listens on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


class Server:
    """A process with a data folder; `start`, `stop`, `kill` and `freeze` may be called again and again."""

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"synapse-test-{name}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command that starts the server in the foreground."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Return whether it answers."""
        return accepts(self.port)

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)
        log.close()

        def up() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise RuntimeError(f"{self.command()[0]} ended: {(self.folder / 'log').read_text()[-2000:]}")
            return self.ready()

        wait_until(f"{self.command()[0]} answers", up)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait(timeout=20)
        self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to the server and its children."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def remove(self) -> None:
        """Stop it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class RedisServer(Server):
    """A single Redis; with `password` it wants one."""

    def __init__(self, *, password: str = "") -> None:
        super().__init__("redis")
        self.password = password

    @property
    def url(self) -> str:
        """The URL as a user would write it."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [
            program("redis-server", "redis-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *("--dir", str(self.folder)),
            *(("--requirepass", self.password) if self.password else ()),
        ]


class PostgresServer(Server):
    """A PostgreSQL with one superuser `synapse`; every test takes a database of its own."""

    def __init__(self) -> None:
        super().__init__("postgres")
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        self._bin = str(versions[-1]) if versions else ""
        self._databases = 0
        self._user = pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else ""
        self.folder.chmod(0o755)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        if self._user:
            shutil.chown(data, self._user)
        subprocess.run(
            [
                *self._as_user(),
                program("initdb", "postgresql", self._bin),
                *("-D", str(data), "-U", "synapse", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"),
            ],
            check=True,
            capture_output=True,
        )

    def _as_user(self) -> list[str]:
        # PostgreSQL refuses to run as root.
        return ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"] if self._user else []

    def command(self) -> list[str]:
        return [
            *self._as_user(),
            program("postgres", "postgresql", self._bin),
            *("-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1", "-k", ""),
            *("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "max_connections=200"),
        ]

    def ready(self) -> bool:
        answer = subprocess.run(
            [program("pg_isready", "postgresql-client", self._bin), "-q", "-h", "127.0.0.1", "-p", str(self.port)],
            check=False,
        )
        return answer.returncode == 0

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, as a user would write it."""
        return f"postgresql://synapse@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database and return its URL."""
        self._databases += 1
        name = f"test_{os.getpid()}_{self._databases}"
        subprocess.run(
            [program("psql", "postgresql-client", self._bin), self.url(), "-qc", f"CREATE DATABASE {name}"],
            check=True,
            capture_output=True,
        )
        return self.url(name)
