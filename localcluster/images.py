"""Which images there are, what goes into each, and building those that are out of date.

Where an image comes from is decided once, from the environment:

    IMAGE_PREFIX   registry and path of the images to publish, without a slash at the end
    IMAGE_TAG      their tag
    BASE_IMAGE     what they are built on

Unset, everything is named localhost/...:dev and built on a base of our own, so
that no registry is needed, and the database images for a try-out come along.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from localcluster import engines, machine, wheels
from localcluster.commands import follow
from localcluster.components import SANDBOX_IMAGE
from localcluster.engines import Engine
from localcluster.places import REPOSITORY, cache_root, lock
from localcluster.progress import say, step
from localcluster.versions import DEBIAN, PIP, PYTHON

BASE_IMAGE = SANDBOX_IMAGE
BASE_FILE = REPOSITORY / "localcluster" / "base.Dockerfile"
# What the public python image has beside Python: certificates, time zones, names of protocols.
BASE_PACKAGES = ("python3-minimal", "libpython3-stdlib", "ca-certificates", "tzdata", "netbase")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
DATABASES = ("redis", "postgres")
# What the project's own wheel is made of.
PROJECT_SOURCES = ("pyproject.toml", "README.md", "operator/synapse_operator", "worker/synapse_worker")


@dataclass(frozen=True)
class Image:
    """One image to build."""

    name: str
    file: Path
    inputs: tuple[Path, ...]
    """Files and folders that the image is made of, besides its base."""
    fill: Callable[[Path], None]
    """Lays out the build context."""
    settings: tuple[str, ...] = ()
    """Versions and the like that the image depends on too."""


def base() -> Image:
    return Image(BASE_IMAGE, BASE_FILE, (), _bootstrap, (DEBIAN, *BASE_PACKAGES, *LEFT_OUT))


def _bootstrap(context: Path) -> None:
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    with step(f"root file system of Debian {DEBIAN}") as current:
        follow(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", *options),
                *(DEBIAN, str(context / "rootfs.tar")),
            ],
            current.advance,
        )


def programs(prefix: str, tag: str) -> list[Image]:
    """The operator and the worker."""
    made = []
    for program in ("operator", "worker"):
        requirements = REPOSITORY / "locks" / f"{program}.txt"
        made.append(
            Image(
                f"{prefix}/synapse-scale-{program}:{tag}",
                REPOSITORY / program / "Dockerfile",
                (requirements, *(REPOSITORY / source for source in PROJECT_SOURCES)),
                partial(wheels.fill, lock=requirements),
                (PYTHON, PIP),
            )
        )
    return made


def databases() -> list[Image]:
    """Redis and PostgreSQL for a try-out, from Debian packages."""
    made = []
    for database in DATABASES:
        folder = REPOSITORY / "manifests" / "dev" / "images" / database
        copy = partial(shutil.copytree, folder, dirs_exist_ok=True)
        made.append(Image(f"localhost/synapse-dev-{database}:dev", folder / "Dockerfile", (folder,), copy))
    return made


def local() -> list[Image]:
    """All that the local cluster uses besides the base."""
    return [*programs("localhost", "dev"), *databases()]


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every file below, in a fixed order, without what Python leaves behind."""
    for path in paths:
        if path.is_dir():
            found = (each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
            yield from sorted(found)
        else:
            yield path


def fingerprint(image: Image, on: str) -> str:
    """A hash of all that the image is made of; `on` tells its base apart from others."""
    digest = hashlib.sha256()
    for text in (image.name, on, *image.settings):
        digest.update(f"{text}\n".encode())
    for path in files((image.file, *image.inputs)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_mode & 0o111} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def ensure_base() -> None:
    """The base is also what a pod's sandbox runs, so no node starts without it."""
    _build_all([base()], engines.choose(), {}, machine.architecture())


def build() -> None:
    """Builds what is out of date and prints the names of all that is there then."""
    engine = engines.choose()
    prefix = os.environ.get("IMAGE_PREFIX", "")
    named = os.environ.get("BASE_IMAGE", "")
    public = bool(prefix) or os.environ.get("CLUSTER") == "kind"
    wanted = programs(prefix or "localhost", os.environ.get("IMAGE_TAG", "dev")) if public else local()
    args = {"BASE_IMAGE": named} if named else {}
    on = named or "the Dockerfile's own base"
    if not public and not named:
        first = base()
        _build_all([first], engine, {}, machine.architecture())
        args, on = {"BASE_IMAGE": first.name}, engine.fingerprint(first.name)
    _build_all(wanted, engine, args, on)
    for image in wanted:
        print(image.name)


def _build_all(wanted: Iterable[Image], engine: Engine, args: dict[str, str], on: str) -> None:
    with lock(cache_root() / "images.lock", "another command is building images"):
        for image in wanted:
            label = fingerprint(image, on)
            if engine.fingerprint(image.name) == label:
                continue
            with (
                tempfile.TemporaryDirectory(dir=cache_root(), prefix="context-") as scratch,
                step(f"image {image.name}") as current,
            ):
                context = Path(scratch)
                image.fill(context)
                engine.build(image.name, file=image.file, context=context, args=args, label=label, step=current)
    say("  images are up to date")
