"""What all our custom resources share: the base model, references, metadata, conditions.

Fields are snake_case here and camelCase on the wire. Models are read from objects that the API server has
already checked, so they ignore what they do not know: after a downgrade of the operator, an object with a
newer field must still be served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from synapse_operator.naming import PAUSED_ANNOTATION, SKIP_DRAIN_ANNOTATION

JsonObject = dict[str, Any]
"""An object of the Kubernetes API as JSON; its shape is the API's, known only where it is read."""


def rule(expression: str, message: str) -> JsonObject:
    """Return a CEL rule for `x-kubernetes-validations`; `self` is the value that the rule stands at."""
    return {"rule": expression, "message": message}


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a spec, and where; never what was given, which might be a secret."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(["spec", *(str(part) for part in first["loc"])])
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}"


class ApiModel(BaseModel):
    """Base of everything that is part of a custom resource."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")


class FreeForm(ApiModel):
    """A part of a pod that is passed on as it is written; the API server judges it when it is applied."""

    model_config = ConfigDict(extra="allow")


class ObjectMeta(ApiModel):
    """The part of `metadata` that we read."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    resource_version: str = ""
    annotations: Mapping[str, str] = {}
    finalizers: tuple[str, ...] = ()

    @property
    def paused(self) -> bool:
        """Whether its children are to be left alone."""
        return self.annotations.get(PAUSED_ANNOTATION, "false") != "false"

    @property
    def skips_drain(self) -> bool:
        """Whether its deletion waits for nothing."""
        return self.annotations.get(SKIP_DRAIN_ANNOTATION, "false") != "false"


OBJECT_NAME = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


class SecretKeySelector(ApiModel):
    """One key of a Secret in the namespace of the resource."""

    name: str = Field(
        min_length=1, max_length=253, pattern=OBJECT_NAME, description="Name of a Secret in the same namespace."
    )
    key: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key of the Secret whose value is taken, for example `url`.",
    )


class LocalObjectReference(ApiModel):
    """An object in the namespace of the resource, by name."""

    name: str = Field(
        min_length=1, max_length=253, pattern=OBJECT_NAME, description="Name of an object in the same namespace."
    )


class Condition(ApiModel):
    """One condition, in the form of metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about; one entry for each type.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: int = Field(
        ge=0, description="metadata.generation of the spec that this is about; an older one = outdated."
    )
    last_transition_time: str = Field(
        json_schema_extra={"format": "date-time"}, description="When `status` last changed (not the message)."
    )
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, in one word for programs; docs/crd-reference.md lists all of them.",
    )
    message: str = Field(max_length=32768, description="Why, in a sentence for people, and what to do.")


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """A column of `kubectl get`; `wide` = only with `-o wide`."""

    name: str
    type: Literal["string", "integer", "date"]
    path: str
    description: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class ScaleSubresource:
    """Where `kubectl scale` finds what it needs."""

    replicas: str
    status_replicas: str
    selector: str


@dataclass(frozen=True, slots=True)
class Resource:
    """What a CRD says beside the schema of its fields; `crd` makes the document from it."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    description: str
    spec: type[ApiModel]
    status: type[ApiModel]
    scale: ScaleSubresource | None
    columns: tuple[PrinterColumn, ...]
