"""The cgroup folder below which a node's pods live, in every hierarchy of this machine.

A folder of each cluster's own keeps two kubelets apart and makes cleaning up a
matter of removing one tree. Cgroups are the one thing a namespace does not take
with it when it ends.
"""

import os
from pathlib import Path

from localcluster.commands import wait_for
from localcluster.errors import NoNodeError

MOUNT = Path("/sys/fs/cgroup")
# What the kubelet insists on finding.
NEEDED = ("cpu", "cpuset", "memory", "pids")


def root_name(name: str) -> str:
    return f"synapse-{name}"


def _unified() -> bool:
    """Whether this machine has version 2 alone; a hybrid one keeps its controllers in version 1."""
    return (MOUNT / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    if _unified():
        return [MOUNT]
    # cpu,cpuacct and the like are links to one folder.
    return sorted({path.resolve() for path in MOUNT.iterdir() if path.is_dir()}) if MOUNT.is_dir() else []


def check() -> None:
    """Raises when pods could not be given cgroups here."""
    if _unified():
        present = set((MOUNT / "cgroup.controllers").read_text().split())
    else:
        present = {path.name for path in MOUNT.iterdir()} if MOUNT.is_dir() else set()
    missing = [controller for controller in NEEDED if controller not in present]
    if missing:
        raise NoNodeError(f"A node needs the cgroup controllers {', '.join(missing)}, which this machine lacks.")
    for hierarchy in _hierarchies():
        if not os.access(hierarchy, os.W_OK) or os.statvfs(hierarchy).f_flag & os.ST_RDONLY:
            raise NoNodeError(f"A node needs cgroups that can be written, and {hierarchy} is read-only here.")


def create(name: str) -> None:
    if _unified():
        try:
            (MOUNT / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in NEEDED))
        except OSError as error:
            raise NoNodeError(f"A node needs cgroup controllers handed down by {MOUNT}: {error.strerror}.") from None
    for hierarchy in _hierarchies():
        folder = hierarchy / root_name(name)
        folder.mkdir(exist_ok=True)
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            # In version 1 a new cpuset is empty and holds no process until it is given processors and memory.
            if not _unified() and (folder / inherited).exists():
                (folder / inherited).write_text((hierarchy / inherited).read_text())


def remove(name: str) -> None:
    """Removes the whole tree, which holds no process once the cluster is dead."""
    for hierarchy in _hierarchies():
        root = hierarchy / root_name(name)
        wait_for(f"The removal of the cgroup {root}", lambda root=root: _emptied(root), seconds=20)  # type: ignore[misc]


def _emptied(root: Path) -> bool:
    for folder, _, _ in os.walk(root, topdown=False):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            # Busy: a killed process that the kernel has not taken down yet.
            return False
    return True
