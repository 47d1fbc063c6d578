"""What the machine itself must offer, and the Debian packages that can be added to it.

Only missing packages are installed, each named first, and nothing else is
changed on the system. What cannot be added is named in one sentence.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from localcluster import cgroups
from localcluster.commands import follow, succeeds
from localcluster.components import CNI_FOLDERS
from localcluster.errors import ClusterError, NoNodeError
from localcluster.progress import say, step

# Programs and the Debian package that has each.
FOR_CONTROL_PLANE = {"openssl": "openssl"}
FOR_NODE = {
    **FOR_CONTROL_PLANE,
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}
FOR_IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap"}
CNI_PACKAGE = "containernetworking-plugins"
APT_LISTS = Path("/var/lib/apt/lists")

GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """This machine's, as the kernel names it; the programs and images are built for it."""
    name = platform.machine()
    if sys.platform != "linux" or name not in GO_ARCHITECTURES:
        raise NoNodeError("The local cluster runs on Linux, x86_64 or aarch64; use CLUSTER=kind on this machine.")
    return name


def add_sbin_to_path() -> None:
    """Where Debian keeps ip and iptables; a user's PATH often lacks it."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def cni_folders() -> list[str]:
    return [folder for folder in CNI_FOLDERS if Path(folder, "bridge").exists()]


def missing_packages(programs: dict[str, str], installed: Iterable[str]) -> list[str]:
    """The packages to install for those of `programs` that are not `installed`."""
    present = set(installed)
    return sorted({package for program, package in programs.items() if program not in present})


def provide(programs: dict[str, str], *, cni: bool = False) -> None:
    """Installs the packages of the programs that are missing."""
    packages = missing_packages(programs, filter(shutil.which, programs))
    if cni and not cni_folders():
        packages.append(CNI_PACKAGE)
    if packages:
        install(packages)


def install(packages: Sequence[str]) -> None:
    names = ", ".join(packages)
    if not shutil.which("apt-get"):
        raise NoNodeError(f"These Debian packages or their like are missing, install them by hand: {names}.")
    if os.geteuid():
        raise NoNodeError(f"These packages are missing, run `apt-get install {' '.join(packages)}` as root.")
    say(f"  installing Debian packages that are missing: {names}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if not any(APT_LISTS.glob("*_Packages*")):
        with step("apt-get update") as current:
            follow(["apt-get", "update"], current.advance, env=env)
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    with step(f"apt-get install {' '.join(packages)}") as current:
        try:
            follow(command, current.advance, env=env)
        except ClusterError:
            # Lists that are there may still be too old to name a file that exists.
            follow(["apt-get", "update"], current.advance, env=env)
            follow(command, current.advance, env=env)


def check_node(scratch: Path) -> None:
    """Raises the first reason why no node can run here; `scratch` is where its data would be."""
    architecture()
    if os.geteuid():
        raise NoNodeError("A node needs root, and this is another user; `up --control-plane` works without.")
    if not succeeds(["unshare", "--net", "--pid", "--mount", "--fork", "true"]):
        raise NoNodeError("A node needs network, process and mount namespaces, which this machine does not allow.")
    cgroups.check()
    layers = scratch / "overlay-check"
    folders = [layers / part for part in ("lower", "upper", "work", "merged")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    lower, upper, work, merged = folders
    mount = f"mount -t overlay -o lowerdir={lower},upperdir={upper},workdir={work} overlay {merged}"
    works = succeeds(["unshare", "--mount", "sh", "-c", mount])
    shutil.rmtree(layers)
    if not works:
        raise NoNodeError(f"A node needs overlay mounts, and {scratch} allows none; point TMPDIR to another disk.")
