"""What a node and a bare control plane have in common: a supervised state folder.

Starting, finding, asking and clearing away live here; which components there
are, in which order they start and what else the machine lends them is for
`node` and `control_plane`.
"""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from localcluster import cgroups, components, network, pki
from localcluster.api import Api
from localcluster.commands import run, tail, wait_for
from localcluster.components import Component, Endpoints
from localcluster.errors import ClusterError
from localcluster.places import REPOSITORY, Record, State

# Generous, since a loaded machine may need many times what an idle one does.
START_SECONDS = 120
STOP_SECONDS = 30
REQUEST_SECONDS = 60


def born(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 for one that is dead or only waits to be collected."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the program's name in brackets, which may hold anything.
    fields = text.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


def alive(record: Record) -> bool:
    return record.pid > 0 and born(record.pid) == record.born


def prepare(state: State, at: Endpoints, addresses: Iterable[IPv4Address]) -> None:
    """Lays out the folder of a new cluster: keys, kubeconfig, audit policy."""
    state.root.mkdir(mode=0o700)
    state.logs.mkdir()
    pki.create(state, addresses)
    authority = base64.b64encode((state.pki / "ca.crt").read_bytes()).decode()
    state.kubeconfig.touch(mode=0o600)
    state.kubeconfig.write_text(components.kubeconfig(at.server, authority, state.token.read_text()))
    shutil.copy(REPOSITORY / "localcluster" / "audit-policy.yaml", state.root)


def launch(state: State, plan: Sequence[Component], programs: Path, record: Record, *, isolate: bool) -> Record:
    """Starts the supervisor, which starts nothing by itself yet."""
    state.plan.write_text(json.dumps([{"name": part.name, "argv": part.argv} for part in plan]))
    # Nothing else is handed down: a proxy or a kubeconfig of the caller's must not reach the components.
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(state.root),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    isolation = ["--isolate", str(state.snapshots)] if isolate else []
    argv = [sys.executable, "-m", "localcluster.supervisor", str(state.root), *isolation]
    pid = int(run(argv, env=env))
    record = replace(record, pid=pid, born=born(pid))
    state.write(record)
    return record


def ask(state: State, action: str, component: str = "") -> dict[str, Any]:
    """One request to the supervisor."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(REQUEST_SECONDS)
        try:
            connection.connect(str(state.control))
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.write(json.dumps({"do": action, "component": component}) + "\n")
                stream.flush()
                answer = json.loads(stream.read())
        except (OSError, ValueError):
            raise ClusterError(f"Cluster {state.name} does not answer, start it again with `up`.") from None
    return dict(answer)


def start(state: State, names: Iterable[str]) -> None:
    for name in names:
        ask(state, "start", name)


def await_ready(state: State, what: str, check: Callable[[], bool]) -> None:
    """Waits for a component, and gives up at once when one of them has died."""

    def looked() -> bool:
        if check():
            return True
        for name, child in ask(state, "status").items():
            if child["exit"]:
                log = (state.logs / f"{name}.log").read_text(errors="replace")
                raise ClusterError(f"{name} {child['exit']} while the cluster started; its log ends:\n{tail(log)}")
        return False

    wait_for(f"{what} (logs are in {state.logs})", looked, seconds=START_SECONDS)


def start_control_plane(state: State, server: str) -> Api:
    """The start order is the API server's and the controllers' own: each gives up when what it needs stays away."""
    start(state, ["etcd", "kube-apiserver"])
    api = Api(state, server)
    await_ready(state, "The start of the API server", api.ready)
    start(state, ["kube-controller-manager"])
    return api


def end(state: State) -> None:
    """Ends a cluster and gives back what the machine lent it; its folder stays, with the logs."""
    record = state.read()
    if record and alive(record):
        _end(record)
    if os.geteuid() == 0:
        # By name and not by record: a kill may have left these without a record that tells of them.
        cgroups.remove(state.name)
        network.remove(state.name)


def clear(state: State) -> None:
    """Ends a cluster and removes all of it, whatever a crash or a kill left."""
    end(state)
    if state.root.exists():
        _unmount_below(state.root)
        shutil.rmtree(state.root)


@contextmanager
def starting(state: State) -> Iterator[None]:
    """A start that fails leaves its logs and nothing that runs; one that is interrupted leaves nothing."""
    try:
        yield
    except KeyboardInterrupt:
        clear(state)
        raise
    except BaseException:
        end(state)
        raise


def _end(record: Record) -> None:
    os.kill(record.pid, signal.SIGTERM)
    try:
        wait_for("The end of the cluster", lambda: not alive(record), seconds=STOP_SECONDS)
    except ClusterError:
        os.kill(record.pid, signal.SIGKILL)
        wait_for("The end of the cluster", lambda: not alive(record), seconds=STOP_SECONDS)


def _unmount_below(root: Path) -> None:
    """Normally none: a node's mounts are its own. One that leaked would let the removal reach what it shows."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mounted = Path(line.split()[4].encode().decode("unicode_escape"))
        if mounted.is_relative_to(root):
            subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def found(state: State) -> Record:
    """The record of a cluster that runs; a problem otherwise."""
    record = state.read()
    if record is None or not alive(record):
        raise ClusterError(f"There is no running cluster {state.name}, start it with `python3 -m localcluster up`.")
    return record
