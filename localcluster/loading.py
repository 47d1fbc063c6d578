"""Moving images into a node's containerd, without what it already has."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from localcluster import engines, images
from localcluster.commands import failure, run
from localcluster.engines import Engine
from localcluster.places import State

# The namespace in which containerd looks for the kubelet's images.
CRI_NAMESPACE = "k8s.io"
CONTENT = "root/io.containerd.content.v1.content/blobs"


def load_known(state: State, programs: Path) -> list[str]:
    """The base and all images of the project that have been built; those that were not there yet."""
    return load(state, programs, engines.choose(), [image.name for image in (images.base(), *images.local())])


def load_named(state: State, programs: Path, names: Sequence[str]) -> list[str]:
    """Images by name, whoever built them; those that were not there yet."""
    engine = engines.choose()
    full = [full_name(name) for name in names]
    for name in full:
        engine.collect(name)
    return load(state, programs, engine, full)


def full_name(name: str) -> str:
    """NAME[:TAG] as the builders complete it."""
    head, slash, last = name.rpartition("/")
    tagged = last if ":" in last else f"{last}:latest"
    return f"{head}{slash}{tagged}" if slash else f"localhost/{tagged}"


def load(state: State, programs: Path, engine: Engine, names: Sequence[str]) -> list[str]:
    """Loads those of the images that exist and are not loaded yet, and names them."""
    ctr = [f"{programs}/ctr", "--address", str(state.containerd_socket), "--namespace", CRI_NAMESPACE, "images"]
    loaded = parse_listing(run([*ctr, "list"]))
    built = engine.digests(names)
    wanted = [name for name, digest in built.items() if loaded.get(name) != digest]
    if not wanted:
        return []
    blobs = state.containerd / CONTENT

    def present(digest: str) -> bool:
        return (blobs / digest.replace(":", "/")).exists()

    # Read by ctr itself: the other way hands the archive on in small messages and takes twice the time.
    command = [*ctr, "import", "--local", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            engine.archive(wanted, present, process.stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # containerd gave up; its own words follow
        output = process.stdout.read().decode(errors="replace")
    if process.returncode:
        raise failure(command, process.returncode, output)
    return wanted


def parse_listing(listing: str) -> dict[str, str]:
    """Name and digest of each image, from the table that `ctr images list` prints."""
    rows = (line.split() for line in listing.splitlines()[1:])
    return {row[0]: row[2] for row in rows if len(row) > 2}
