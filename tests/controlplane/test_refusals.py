"""What a user does wrong is refused by the API server, in a sentence; what may be written is documented there.

The sentences belong to the CRD, so the operator need not run.
"""

from __future__ import annotations

import json

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.bad_specs import BAD_SPECS, GOOD, GOOD_SPECS, GOOD_URLS, BadSpec
from tests.controlplane.harness import ControlPlane, Json


def named(spec: Json) -> str:
    """A SynapseScale with this spec as text."""
    scale = harness.scale("default", "bad")
    scale["spec"] = spec
    return json.dumps(scale)


def test_the_spec_that_the_bad_ones_differ_from_is_accepted(plane: ControlPlane) -> None:
    for command in (("apply", "--server-side"), ("create",)):
        plane.kubectl(*command, "--dry-run=server", "-f", "-", stdin=named(GOOD))


@pytest.mark.parametrize("bad", BAD_SPECS, ids=lambda bad: bad.name)
def test_a_bad_spec_is_refused_with_the_sentence_that_says_why(plane: ControlPlane, bad: BadSpec) -> None:
    apply = plane.try_kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=named(bad.spec))
    assert apply.returncode != 0
    assert bad.sentence in apply.stderr
    create = plane.try_kubectl("create", "--validate=strict", "--dry-run=server", "-f", "-", stdin=named(bad.spec))
    assert create.returncode != 0
    assert (bad.create_sentence or bad.sentence) in create.stderr


@pytest.mark.parametrize("changes", [*GOOD_SPECS, *GOOD_URLS], ids=lambda changes: ",".join(changes))
def test_what_is_at_the_limits_is_accepted(plane: ControlPlane, changes: Json) -> None:
    for command in (("apply", "--server-side"), ("create", "--validate=strict")):
        plane.kubectl(*command, "--dry-run=server", "-f", "-", stdin=named({**GOOD, **changes}))


def test_the_longest_name_of_a_scale_is_accepted(plane: ControlPlane) -> None:
    scale = harness.scale("default", "a" * 253)
    plane.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(scale))
    scale["metadata"]["name"] += "a"
    refused = plane.try_kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=json.dumps(scale))
    assert "must be no more than 253 characters" in refused.stderr


def test_every_field_is_documented_by_kubectl_explain(plane: ControlPlane) -> None:
    """kubectl explain prints what the server publishes; asked there at once, and by kubectl for the main paths."""
    published = json.loads(plane.kubectl("get", "--raw", f"/openapi/v3/apis/{naming.API_VERSION}"))
    schemas = published["components"]["schemas"]
    (scale,) = (
        schema
        for schema in schemas.values()
        if any(kind["kind"] == naming.SCALE_KIND for kind in schema.get("x-kubernetes-group-version-kind", []))
    )
    undocumented = [
        path for part in ("spec", "status") for path, schema in fields(scale["properties"][part], part)
        if not schema.get("description")
    ]  # fmt: skip
    assert undocumented == []


def fields(schema: Json, path: str) -> list[tuple[str, Json]]:
    """All fields below and including `schema`, by path."""
    found = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        found += fields(child, f"{path}.{name}")
    for item in schema.get("items", {}).get("properties", {}).items():
        found += fields(item[1], f"{path}[].{item[0]}")
    return found


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("sscale", ["one Redis, one PostgreSQL"]),
        ("sscale.spec.workers", ["replicas", "concurrency", "jobTimeoutSeconds", "maxRetries", "drainTimeoutSeconds"]),
        ("sscale.spec.workers.concurrency", ["1 to 100"]),
        ("sscale.spec.workers.drainTimeoutSeconds", ["seconds", "0 to 86400", "300"]),
        ("sscale.spec.redis.urlSecretRef", ["Secret"]),
        ("sscale.status.conditions", ["Ready"]),
    ],
)
def test_kubectl_explain_says_unit_default_and_range(plane: ControlPlane, path: str, words: list[str]) -> None:
    said = " ".join(plane.kubectl("explain", path).split())
    assert [word for word in words if word not in said] == []


def test_nothing_here_left_an_object(plane: ControlPlane) -> None:
    assert plane.find("default", ["sscale"]) == []
