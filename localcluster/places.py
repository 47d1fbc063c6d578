"""Where things are: the checkout, the cache of built parts, and the state of each cluster.

The cache may be deleted at any time and costs only the time to build it again.
A state folder lives as long as its cluster. It is under the temporary folder
and not under XDG_RUNTIME_DIR: image layers would fill the small memory file
system that is usually mounted there, and a node sees a /run of its own.
"""

import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.progress import say

REPOSITORY = Path(__file__).resolve().parent.parent

# A Unix socket's path must fit 107 bytes; this is what the longest one below a state folder needs.
LONGEST_SOCKET_SUFFIX = len("/kubelet/device-plugins/kubelet.sock")
SOCKET_PATH_LIMIT = 107


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(base) / "synapse-scale"
    root.mkdir(parents=True, exist_ok=True)
    return root


def state_root() -> Path:
    """A folder only this user can enter: it holds the clusters' administrator tokens."""
    root = Path(tempfile.gettempdir()) / f"synapse-scale-{os.geteuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ClusterError(f"{root} is not a folder of this user's alone, remove it or point TMPDIR elsewhere.")
    return root


@dataclass(frozen=True)
class Record:
    """What must be remembered between two commands."""

    kind: str
    """`node` or `control-plane`."""
    block: str
    """The address range of a node; empty for a control plane, which is on loopback."""
    server: str
    """URL of the API server."""
    pid: int = 0
    """The supervisor, as this machine's own process table numbers it; 0 before it runs."""
    born: int = 0
    """Its start time in clock ticks, since a number alone may be used again."""
    ready: bool = False
    """Whether an `up` came to its end."""


@dataclass(frozen=True)
class State:
    """The folder of one cluster."""

    name: str

    @cached_property
    def root(self) -> Path:
        root = state_root() / self.name
        if len(os.fsencode(root)) + LONGEST_SOCKET_SUFFIX > SOCKET_PATH_LIMIT:
            raise ClusterError(f"The path {root} is too long for sockets below it, point TMPDIR to a shorter one.")
        return root

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def token(self) -> Path:
        return self.pki / "admin.token"

    @property
    def plan(self) -> Path:
        """The components for the supervisor: name, arguments, environment."""
        return self.root / "components.json"

    @property
    def control(self) -> Path:
        """The socket on which the supervisor takes requests."""
        return self.root / "control.sock"

    @property
    def containerd(self) -> Path:
        return self.root / "containerd"

    @property
    def snapshots(self) -> Path:
        """Where containerd unpacks images: a memory file system that ends with the node.

        Tens of thousands of small files are made and removed in no time there, and it
        can be layered, which a disk inside a container often cannot.
        """
        return self.containerd / "snapshots"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    @property
    def _record(self) -> Path:
        return self.root / "cluster.json"

    def read(self) -> Record | None:
        try:
            return Record(**json.loads(self._record.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            # A file cut short by a kill is as good as none: what is left of that cluster is cleared away.
            return None

    def write(self, record: Record) -> None:
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(self._record)

    @property
    def lock(self) -> Path:
        """Outside of the folder, since it is held while the folder goes."""
        return state_root() / f"{self.name}.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        with lock(self.lock, f"another command is changing cluster {self.name}"):
            yield


@contextmanager
def lock(path: Path, held: str) -> Iterator[None]:
    """One process at a time; the kernel gives the lock back even after a kill -9."""
    while True:
        with path.open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"  waiting: {held}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            # The one who held it may have removed the file, and then this lock guards nothing.
            if path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat()):
                yield
                return
