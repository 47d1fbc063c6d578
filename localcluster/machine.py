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

# Programs, or files by their path, and the Debian package that has each.
FOR_CONTROL_PLANE = {"openssl": "openssl"}
FOR_NODE = {
    **FOR_CONTROL_PLANE,
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
}
FOR_BUILDAH = {"buildah": "buildah"}
FOR_BASE_IMAGE = {
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
CNI_PACKAGE = "containernetworking-plugins"
APT_LISTS = Path("/var/lib/apt/lists")

# Mounts in a mount namespace of their own, which are gone as soon as the shell ends.
TRY_LAYERS = """
mount -t tmpfs tmpfs /run && cd /run && mkdir lower upper work merged &&
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay merged
"""

GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """This machine's, as the kernel names it; the programs and images are built for it."""
    name = platform.machine()
    if sys.platform != "linux" or name not in GO_ARCHITECTURES:
        raise NoNodeError("The local cluster runs on Linux, x86_64 or aarch64; use CLUSTER=kind on this machine.")
    return name


def wants_kind() -> bool:
    """Whether clusters are to be kind's, which brings Docker and public images with it."""
    return os.environ.get("CLUSTER") == "kind"


def add_sbin_to_path() -> None:
    """Where Debian keeps ip and iptables; a user's PATH often lacks it."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def cni_folders() -> list[str]:
    return [folder for folder in CNI_FOLDERS if Path(folder, "bridge").exists()]


def missing_packages(needed: dict[str, str], installed: Iterable[str]) -> list[str]:
    """The packages to install for what is `needed` and not `installed`."""
    present = set(installed)
    return sorted({package for each, package in needed.items() if each not in present})


def provide(needed: dict[str, str], *, cni: bool = False) -> None:
    """Installs the packages of what is missing."""
    packages = missing_packages(needed, filter(_present, needed))
    if cni and not cni_folders():
        packages.append(CNI_PACKAGE)
    if packages:
        install(packages)


def _present(needed: str) -> bool:
    return Path(needed).exists() if needed.startswith("/") else shutil.which(needed) is not None


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


def check_node() -> None:
    """Raises the first reason why no node can run here."""
    architecture()
    if os.geteuid():
        raise NoNodeError("A node needs root, and this is another user; `up --control-plane` works without.")
    if not succeeds(["unshare", "--net", "--pid", "--mount", "--fork", "true"]):
        raise NoNodeError("A node needs network, process and mount namespaces, which this machine does not allow.")
    cgroups.check()
    if not succeeds(["unshare", "--mount", "sh", "-c", TRY_LAYERS]):
        raise NoNodeError("A node needs to mount memory file systems and overlays, which this machine does not allow.")
