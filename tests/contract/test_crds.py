"""The committed CRDs and their reference page are what the models say, and the models say all that they must.

Whether a real API server takes the CRD, and refuses what it should, is shown in tests/controlplane.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field
from sqlalchemy import Column, String

from synapse_operator.api import crd, reference
from synapse_operator.api.common import ApiModel, FreeForm, JsonObject, Resource
from synapse_operator.api.generated import command_line, out_of_step
from synapse_operator.api.overlay import Quantity
from synapse_operator.api.scale import SCALE_RESOURCE
from synapse_operator.api.tenant import TENANT_RESOURCE
from synapse_worker.connections import MINIMUM_REDIS
from synapse_worker.contract import BY_NAME, MAX_SHARDS
from synapse_worker.store import tables

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("module", "files", "folder"),
    [("synapse_operator.api.crd", crd.files(), "crds"), ("synapse_operator.api.reference", reference.files(), "docs")],
    ids=["crds", "docs"],
)
def test_what_is_committed_is_what_the_models_say(
    module: str, files: dict[str, str], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(module, files, ["--check", str(REPOSITORY / folder)]) == 0, capsys.readouterr().err


def test_a_check_names_the_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"a.yaml": "one\n", "b.yaml": "two\n"}
    assert command_line("some.module", files, ["--out", str(tmp_path / "new")]) == 0
    assert command_line("some.module", files, ["--check", str(tmp_path / "new")]) == 0
    (tmp_path / "new" / "a.yaml").write_text("edited\n")
    assert command_line("some.module", files, ["--check", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert f"a.yaml is out of step; run: python -m some.module --out {tmp_path / 'new'}" in said
    assert "b.yaml" not in said
    assert out_of_step(files, tmp_path / "nowhere") == ["a.yaml", "b.yaml"]


def test_kustomize_lists_every_crd() -> None:
    files = crd.files()
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert sorted([*listed, "kustomization.yaml"]) == sorted(files)
    assert {yaml.safe_load(files[name])["spec"]["names"]["kind"] for name in listed} == {
        resource.kind for resource in crd.RESOURCES
    }


# ---- the document


@pytest.fixture(params=crd.RESOURCES, ids=lambda resource: resource.kind)
def resource(request: pytest.FixtureRequest) -> Resource:
    found: Resource = request.param
    return found


def _version(resource: Resource) -> JsonObject:
    (version,) = crd.crd(resource)["spec"]["versions"]
    found: JsonObject = version
    return found


def _schema(resource: Resource) -> JsonObject:
    found: JsonObject = _version(resource)["schema"]["openAPIV3Schema"]
    return found


def _nodes(schema: JsonObject, path: str = "") -> Iterator[tuple[str, JsonObject]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from _nodes(below, f"{path}.{name}")
    if "items" in schema:
        yield from _nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from _nodes(schema["additionalProperties"], f"{path}{{}}")


@pytest.mark.parametrize(
    ("resource", "plural", "short"),
    [(SCALE_RESOURCE, "synapsescales", "sscale"), (TENANT_RESOURCE, "synapsetenants", "stenant")],
)
def test_names_are_those_of_the_design(resource: Resource, plural: str, short: str) -> None:
    document = crd.crd(resource)
    assert document["metadata"]["name"] == f"{plural}.scale.synapseorch.com"
    names = document["spec"]["names"]
    assert (names["plural"], names["shortNames"], names["categories"]) == (plural, [short], ["synapse"])
    assert document["spec"]["scope"] == "Namespaced"


def test_the_schema_is_structural(resource: Resource) -> None:
    for path, node in _nodes(_schema(resource)):
        assert ("type" in node) != node.get("x-kubernetes-int-or-string", False), path
        assert {"$ref", "anyOf", "allOf", "oneOf", "title", "const", "$defs", "nullable"}.isdisjoint(node), path
        assert not isinstance(node.get("exclusiveMinimum"), int | float), path


def test_every_field_is_described(resource: Resource) -> None:
    for path, node in _nodes(_schema(resource)):
        assert node.get("description") or path == ".metadata", path


def test_every_field_of_a_spec_states_its_default_and_its_range(resource: Resource) -> None:
    spec = _schema(resource)["properties"]["spec"]
    for path, node in _nodes(spec, "spec"):
        if path == "spec" or path.endswith(("[]", "{}")):
            continue
        parent, _, name = path.rpartition(".")
        required = name in dict(_nodes(spec, "spec"))[parent].get("required", ())
        text = node["description"]
        assert required or any(word in text for word in ("Default:", "Unset:", "No default")), path
        if node["type"] == "integer":
            assert f"Range: {node['minimum']} to {node['maximum']}" in text, path
        if "default" in node and node["type"] in ("integer", "boolean", "string"):
            default = str(node["default"])
            assert f"Default: {default.lower() if default in ('True', 'False') else default}" in text, path


def test_durations_name_their_unit(resource: Resource) -> None:
    for path, node in _nodes(_schema(resource)):
        if path.endswith("Seconds"):
            assert "econds" in node["description"], path


def test_strings_and_lists_of_a_spec_are_bounded(resource: Resource) -> None:
    """Unbounded ones make CEL rules too expensive for the API server, and objects too big for etcd."""
    for path, node in _nodes(_schema(resource)["properties"]["spec"]):
        assert node.get("type") != "string" or "maxLength" in node or "enum" in node, path
        assert node.get("type") != "array" or "maxItems" in node, path
        assert "additionalProperties" not in node or "maxProperties" in node, path


def _at(schema: JsonObject, path: str) -> JsonObject:
    node = schema
    for name in path.strip(".").split("."):
        node = node["properties"][name]
    return node


def test_the_scale_subresource_points_at_fields() -> None:
    scale, schema = _version(SCALE_RESOURCE)["subresources"]["scale"], _schema(SCALE_RESOURCE)
    assert _at(schema, scale["specReplicasPath"])["type"] == "integer"
    assert _at(schema, scale["statusReplicasPath"])["type"] == "integer"
    assert _at(schema, scale["labelSelectorPath"])["type"] == "string"


def test_a_tenant_has_a_status_and_cannot_be_scaled() -> None:
    assert _version(TENANT_RESOURCE)["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("resource", "shown", "wide"),
    [
        (SCALE_RESOURCE, "READY SHARDS WORKERS QUEUED ACTIVE AGE", "REDIS POSTGRES IMAGE REASON"),
        (TENANT_RESOURCE, "TENANT SCALE QUEUE SERVED-BY QUEUED ACTIVE MAX-QUEUED MAX-CONCURRENT READY AGE", ""),
    ],
)
def test_columns_are_those_of_the_design(resource: Resource, shown: str, wide: str) -> None:
    columns = _version(resource)["additionalPrinterColumns"]
    assert [column["name"].upper() for column in columns if column["priority"] == 0] == shown.split()
    assert [column["name"].upper() for column in columns if column["priority"] == 1] == wide.split()


def test_columns_point_at_fields(resource: Resource) -> None:
    for column in _version(resource)["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[")[0]
        if not path.startswith(".metadata"):
            assert _at(_schema(resource), path)["type"] in (column["type"], "array"), column["name"]


def test_conditions_merge_by_type(resource: Resource) -> None:
    conditions = _at(_schema(resource), ".status.conditions")
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert conditions["items"]["required"] == [
        "type",
        "status",
        "observedGeneration",
        "lastTransitionTime",
        "reason",
        "message",
    ]


# ---- in step with the worker


@pytest.mark.parametrize(
    ("path", "variable"),
    [
        ("workers.concurrency", "WORKER_CONCURRENCY"),
        ("workers.jobTimeoutSeconds", "WORKER_JOB_TIMEOUT"),
        ("workers.maxRetries", "WORKER_MAX_RETRIES"),
        ("workers.drainTimeoutSeconds", "WORKER_DRAIN_SECONDS"),
        ("queue.shards", "NUM_QUEUE_SHARDS"),
        ("retention.eventTtlSeconds", "PUBSUB_EVENT_TTL"),
        ("retention.runDays", "RUNS_RETENTION_DAYS"),
    ],
)
def test_ranges_are_those_of_the_worker(path: str, variable: str) -> None:
    field = _at(crd.structural_schema(SCALE_RESOURCE.spec), path)
    assert (field["minimum"], field["maximum"]) == (BY_NAME[variable].minimum, BY_NAME[variable].maximum)
    assert ("default" in field) == (BY_NAME[variable].stored is None)


@pytest.mark.parametrize(
    ("field", "column"),
    [
        ("tenantId", tables.tenants.c.tenant_id),
        ("tenantId", tables.orchestration_runs.c.tenant_id),
        ("name", tables.tenants.c.name),
    ],
)
def test_texts_of_a_tenant_fit_into_their_columns(field: str, column: Column[str]) -> None:
    assert isinstance(column.type, String)
    assert _at(crd.structural_schema(TENANT_RESOURCE.spec), field)["maxLength"] == column.type.length


def test_the_highest_shard_count_is_the_workers() -> None:
    assert _at(crd.structural_schema(SCALE_RESOURCE.spec), "queue.shards")["maximum"] == MAX_SHARDS


def test_the_oldest_redis_is_the_workers() -> None:
    needed = ".".join(str(part) for part in MINIMUM_REDIS)
    text = _at(crd.structural_schema(SCALE_RESOURCE.spec), "redis")["description"]
    assert f"version {needed} or newer" in text


# ---- the rewrite


class _Inner(ApiModel):
    """Inner."""

    name: str = Field(description="A name.")


class _Outer(ApiModel):
    """Outer."""

    maybe: _Inner | None = Field(default=None, description="Said at the field.")
    word: Literal["a", "b"] = Field(default="a", description="A word.")
    many: tuple[_Inner, ...] = Field(default=(), description="Many.")


def test_references_and_optionals_are_inlined() -> None:
    name = {"type": "string", "description": "A name."}
    inner = {"type": "object", "required": ["name"], "properties": {"name": name}}
    schema = crd.structural_schema(_Outer)
    assert schema["properties"] == {
        "maybe": inner | {"description": "Said at the field."},
        "word": {"type": "string", "description": "A word.", "default": "a", "enum": ["a", "b"]},
        "many": {"type": "array", "description": "Many.", "items": inner | {"description": "Inner."}},
    }


class _Maps(ApiModel):
    """Maps."""

    words: dict[str, Quantity] = Field(default={}, max_length=3, description="Words.")
    free: FreeForm | None = Field(default=None, description="Free.")


def test_maps_quantities_and_free_form_parts() -> None:
    schema = crd.structural_schema(_Maps)
    assert schema["properties"] == {
        "words": {
            "type": "object",
            "description": "Words.",
            "maxProperties": 3,
            "additionalProperties": {
                "description": "A quantity.",
                "maxLength": 32,
                "pattern": r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
                "x-kubernetes-int-or-string": True,
            },
        },
        "free": {"type": "object", "description": "Free.", "x-kubernetes-preserve-unknown-fields": True},
    }


@pytest.mark.parametrize("annotation", [int | str, float, object], ids=["two types", "exclusive bound", "anything"])
def test_what_a_structural_schema_cannot_say_is_refused_at_the_model(annotation: type) -> None:
    bound = Field(gt=0) if annotation is float else Field()
    model = type("Bad", (ApiModel,), {"__annotations__": {"field": annotation}, "field": bound})
    with pytest.raises(ValueError, match=r"Bad\.field: a structural schema"):
        crd.structural_schema(model)
