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
from localcluster.engines import Engine, Recipe
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
    fill: Callable[[Path], None]
    """Lays out the build context."""
    inputs: tuple[Path, ...] = ()
    """Files and folders that the image is made of, besides its base and its Dockerfile."""
    settings: tuple[str, ...] = ()
    """Versions and the like that it depends on too."""
    target: str = ""
    """The stage of the Dockerfile that makes it; empty for the last."""
    on: "Image | None" = None
    """The image below it; None for one that stands on what the user named or on nothing."""
    on_argument: str = "BASE_IMAGE"
    """The build argument that names the image below."""


def base() -> Image:
    return Image(BASE_IMAGE, BASE_FILE, _bootstrap, settings=(DEBIAN, *BASE_PACKAGES, *LEFT_OUT))


def _bootstrap(context: Path) -> None:
    machine.provide(machine.FOR_BASE_IMAGE)
    options = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
    with step(f"root file system of Debian {DEBIAN}") as current:
        follow(
            [
                *("mmdebstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", *options),
                *(DEBIAN, str(context / "rootfs.tar")),
            ],
            current.advance,
        )


def programs(prefix: str, tag: str, on: Image | None) -> list[Image]:
    """The operator and the worker, each on an image of its dependencies that a change of our code leaves alone."""
    made = []
    for program in ("operator", "worker"):
        requirements = REPOSITORY / "locks" / f"{program}.txt"
        runtime = Image(
            f"{prefix}/synapse-scale-{program}-runtime:{tag}",
            REPOSITORY / program / "Dockerfile",
            partial(wheels.fill_runtime, lock=requirements),
            inputs=(requirements,),
            settings=(PYTHON, PIP),
            target="runtime",
            on=on,
        )
        made.append(
            Image(
                f"{prefix}/synapse-scale-{program}:{tag}",
                runtime.file,
                wheels.fill_program,
                inputs=tuple(REPOSITORY / source for source in PROJECT_SOURCES),
                on=runtime,
                on_argument="RUNTIME_IMAGE",
            )
        )
    return made


def databases() -> list[Image]:
    """Redis and PostgreSQL for a try-out, from Debian packages."""
    made = []
    for database in DATABASES:
        folder = REPOSITORY / "manifests" / "dev" / "images" / database
        copy = partial(_copy, folder)
        name = f"localhost/synapse-dev-{database}:dev"
        made.append(Image(name, folder / "Dockerfile", copy, inputs=(folder,), on=base()))
    return made


def _copy(folder: Path, context: Path) -> None:
    shutil.copytree(folder, context, dirs_exist_ok=True)


def local() -> list[Image]:
    """All that the local cluster runs besides the base."""
    return [*programs("localhost", "dev", base()), *databases()]


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Every file below, in a fixed order, without what Python leaves behind."""
    for path in paths:
        if path.is_dir():
            found = (each for each in path.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
            yield from sorted(found)
        else:
            yield path


def fingerprint(image: Image, below: str) -> str:
    """A hash of all that the image is made of; `below` tells what it stands on."""
    digest = hashlib.sha256()
    for text in (image.name, below, *image.settings):
        digest.update(f"{text}\n".encode())
    for path in files((image.file, *image.inputs)):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(REPOSITORY)} {path.stat().st_mode & 0o111} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def ensure_base() -> None:
    """The base is also what a pod's sandbox runs, so no node starts without it."""
    _build_all([base()], {})


def build() -> None:
    """Builds what is out of date and prints the names of all that is there then."""
    prefix = os.environ.get("IMAGE_PREFIX", "")
    named = os.environ.get("BASE_IMAGE", "")
    public = bool(prefix) or machine.wants_kind()
    below = None if public or named else base()
    wanted = programs(prefix or "localhost", os.environ.get("IMAGE_TAG", "dev"), below)
    if not public:
        wanted += databases()
    _build_all(wanted, {"BASE_IMAGE": named} if named else {})
    say("  images are up to date")
    for image in wanted:
        print(image.name)


def _build_all(wanted: Iterable[Image], args: dict[str, str]) -> None:
    engine = engines.choose()
    for image in wanted:
        _ensure(image, engine, args)


def _ensure(image: Image, engine: Engine, args: dict[str, str]) -> str:
    """Builds an image and what is below it where they are out of date; its fingerprint."""
    if image.on is None:
        below = " ".join([machine.architecture(), *args.values()])
    else:
        below = _ensure(image.on, engine, args)
        args = {**args, image.on_argument: image.on.name}
    label = fingerprint(image, below)
    if engine.fingerprint(image.name) != label:
        with lock(cache_root() / "images.lock", "another command is building images"):
            # The other one may have built this very image.
            if engine.fingerprint(image.name) != label:
                _build(image, engine, args, label)
    return label


def _build(image: Image, engine: Engine, args: dict[str, str], label: str) -> None:
    with (
        tempfile.TemporaryDirectory(dir=cache_root(), prefix="context-") as context,
        step(f"image {image.name}") as current,
    ):
        image.fill(Path(context))
        thin = image.on_argument == "RUNTIME_IMAGE"
        engine.build(Recipe(image.name, image.file, image.target, args, label, thin), Path(context), current)
