"""The first process of a cluster: it starts the components, reaps them and restarts none.

A component that dies stays dead, so that a fault shows in `status` and a test
can count on it. In what order to start and when a component is ready is decided
by the command that asks, over a socket: one JSON request and one answer per
connection. For a node this process is also the first of a PID namespace.

Run as `python3 -m localcluster.supervisor STATE_FOLDER [--isolate IN_MEMORY...]`,
with folders to be kept in memory; it prints its process id, as seen by the
caller, once it takes requests.
"""

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster import isolation

PR_SET_PDEATHSIG = 1
# A component that is told to stop gets this long before it is killed; the API server would drain for a minute.
GRACE_SECONDS = 3.0
REQUEST_TIMEOUT_SECONDS = 5.0


@dataclass
class Child:
    """A component and what became of it."""

    argv: list[str]
    log: Path
    pid: int = 0
    started: float = 0.0
    exit: str = ""
    """How it ended; empty while it runs or before it was started."""

    def state(self) -> dict[str, Any]:
        running = bool(self.pid)
        return {"running": running, "pid": self.pid, "since": self.started, "exit": self.exit}


class Supervisor:
    def __init__(self, root: Path) -> None:
        plan = json.loads((root / "components.json").read_text())
        self.children = {entry["name"]: Child(entry["argv"], root / "logs" / f"{entry['name']}.log") for entry in plan}
        self.ending = False
        self._wakeup, wake = socket.socketpair()
        self._wakeup.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(root / "control.sock"))
        self._server.listen()

    def _end(self, *_: object) -> None:
        self.ending = True

    def serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while not self.ending:
                for key, _ in selector.select():
                    if key.fileobj is self._wakeup:
                        self._wakeup.recv(4096)
                    else:
                        self._answer()
                self._reap()
        # Killed, not asked: the data is thrown away with the cluster.
        for child in self.children.values():
            if child.pid:
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)

    def _answer(self) -> None:
        connection, _ = self._server.accept()
        with connection:
            connection.settimeout(REQUEST_TIMEOUT_SECONDS)
            try:
                with connection.makefile("rw", encoding="utf-8") as stream:
                    request = json.loads(stream.readline())
                    json.dump(self._do(request["do"], request.get("component", "")), stream)
            except (OSError, ValueError, KeyError) as error:
                # A caller that went away or sent nonsense must not take the cluster down.
                print(f"request failed: {error!r}", flush=True)

    def _do(self, action: str, name: str) -> dict[str, Any]:
        self._reap()
        if action == "status":
            return {name: child.state() for name, child in self.children.items()}
        child = self.children[name]
        if action == "restart" and child.pid:
            self._stop(child)
        if not child.pid:
            self._start(child)
        return child.state()

    def _start(self, child: Child) -> None:
        ready, report = os.pipe()  # closed by a successful exec, so an empty read means that the program runs
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                # Should this process be killed where no namespace ends the components, the kernel does it.
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(log, 1)
                os.dup2(log, 2)
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                os.execv(child.argv[0], child.argv)  # noqa: S606 - no shell wanted
            except OSError as error:
                os.write(report, str(error).encode())
            finally:
                os._exit(127)
        os.close(report)
        with os.fdopen(ready, "rb") as pipe:
            problem = pipe.read().decode()
        child.pid, child.started, child.exit = pid, time.time(), ""
        if problem:
            print(f"{child.argv[0]}: {problem}", flush=True)

    def _stop(self, child: Child) -> None:
        os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while child.pid and time.monotonic() < deadline:
            time.sleep(0.02)
            self._reap()
        if child.pid:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            child.pid, child.exit = 0, "killed, it did not stop in time"

    def _reap(self) -> None:
        """Collects whatever has ended; the first process of a namespace also inherits what others left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for child in self.children.values():
                if child.pid == pid:
                    code = os.waitstatus_to_exitcode(status)
                    child.pid = 0
                    child.exit = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


def main() -> None:
    root = Path(sys.argv[1])
    isolated = "--isolate" in sys.argv[2:]
    log = os.open(root / "logs" / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    if isolated:
        isolation.unshare()
    listening, report = os.pipe()
    pid = os.fork()
    if pid:
        # This process can name its child as the caller sees it; in a namespace the child knows itself as 1.
        os.close(report)
        with os.fdopen(listening, "rb") as pipe:
            if pipe.read() != b"ok":
                sys.exit(f"the first process of the cluster did not start, see {root}/logs/supervisor.log")
        print(pid, flush=True)
        return
    os.close(listening)
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    if isolated:
        isolation.prepare(map(Path, sys.argv[3:]))
    supervisor = Supervisor(root)
    os.write(report, b"ok")
    os.close(report)
    supervisor.serve()


if __name__ == "__main__":
    main()
