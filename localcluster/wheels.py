"""The wheels that go into the images, collected outside the build so that a build needs no index.

Dependencies come from a lock file with hashes and are kept under the hash of
that file; the project's own wheel is built each time, which takes a second.
"""

import os
import shutil
import tempfile
from pathlib import Path

from localcluster import machine, pythonenv
from localcluster.addresses import digest
from localcluster.commands import follow, run
from localcluster.places import REPOSITORY, cache_root
from localcluster.progress import step
from localcluster.versions import PYTHON

# The C libraries that wheels may ask for, oldest first; Debian's release and the public image are newer than all.
GLIBC_VERSIONS = ("2_5", "2_12", "2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34", "2_35", "2_38", "2_39")


def platforms(architecture: str) -> list[str]:
    return [f"manylinux_{version}_{architecture}" for version in GLIBC_VERSIONS] + [f"linux_{architecture}"]


def dependencies(lock: Path) -> Path:
    """A folder with every wheel of a lock file, for the Python of the images and this machine's architecture.

    Conditions in the lock (`; python_version < ...`) are read by the Python that runs
    this; a wheel that would be missing for it is missed by the build, which has no index.
    """
    architecture = machine.architecture()
    place = cache_root() / "wheels" / digest(f"{PYTHON} {architecture}\n{lock.read_text()}")[:12]
    if place.is_dir():
        return place
    place.parent.mkdir(exist_ok=True)
    options = [word for name in platforms(architecture) for word in ("--platform", name)]
    with (
        tempfile.TemporaryDirectory(dir=place.parent, prefix="partial-") as scratch,
        step(f"wheels of {lock.name}") as now,
    ):
        fetched = Path(scratch) / "wheels"
        command = [str(pythonenv.ensure()), "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
        requirements = ["--require-hashes", "--only-binary=:all:", "--requirement", str(lock)]
        follow([*command, *requirements, "--python-version", PYTHON, *options, "--dest", str(fetched)], now.advance)
        fetched.rename(place)
    return place


def fill_runtime(context: Path, lock: Path) -> None:
    """Lays out what the dependencies of an image are installed from."""
    shutil.copy(lock, context / "requirements.txt")
    _link(dependencies(lock), context / "dependencies")
    _link(_pip(), context / "pip" / "pip")


def fill_program(context: Path) -> None:
    """Lays out what the project itself is installed from."""
    _link(_pip(), context / "pip" / "pip")
    # hatchling gives every file in the wheel the same time, so that equal sources make equal wheels.
    command = [str(pythonenv.ensure()), "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    run([*command, str(context / "project")], cwd=REPOSITORY)


def _pip() -> Path:
    """The installer itself goes along: the base image has none."""
    found = run([str(pythonenv.ensure()), "-c", "import pip; print(pip.__path__[0])"])
    return Path(found.strip())


def _link(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=os.link, ignore=shutil.ignore_patterns("__pycache__"))
