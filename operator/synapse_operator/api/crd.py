"""The CustomResourceDefinitions, made from the models.

`python -m synapse_operator.api.crd --out crds` writes them, `--check crds` compares. Most of this module turns the
JSON schema that pydantic writes into the structural schema that the API server takes:

- `$ref` is inlined, `title` dropped;
- `T | None` becomes the schema of T on a field that is not required. It is not made nullable: the API server then
  drops a null that it is given (a server-side apply refuses it), so there is one way to leave a field out, and
  `has(self.field)` in a CEL rule means what it says;
- a default that says nothing (null, an empty list) is dropped; the default of an object is `{}`, which the API
  server fills with the defaults of its fields;
- what structural schemas do not know is refused here, at the model, and not by a server later.
"""

from __future__ import annotations

import sys

import yaml
from pydantic import BaseModel

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, Resource
from synapse_operator.api.generated import command_line
from synapse_operator.api.scale import SCALE_RESOURCE
from synapse_operator.api.tenant import TENANT_RESOURCE

RESOURCES = (SCALE_RESOURCE, TENANT_RESOURCE)

_MODULE = "synapse_operator.api.crd"

_KEPT = (
    "type",
    "format",
    "description",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "maxProperties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)
"""Keywords that mean the same to pydantic and to the API server, in the order in which they are written."""

_NESTED = ("properties", "items", "additionalProperties")

_UNTYPED = "x-kubernetes-int-or-string"
"""A quantity: a number or a text, and the only thing that has no type."""


def crd(resource: Resource) -> JsonObject:
    """Return the CustomResourceDefinition of `resource`."""
    schema = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {naming.API_VERSION}."},
            "kind": {"type": "string", "description": f"Always {resource.kind}."},
            "metadata": {"type": "object"},
            "spec": structural_schema(resource.spec),
            "status": structural_schema(resource.status),
        },
    }
    subresources: JsonObject = {"status": {}}
    if resource.scale is not None:
        subresources["scale"] = {
            "specReplicasPath": resource.scale.replicas,
            "statusReplicasPath": resource.scale.status_replicas,
            "labelSelectorPath": resource.scale.selector,
        }
    version = {
        "name": naming.VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [
            {
                "name": column.name,
                "type": column.type,
                "jsonPath": column.path,
                "description": column.description,
                "priority": 1 if column.wide else 0,
            }
            for column in resource.columns
        ],
        "subresources": subresources,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{resource.plural}.{naming.GROUP}",
            "labels": {"app.kubernetes.io/part-of": "synapse"},
        },
        "spec": {
            "group": naming.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": list(resource.short_names),
                "categories": ["synapse"],
            },
            "versions": [version],
        },
    }


def structural_schema(model: type[BaseModel]) -> JsonObject:
    """Return the structural schema of a model.

    Raises:
        ValueError: the model uses something that a structural schema cannot say.
    """
    document = model.model_json_schema(by_alias=True)
    return _structural(document, document.get("$defs", {}), model.__name__)


def _structural(schema: JsonObject, definitions: JsonObject, where: str) -> JsonObject:
    schema = _inlined(schema, definitions, where)
    result = {key: value for key, value in schema.items() if key in _KEPT}
    # The default of an object is one that the model says to be {}; an empty map says nothing.
    empty: tuple[object, ...] = (None, []) if "properties" in schema else (None, [], {})
    if result.get("default", ...) in empty:
        del result["default"]
    if schema.get("properties"):
        result["properties"] = {
            name: _structural(field, definitions, f"{where}.{name}") for name, field in schema["properties"].items()
        }
    if "items" in schema:
        result["items"] = _structural(schema["items"], definitions, f"{where}[]")
    if schema.get("additionalProperties") is True:  # of a model that keeps what it does not know
        result["x-kubernetes-preserve-unknown-fields"] = True
    elif "additionalProperties" in schema:
        result["additionalProperties"] = _structural(schema["additionalProperties"], definitions, f"{where}{{}}")
    unknown = sorted(schema.keys() - {*_KEPT, *_NESTED, "title", "$defs"})
    if unknown or ("type" not in result and _UNTYPED not in result):
        raise ValueError(f"{where}: a structural schema cannot say this: {', '.join(unknown) or 'no type'}")
    return {key: result[key] for key in (*_KEPT, *_NESTED) if key in result}


def _inlined(schema: JsonObject, definitions: JsonObject, where: str) -> JsonObject:
    """Replace `$ref` and `T | None` by what they stand for; what is said beside them wins."""
    while "$ref" in schema or "anyOf" in schema:
        beside = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
        if "$ref" in schema:
            target = definitions[schema["$ref"].removeprefix("#/$defs/")]
        else:
            choices = [choice for choice in schema["anyOf"] if choice != {"type": "null"}]
            if len(choices) != 1:
                raise ValueError(f"{where}: a structural schema has one type for each field")
            target = choices[0]
        schema = {**target, **beside}
    return schema


class _Dumper(yaml.SafeDumper):
    """Block style, lists indented below their key, no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def files() -> dict[str, str]:
    """Return what belongs into crds/: file name -> content."""
    header = f"# Generated from the models by `python -m {_MODULE} --out crds`; not to be edited.\n"

    def document(content: JsonObject) -> str:
        return header + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)

    rendered = {f"{naming.GROUP}_{resource.plural}.yaml": document(crd(resource)) for resource in RESOURCES}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(rendered),
    }
    return {**rendered, "kustomization.yaml": document(kustomization)}


if __name__ == "__main__":
    sys.exit(command_line(_MODULE, files()))
