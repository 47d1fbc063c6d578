"""What a user does wrong is refused by the API server, in a sentence; what may be written is documented there.

The sentences belong to the CRD, so the operator need not run.
"""

from __future__ import annotations

import json

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.bad_specs import (
    BAD_SPECS,
    BAD_TENANTS,
    CHANGED_TENANTS,
    GOOD,
    GOOD_SPECS,
    GOOD_TENANT,
    GOOD_TENANTS,
    GOOD_URLS,
    BadSpec,
    BadTenant,
)
from tests.controlplane.harness import ControlPlane, Json


def named(spec: Json, kind: str = naming.SCALE_KIND) -> Json:
    """A SynapseScale, or another kind of ours, with this spec."""
    return {**harness.scale("default", "bad"), "kind": kind, "spec": spec}


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        *((naming.SCALE_KIND, {**GOOD, **stores}) for stores in ({}, *GOOD_URLS)),
        *((naming.TENANT_KIND, BadTenant("", changes, "").spec) for changes in ({}, *GOOD_TENANTS)),
    ],
)
def test_the_specs_that_the_bad_ones_differ_from_are_accepted(plane: ControlPlane, kind: str, good: Json) -> None:
    for create in (False, True):
        assert plane.api.refusal(named(good, kind), create=create) == ""


@pytest.mark.parametrize("bad", [*BAD_SPECS, *BAD_TENANTS], ids=lambda bad: bad.name)
def test_a_bad_spec_is_refused_with_the_sentence_that_says_why(plane: ControlPlane, bad: BadSpec) -> None:
    given = named(bad.spec, naming.TENANT_KIND if isinstance(bad, BadTenant) else naming.SCALE_KIND)
    assert bad.sentence in plane.api.refusal(given, create=False)
    assert (bad.create_sentence or bad.sentence) in plane.api.refusal(given, create=True)


@pytest.mark.parametrize("bad", [BAD_SPECS[0], BAD_TENANTS[0]], ids=lambda bad: bad.name)
def test_kubectl_shows_the_sentence(plane: ControlPlane, bad: BadSpec) -> None:
    given = json.dumps(named(bad.spec, naming.TENANT_KIND if isinstance(bad, BadTenant) else naming.SCALE_KIND))
    apply = plane.try_kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=given)
    assert apply.returncode != 0
    assert bad.sentence in apply.stderr
    create = plane.try_kubectl("create", "--validate=strict", "--dry-run=server", "-f", "-", stdin=given)
    assert create.returncode != 0
    assert (bad.create_sentence or bad.sentence) in create.stderr


@pytest.mark.parametrize("change", CHANGED_TENANTS, ids=lambda change: change.name)
def test_what_runs_depend_on_cannot_be_changed(plane: ControlPlane, change: BadTenant) -> None:
    plane.kubectl("create", "-f", "-", stdin=json.dumps(named(GOOD_TENANT, naming.TENANT_KIND)))
    try:
        replaced = plane.try_kubectl(
            "replace", "--dry-run=server", "-f", "-", stdin=json.dumps(named(change.spec, naming.TENANT_KIND))
        )
        assert replaced.returncode != 0
        assert change.sentence in replaced.stderr
        limits = {**GOOD_TENANT, "maxConcurrentRuns": 7}
        plane.kubectl("replace", "--dry-run=server", "-f", "-", stdin=json.dumps(named(limits, naming.TENANT_KIND)))
    finally:
        plane.kubectl("delete", "stenant", "bad", "-n", "default")


@pytest.mark.parametrize("changes", [*GOOD_SPECS, *GOOD_URLS], ids=lambda changes: ",".join(changes))
def test_what_is_at_the_limits_is_accepted(plane: ControlPlane, changes: Json) -> None:
    for create in (False, True):
        assert plane.api.refusal(named({**GOOD, **changes}), create=create) == ""


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
    for ours in (naming.SCALE_KIND, naming.TENANT_KIND):
        (found,) = (
            schema
            for schema in schemas.values()
            if any(kind["kind"] == ours for kind in schema.get("x-kubernetes-group-version-kind", []))
        )
        undocumented = [
            path for part in ("spec", "status") for path, schema in fields(found["properties"][part], part)
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
        ("stenant.spec", ["scaleRef", "tenantId", "maxQueuedRuns", "maxConcurrentRuns", "priority"]),
        ("stenant.spec.tenantId", ["1 to 255 characters", "metadata.name"]),
        ("stenant.spec.maxConcurrentRuns", ["0 to 100000000", "100"]),
    ],
)
def test_kubectl_explain_says_unit_default_and_range(plane: ControlPlane, path: str, words: list[str]) -> None:
    said = " ".join(plane.kubectl("explain", path).split())
    assert [word for word in words if word not in said] == []


def test_nothing_here_left_an_object(plane: ControlPlane) -> None:
    assert plane.find("default", ["sscale", "stenant"]) == []
