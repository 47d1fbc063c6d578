"""Reading a SynapseTenant, and what a stored one that breaks the schema becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from synapse_operator.api.tenant import InvalidTenant, SynapseTenant, read_tenant
from tests.builders import a_tenant, a_tenant_body

SAMPLE = Path(__file__).parents[3] / "manifests" / "samples" / "tenants.yaml"


def test_a_tenant_is_read_with_its_defaults() -> None:
    tenant = a_tenant("acme")
    assert tenant.tenant_id == "acme"
    assert tenant.spec.scale_ref.name == "demo"
    spec = tenant.spec
    assert (spec.name, spec.max_queued_runs, spec.max_concurrent_runs, spec.priority) == (None, 1000, 100, 0)


def test_an_id_of_its_own_takes_the_place_of_the_name() -> None:
    assert a_tenant("acme", tenantId="Acme & Söhne {x}").tenant_id == "Acme & Söhne {x}"


def test_a_field_of_a_newer_release_is_ignored() -> None:
    assert isinstance(read_tenant(a_tenant_body("acme", rateLimitRps=10)), SynapseTenant)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"maxQueuedRuns": -1}, "spec.maxQueuedRuns: input should be greater than or equal to 0"),
        ({"scaleRef": {}}, "spec.scaleRef.name: field required"),
        ({"tenantId": "x" * 256}, "spec.tenantId: string should have at most 255 characters"),
    ],
)
def test_an_invalid_tenant_is_a_value_with_a_sentence(spec: dict[str, object], sentence: str) -> None:
    invalid = read_tenant(a_tenant_body("acme", **spec))
    assert isinstance(invalid, InvalidTenant)
    assert (invalid.metadata.name, invalid.sentence) == ("acme", sentence)


def test_the_sample_is_readable() -> None:
    found = [
        read_tenant({**document, "metadata": {**document["metadata"], "uid": "u"}})
        for document in yaml.safe_load_all(SAMPLE.read_text(encoding="utf-8"))
    ]
    assert [tenant.tenant_id for tenant in found if isinstance(tenant, SynapseTenant)] == [
        "team-marketing",
        "Acme & Söhne / Köln",
    ]
