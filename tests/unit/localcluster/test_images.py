"""Fingerprints, names and the layout that images are kept in."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from localcluster import images
from localcluster.engines import Recipe
from localcluster.images import Image, fingerprint
from localcluster.loading import full_name, parse_listing
from localcluster.ocilayout import CONTAINERD_ANNOTATION, Layout
from localcluster.wheels import platforms


def nothing(_: Path) -> None:
    """No build context."""


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    monkeypatch.setattr(images, "REPOSITORY", tmp_path)
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "code.py").write_text("one")
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    return Image("localhost/unit:dev", tmp_path / "Dockerfile", nothing, inputs=(sources,))


def test_bytecode_does_not_count(image: Image) -> None:
    before = fingerprint(image, "base")
    compiled = image.inputs[0] / "__pycache__"
    compiled.mkdir()
    (compiled / "code.pyc").write_text("bytecode")
    assert fingerprint(image, "base") == before


def test_sources_dockerfile_and_base_count(image: Image) -> None:
    prints = [fingerprint(image, "base"), fingerprint(image, "another base")]
    (image.inputs[0] / "code.py").write_text("two")
    prints.append(fingerprint(image, "base"))
    (image.inputs[0] / "code.py").chmod(0o755)
    prints.append(fingerprint(image, "base"))
    image.file.write_text("FROM scratch\nUSER 1")
    prints.append(fingerprint(image, "base"))
    assert len(set(prints)) == len(prints)


def test_a_program_stands_on_its_dependencies_and_they_on_the_base() -> None:
    for program in images.programs("registry/team", "v1", images.base()):
        assert program.name.startswith("registry/team/synapse-scale-")
        assert program.on is not None
        assert program.on.target == "runtime"
        assert program.on.on == images.base()


def test_a_recipe_is_said_in_the_words_of_both_builders() -> None:
    recipe = Recipe("localhost/unit:dev", Path("/f"), "runtime", {"BASE_IMAGE": "base"}, "abc", thin=False)
    words = recipe.arguments()
    assert words[:4] == ["--file", "/f", "--tag", "localhost/unit:dev"]
    assert words[-4:] == ["--target", "runtime", "--build-arg", "BASE_IMAGE=base"]
    assert "--target" not in Recipe("n", Path("/f"), "", {}, "abc", thin=True).arguments()


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("redis", "localhost/redis:latest"),
        ("redis:8", "localhost/redis:8"),
        ("localhost/redis", "localhost/redis:latest"),
        ("localhost:5000/redis", "localhost:5000/redis:latest"),
        ("localhost/redis:8", "localhost/redis:8"),
    ],
)
def test_a_short_name_is_completed(name: str, full: str) -> None:
    assert full_name(name) == full


def test_a_listing_of_containerd_is_read() -> None:
    listing = (
        "REF                    TYPE                                       DIGEST      SIZE      PLATFORMS   LABELS\n"
        "localhost/unit:dev     application/vnd.oci.image.manifest.v1+json sha256:abc  1.0 MiB   linux/amd64 -\n"
    )
    assert parse_listing(listing) == {"localhost/unit:dev": "sha256:abc"}


def test_wheels_for_older_c_libraries_fit() -> None:
    assert "manylinux_2_17_x86_64" in platforms("x86_64")
    assert all(platform.endswith("aarch64") for platform in platforms("aarch64"))


class Pushed:
    """An image as buildah leaves it in a folder."""

    def __init__(self, folder: Path, *layers: bytes, label: str = "") -> None:
        folder.mkdir()
        self.folder = folder
        config = self._blob(json.dumps({"config": {"Labels": {"print": label}}}).encode())
        manifest = {"mediaType": "m", "config": config, "layers": [self._blob(layer) for layer in layers]}
        (folder / "manifest.json").write_text(json.dumps(manifest))

    def _blob(self, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / digest).write_bytes(content)
        return {"digest": f"sha256:{digest}", "size": len(content)}


def archived(layout: Layout, name: str, *, lacking: bytes = b"") -> dict[str, bytes]:
    out = io.BytesIO()
    left_out = f"sha256:{hashlib.sha256(lacking).hexdigest()}"
    layout.archive([name], lambda digest: digest == left_out, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {entry.name: content.read() for entry in archive if (content := archive.extractfile(entry)) is not None}


def test_an_image_taken_in_comes_out_whole(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.take(Pushed(tmp_path / "one", b"base", b"code", label="abc").folder, "localhost/unit:dev")
    assert layout.label("localhost/unit:dev", "print") == "abc"
    assert layout.label("localhost/unit:dev", "other") == layout.label("localhost/none:dev", "print") == ""
    assert layout.identity("localhost/none:dev") == ""
    assert layout.identity("localhost/unit:dev").startswith("sha256:")
    entries = archived(layout, "localhost/unit:dev")
    (manifest,) = json.loads(entries["index.json"])["manifests"]
    assert manifest["annotations"][CONTAINERD_ANNOTATION] == "localhost/unit:dev"
    assert manifest["digest"] == layout.digests()["localhost/unit:dev"]
    assert {b"base", b"code"} < set(entries.values())


def test_what_the_other_end_has_is_left_out(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.take(Pushed(tmp_path / "one", b"base", b"code").folder, "localhost/unit:dev")
    entries = archived(layout, "localhost/unit:dev", lacking=b"base")
    assert b"base" not in entries.values()
    assert b"code" in entries.values()


def test_a_new_build_drops_what_only_the_old_one_used(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "layout")
    layout.take(Pushed(tmp_path / "one", b"base", b"old").folder, "localhost/unit:dev")
    layout.take(Pushed(tmp_path / "two", b"base").folder, "localhost/other:dev")
    layout.take(Pushed(tmp_path / "three", b"base", b"new").folder, "localhost/unit:dev")
    kept = {blob.read_bytes() for blob in (tmp_path / "layout" / "blobs" / "sha256").iterdir()}
    assert {b"base", b"new"} < kept
    assert b"old" not in kept
    assert set(layout.digests()) == {"localhost/unit:dev", "localhost/other:dev"}
