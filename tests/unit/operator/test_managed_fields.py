"""The fieldsV1 that `builders` makes up, against those that a real API server recorded.

managed_fields.json was written down from a kube-apiserver 1.37 after a server-side apply of the same manifests.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from synapse_operator.desired.manifest import Manifest
from synapse_operator.plan import owns
from tests.builders import a_scale, fields_of, what_is_desired

RECORDED = json.loads((Path(__file__).parent / "managed_fields.json").read_text())
OVERLAY = {
    "labels": {"team": "a"},
    "annotations": {"note": "b"},
    "env": [{"name": "LOG_LEVEL", "value": "debug"}],
    "volumes": [{"name": "models", "emptyDir": {}}],
    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    "tolerations": [{"operator": "Exists"}],
}
MANIFESTS = what_is_desired(
    a_scale(
        spec={
            "imagePullSecrets": [{"name": "reg"}],
            "networkPolicy": {"enabled": True},
            "observability": {"metricsAuth": "None"},
            "workers": {"template": OVERLAY},
        }
    )
).manifests


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.ref.kind.kind)
def test_the_builder_writes_what_the_server_writes(manifest: Manifest) -> None:
    assert fields_of(manifest.body) == RECORDED[manifest.ref.kind.kind]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.ref.kind.kind)
def test_what_the_server_recorded_is_ours(manifest: Manifest) -> None:
    assert owns(RECORDED[manifest.ref.kind.kind], manifest.body)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.ref.kind.kind)
def test_losing_any_single_field_is_noticed(manifest: Manifest) -> None:
    recorded = RECORDED[manifest.ref.kind.kind]
    paths = list(_leaves(recorded))
    assert paths
    for path in paths:
        assert not owns(_without(recorded, path), manifest.body), path


def test_owning_nothing_is_noticed() -> None:
    assert not owns(None, MANIFESTS[0].body)


def _leaves(tree: dict[str, object], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, below in tree.items():
        assert isinstance(below, dict)
        if below:
            found += _leaves(below, (*path, key))
        elif key != ".":
            found.append((*path, key))
    return found


def _without(tree: dict[str, object], path: tuple[str, ...]) -> dict[str, object]:
    """Return the tree as the server writes it after the loss: emptied branches are gone too."""
    key, rest = path[0], path[1:]
    copy = dict(tree)
    if rest:
        below = copy[key]
        assert isinstance(below, dict)
        smaller = _without(below, rest)
        if set(smaller) - {"."}:
            copy[key] = smaller
            return copy
    del copy[key]
    return copy
