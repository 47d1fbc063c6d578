"""The folder in the cache that holds every image built here, as an OCI image layout.

A layer that several images share, or that did not change since the last build,
is there once. What a containerd already has is left out of the archive for it,
so that loading a change of our own code moves kilobytes.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NAME_ANNOTATION = "org.opencontainers.image.ref.name"
# containerd takes this one as the whole name, where the other may be a tag alone.
CONTAINERD_ANNOTATION = "io.containerd.image.name"


LAYOUT_VERSION = {"imageLayoutVersion": "1.0.0"}


@dataclass(frozen=True)
class Layout:
    root: Path

    def _index(self) -> list[dict[str, Any]]:
        try:
            return list(json.loads((self.root / "index.json").read_text())["manifests"])
        except FileNotFoundError:
            return []

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _read(self, digest: str) -> dict[str, Any]:
        return dict(json.loads(self._blob(digest).read_text()))

    def _entries(self) -> dict[str, dict[str, Any]]:
        entries = {entry.get("annotations", {}).get(NAME_ANNOTATION, ""): entry for entry in self._index()}
        entries.pop("", None)
        return entries

    def digests(self) -> dict[str, str]:
        """Every image by name, with the digest of its manifest."""
        return {name: str(entry["digest"]) for name, entry in self._entries().items()}

    def identity(self, name: str) -> str:
        """The hash by which builders know an image, that of its configuration; empty when there is no such image."""
        digest = self.digests().get(name)
        return str(self._read(digest)["config"]["digest"]) if digest else ""

    def label(self, name: str, label: str) -> str:
        """A label of an image; empty when there is no such image or label."""
        identity = self.identity(name)
        return str((self._read(identity)["config"].get("Labels") or {}).get(label, "")) if identity else ""

    def _parts(self, manifest: str) -> Iterator[str]:
        yield manifest
        content = self._read(manifest)
        for part in (content["config"], *content["layers"]):
            yield part["digest"]

    def archive(self, names: Sequence[str], present: Callable[[str], bool], out: IO[bytes]) -> None:
        """Writes the images as one archive, without the blobs that are `present` at the other end."""
        entries = self._entries()
        manifests = [
            {**entries[name], "annotations": {CONTAINERD_ANNOTATION: name, NAME_ANNOTATION: name}} for name in names
        ]
        blobs = {digest for entry in manifests for digest in self._parts(entry["digest"])}
        with tarfile.open(fileobj=out, mode="w|") as archive:
            _add(archive, "oci-layout", LAYOUT_VERSION)
            for digest in sorted(blobs):
                if not present(digest):
                    archive.add(self._blob(digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")
            _add(archive, "index.json", {"schemaVersion": 2, "manifests": manifests})

    def take(self, folder: Path, name: str) -> None:
        """Moves an image in that was pushed as plain files: a manifest and blobs named after their hash."""
        blobs = self.root / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        manifest = (folder / "manifest.json").read_bytes()
        content = json.loads(manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        (blobs / digest).write_bytes(manifest)
        for part in (content["config"], *content["layers"]):
            blob = self._blob(part["digest"])
            (folder / blob.name).replace(blob)
        entry = {
            "mediaType": content["mediaType"],
            "digest": f"sha256:{digest}",
            "size": len(manifest),
            "annotations": {NAME_ANNOTATION: name},
        }
        self._write([*(other for other_name, other in self._entries().items() if other_name != name), entry])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        (self.root / "oci-layout").write_text(json.dumps(LAYOUT_VERSION))
        partial = self.root / "index.partial"
        partial.write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
        partial.replace(self.root / "index.json")
        self.prune()

    def prune(self) -> None:
        """Removes the blobs that no image uses any more."""
        used = {self._blob(digest).name for entry in self._index() for digest in self._parts(entry["digest"])}
        for blob in list((self.root / "blobs" / "sha256").iterdir()):
            if blob.name not in used:
                blob.unlink()


def _add(archive: tarfile.TarFile, name: str, document: dict[str, Any]) -> None:
    content = json.dumps(document).encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
