"""Real servers for tests: each starts on a free port with its data in a temporary folder and stops by its own handle.

A server that is not installed fails the test with the command that installs it; nothing is skipped.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

START_SECONDS = 30.0

_PORTS_AT_ONCE = 500
_ports: list[int] = []


class NotInstalled(Exception):
    """A program that a test needs is missing."""


def free_port() -> int:
    """Return a port that nobody listens on now, and none that was returned before, here or in another test process.

    It lies below those that outgoing connections are given: a client that asks for a server that was stopped could
    get the server's own port, and keep it from starting again.
    """
    while True:
        if not _ports:
            _ports.extend(_block_of_ports())
        port = _ports.pop()
        with suppress(OSError), socket.create_server(("", port)):
            return port


def _block_of_ports() -> list[int]:
    """Return ports that are this process's as long as it lives, so that none is taken before its server has it."""
    firsts = range(12_000, 30_000, _PORTS_AT_ONCE)
    for first in random.sample(firsts, len(firsts)):
        name = Path(tempfile.gettempdir()) / f"synapse-test-ports-{first}"
        try:
            lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
        except BlockingIOError:
            os.close(lock)
        else:
            return random.sample(range(first, first + _PORTS_AT_ONCE), _PORTS_AT_ONCE)
    raise RuntimeError("All ports from 12000 to 29999 belong to test processes that run now.")


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


def accepts(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether something listens on a port of this machine."""
    try:
        with socket.create_connection((host, port), timeout=1):
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

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)  # asked politely, it would wait until its last client has left
        super().remove()

    def url(self, database: str = "postgres") -> str:
        """The URL of a database, as a user would write it."""
        return f"postgresql://synapse@127.0.0.1:{self.port}/{database}"

    def new_database(self, *, like: str = "") -> str:
        """Create a database and return its URL; empty, or as the one with the URL `like`, which nobody may use."""
        self._databases += 1
        name = f"test_{os.getpid()}_{self._databases}"
        template = f" TEMPLATE {like.rsplit('/', 1)[1]}" if like else ""
        subprocess.run(
            [program("psql", "postgresql-client", self._bin), self.url(), "-qc", f"CREATE DATABASE {name}{template}"],
            check=True,
            capture_output=True,
        )
        return self.url(name)


class RedisNode(RedisServer):
    """A Redis with cluster support; `RedisCluster` makes a cluster of several."""

    NODE_TIMEOUT_MS = 1_500

    def __init__(self, *, password: str = "", authority: Path | None = None) -> None:
        super().__init__(password=password)
        self.bus = free_port()
        self._authority = authority

    def command(self) -> list[str]:
        plain = super().command()
        if self._authority is not None:
            plain[plain.index("--port") + 1] = "0"
        return [
            *plain,
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus)),
            *("--cluster-node-timeout", str(self.NODE_TIMEOUT_MS)),
            *(("--masterauth", self.password) if self.password else ()),
            *(self._tls() if self._authority is not None else ()),
        ]

    def _tls(self) -> list[str]:
        assert self._authority is not None
        certificate, key = self._authority / "server.crt", self._authority / "server.key"
        return [
            *("--tls-port", str(self.port), "--tls-cluster", "yes", "--tls-replication", "yes"),
            *("--tls-auth-clients", "no", "--tls-ca-cert-file", str(self._authority / "ca.crt")),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        ]

    def ask(self, *words: str) -> str:
        """Run a command and return what redis-cli prints."""
        options = ["-p", str(self.port)]
        if self.password:
            options += ["-a", self.password, "--no-auth-warning"]
        if self._authority is not None:
            options += ["--tls", "--cacert", str(self._authority / "ca.crt")]
        command = [program("redis-cli", "redis-tools"), "-h", "127.0.0.1", *options, *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    @property
    def node_id(self) -> str:
        """Its name in the cluster."""
        return self.ask("CLUSTER", "MYID")


class RedisCluster:
    """A Redis Cluster on loopback: masters with the slots spread evenly, and as many replicas of each as wanted.

    Args:
        masters: how many; 1 is a server with cluster support that owns all slots.
        replicas: how many for each master.
        password: what every node wants.
        tls: every node speaks TLS only, with a certificate of one CA (`authority`).
    """

    SLOTS = 16_384

    def __init__(self, *, masters: int = 3, replicas: int = 0, password: str = "", tls: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="synapse-test-cluster-"))
        if tls:
            certify(self.folder)
        self.authority = str(self.folder / "ca.crt") if tls else ""
        self._scheme = "rediss+cluster" if tls else "redis+cluster"
        self._password = password
        self._replicas = replicas
        place = self.folder if tls else None
        self.masters = [RedisNode(password=password, authority=place) for _ in range(masters)]
        self.nodes = [
            *self.masters,
            *(RedisNode(password=password, authority=place) for _ in range(masters * replicas)),
        ]

    @property
    def url(self) -> str:
        """The URL of all masters, as a user would write it."""
        return self.url_for(f":{quote(self._password, safe='')}@" if self._password else "")

    def url_for(self, credentials: str) -> str:
        """The URL with other credentials: "" or `user:password@`."""
        return f"{self._scheme}://{credentials}" + ",".join(f"127.0.0.1:{node.port}" for node in self.masters)

    def start(self) -> None:
        """Start all nodes and wait until each knows the whole cluster."""
        try:
            self._start()
        except BaseException:
            self.remove()
            raise

    def _start(self) -> None:
        for number, node in enumerate(self.nodes):
            node.start()
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), str(node.bus))
        share = self.SLOTS / len(self.masters)
        for number, node in enumerate(self.masters):
            first, last = round(number * share), round((number + 1) * share) - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(last))
        wait_until("the nodes know each other", lambda: all(self._known_to(node) for node in self.nodes))
        for number, node in enumerate(self.nodes[len(self.masters) :]):
            node.ask("CLUSTER", "REPLICATE", self.masters[number // self._replicas].node_id)
        wait_until("the cluster is whole", lambda: all(self._whole_for(node) for node in self.nodes))

    def master_of(self, key: str) -> RedisNode:
        """Return the node, among the masters of the start, whose slots a key belongs to."""
        slot = int(self.nodes[-1].ask("CLUSTER", "KEYSLOT", key))
        return self.masters[min(int(slot / (self.SLOTS / len(self.masters))), len(self.masters) - 1)]

    def empty(self) -> None:
        """Remove all keys."""
        for node in self.masters:
            node.ask("FLUSHALL")

    def remove(self) -> None:
        """Stop all nodes and remove their data."""
        for node in self.nodes:
            node.stop(signal.SIGKILL)  # a frozen one takes no other signal
            node.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _known_to(self, node: RedisNode) -> bool:
        lines = node.ask("CLUSTER", "NODES").splitlines()
        return len(lines) == len(self.nodes) and not any("handshake" in line for line in lines)

    def _whole_for(self, node: RedisNode) -> bool:
        lines = node.ask("CLUSTER", "NODES").splitlines()
        replicas = [line for line in lines if "slave" in line.split()[2]]
        link = node.ask("INFO", "replication")
        return (
            "cluster_state:ok" in node.ask("CLUSTER", "INFO")
            and len(replicas) == len(self.nodes) - len(self.masters)
            and ("role:master" in link or "master_link_status:up" in link)
        )


def certify(folder: Path) -> None:
    """Write ca.crt, server.crt and server.key (for 127.0.0.1 and receiver.test) into a folder."""
    config = folder / "openssl.cnf"
    config.write_text(
        "[req]\ndistinguished_name = subject\n[subject]\n"
        "[ca]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,keyCertSign\nsubjectKeyIdentifier = hash\n"
        "[server]\nsubjectAltName = IP:127.0.0.1, DNS:receiver.test\nauthorityKeyIdentifier = keyid\n"
    )
    authority = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")]
    for name, signer in (("ca", []), ("server", authority)):
        subprocess.run(
            [
                *(program("openssl", "openssl"), "req", "-x509", "-config", str(config), "-extensions", name),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
                *("-subj", f"/CN=test {name}", *signer),
                *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")),
            ],
            check=True,
            capture_output=True,
        )
