"""The two programs that can build images: a Docker daemon where one answers, else buildah.

Both take the same Dockerfiles and contexts. An image carries a fingerprint of
its inputs as a label, so that what is up to date is known from the image itself.
"""

import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from localcluster import machine
from localcluster.commands import failure, follow, run, succeeds
from localcluster.errors import ClusterError, NoNodeError
from localcluster.ocilayout import Layout
from localcluster.places import cache_root, lock
from localcluster.progress import Step

FINGERPRINT_LABEL = "synapse-scale.fingerprint"


@dataclass(frozen=True)
class Recipe:
    """How one image is built."""

    name: str
    file: Path
    target: str
    """The stage that is wanted; empty for the last one."""
    args: Mapping[str, str]
    label: str
    """The fingerprint of the inputs."""
    thin: bool
    """Whether all layers but the last are those of another image, its base."""

    def arguments(self) -> list[str]:
        """What both programs are told in the same words."""
        values = [word for key, value in self.args.items() for word in ("--build-arg", f"{key}={value}")]
        target = ["--target", self.target] if self.target else []
        label = f"{FINGERPRINT_LABEL}={self.label}"
        return ["--file", str(self.file), "--tag", self.name, "--label", label, *target, *values]


class Engine(ABC):
    @abstractmethod
    def build(self, recipe: Recipe, context: Path, step: Step) -> None:
        """Builds one image."""

    @abstractmethod
    def fingerprint(self, name: str) -> str:
        """The label of an image that is there; empty otherwise."""

    @abstractmethod
    def collect(self, name: str) -> None:
        """Takes in an image that was built by other means than `build`."""

    @abstractmethod
    def digests(self, names: Sequence[str]) -> dict[str, str]:
        """Those of the images that are there, with the digest under which containerd would know them."""

    @abstractmethod
    def archive(self, names: Sequence[str], present: Callable[[str], bool], out: IO[bytes]) -> None:
        """Writes images as one archive; blobs that are `present` at the other end may be left out."""


def choose() -> Engine:
    if succeeds(["docker", "info"]):
        return Docker()
    if machine.wants_kind():
        raise NoNodeError("CLUSTER=kind needs a Docker daemon, and none answers; start it, or unset CLUSTER.")
    return Buildah()


class Buildah(Engine):
    """Builds without a daemon, as root, and keeps what it built in an image layout in the cache.

    The layout is what is loaded from; buildah's own storage may be wiped without
    losing an image.
    """

    # Never a FUSE driver: root can mount overlays.
    COMMAND = ("buildah", "--storage-driver", "overlay")

    def __init__(self) -> None:
        machine.provide(machine.FOR_BUILDAH)
        self.layout = Layout(cache_root() / "images")

    def build(self, recipe: Recipe, context: Path, step: Step) -> None:
        for value in recipe.args.values():
            self._restore(value)
        # Isolation by chroot needs no cgroups or network set-up of the machine's. Steps are not cached one by one: what
        # changes rarely is an image of its own.
        options = ["--isolation", "chroot", "--network", "host", "--layers=false"]
        follow([*self.COMMAND, "build", *options, *recipe.arguments(), str(context)], step.advance)
        if recipe.thin:
            self.collect(recipe.name)
        else:
            self._collect_plain(recipe.name)
        self._forget_replaced()

    def fingerprint(self, name: str) -> str:
        return self.layout.label(name, FINGERPRINT_LABEL)

    def collect(self, name: str) -> None:
        # Layers that the layout has as plain files are not looked at; others are compressed on the way.
        with self._alone():
            run([*self.COMMAND, "push", "--quiet", name, f"oci:{self.layout.root}:{name}"])
            self.layout.prune()

    def _collect_plain(self, name: str) -> None:
        with self._alone(), tempfile.TemporaryDirectory(dir=cache_root(), prefix="push-") as scratch:
            run([*self.COMMAND, "push", "--quiet", "--disable-compression", name, f"dir:{scratch}"])
            self.layout.take(Path(scratch), name)

    def _forget_replaced(self) -> None:
        """Removes images of ours that lost their name to a newer one."""
        replaced = ["images", "--quiet", "--filter", "dangling=true", "--filter", f"label={FINGERPRINT_LABEL}"]
        for identity in run([*self.COMMAND, *replaced]).split():
            # One that another stands on stays until that one goes.
            succeeds([*self.COMMAND, "rmi", identity])

    def _restore(self, name: str) -> None:
        """Puts an image from the layout back into a storage that was wiped, or that others have filled since."""
        kept = self.layout.identity(name)
        stored = run([*self.COMMAND, "images", "--quiet", "--no-trunc", "--filter", f"reference={name}"]).split()
        if not kept or kept in stored:
            return
        with tempfile.NamedTemporaryFile(dir=cache_root(), suffix=".tar") as file:
            self.archive([name], lambda _: False, file)
            file.flush()
            run([*self.COMMAND, "pull", "--quiet", f"oci-archive:{file.name}"])

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: digest for name, digest in self.layout.digests().items() if name in names}

    def archive(self, names: Sequence[str], present: Callable[[str], bool], out: IO[bytes]) -> None:
        with self._alone():
            self.layout.archive(names, present, out)

    @staticmethod
    def _alone() -> AbstractContextManager[None]:
        """What goes into the layout drops what no image uses, perhaps under the hands of one who reads."""
        return lock(cache_root() / "layout.lock", "another command is moving images")


class Docker(Engine):
    def build(self, recipe: Recipe, context: Path, step: Step) -> None:
        follow(["docker", "build", *recipe.arguments(), str(context)], step.advance)

    def fingerprint(self, name: str) -> str:
        return self._inspect(name, f'{{{{index .Config.Labels "{FINGERPRINT_LABEL}"}}}}')

    def collect(self, name: str) -> None:
        if not self._inspect(name, "{{.Id}}"):
            raise ClusterError(f"Docker has no image {name}, build it first.")

    def digests(self, names: Sequence[str]) -> dict[str, str]:
        return {name: identity for name in names if (identity := self._inspect(name, "{{.Id}}"))}

    def archive(self, names: Sequence[str], present: Callable[[str], bool], out: IO[bytes]) -> None:
        command = ["docker", "save", *names]
        saved = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
        if saved.returncode:
            raise failure(command, saved.returncode, saved.stderr)

    @staticmethod
    def _inspect(name: str, form: str) -> str:
        command = ["docker", "image", "inspect", "--format", form, name]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
