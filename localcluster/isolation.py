"""The namespaces a node lives in: network, process table and mounts of its own.

Only the first process of a node calls this. When that process ends the kernel
ends every other one in the namespace, kubelet, shims and pods included, and
takes the network and the mounts along: that is the whole of stopping a node.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# Folders in which programs keep data at fixed paths; what the node writes there is to stay its own.
PRIVATE_FOLDERS = ("/var/lib", "/var/log")


def unshare() -> None:
    """Gives the next child of this process namespaces of its own; `os.unshare` needs Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def prepare(in_memory: Iterable[Path]) -> None:
    """Makes the new namespaces usable; called by the first process in them."""
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    for folder in (Path("/run"), *in_memory):
        _mount("-t", "tmpfs", "tmpfs", str(folder))
    for shared in PRIVATE_FOLDERS:
        changes = Path("/run/node-private" + shared)
        upper, work = changes / "upper", changes / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        _mount("-t", "overlay", "-o", f"lowerdir={shared},upperdir={upper},workdir={work}", "overlay", shared)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
