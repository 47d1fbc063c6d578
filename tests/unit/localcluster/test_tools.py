"""Cache keys and versions of the built programs."""

import pytest

from localcluster.tools import go_version, key, node_linker_flags

SOURCES = {"main.go": b"package main", "go.mod": b"module node"}


def test_equal_inputs_have_one_key_in_whatever_order() -> None:
    assert key(SOURCES, ["amd64"]) == key(dict(reversed(SOURCES.items())), ["amd64"])


@pytest.mark.parametrize(
    ("sources", "settings"),
    [
        ({**SOURCES, "main.go": b"package main "}, ["amd64"]),
        ({**SOURCES, "go.sum": b""}, ["amd64"]),
        (SOURCES, ["arm64"]),
        (SOURCES, ["amd64", ""]),
        ({"main.go": b"package maingo.mod", "": b"module node"}, ["amd64"]),
    ],
)
def test_a_change_of_any_input_changes_the_key(sources: dict[str, bytes], settings: list[str]) -> None:
    assert key(sources, settings) != key(SOURCES, ["amd64"])


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("module node\n\ngo 1.26.0\n", (1, 26, 0)),
        ("nothing of the kind", ()),
    ],
)
def test_go_tells_its_version(text: str, version: tuple[int, ...]) -> None:
    assert go_version(text) == version


def test_the_program_knows_which_kubernetes_it_is() -> None:
    flags = node_linker_flags("1.37.2")
    assert "gitVersion=v1.37.2" in flags
    assert "gitMajor=1" in flags
    assert "gitMinor=37" in flags
