"""What a user may lay over the worker pods: `spec.workers.template`, short and typed.

Only what clusters differ in (where pods run, what they may use, what they see) is here; probes, security context and
shutdown belong to the operator. What it sets itself wins: names that it uses are refused here by rules, and
`desired.deployment` merges the rest. What neither schema nor rules can say, the API server refuses when the
Deployment is applied, and its sentence is the condition.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, WithJsonSchema

from synapse_operator.api.common import (
    ApiModel,
    FreeForm,
    JsonObject,
    SecretKeySelector,
    rule,
)
from synapse_operator.naming import MOUNT_PATHS, POD_ANNOTATIONS, POD_LABELS, VOLUMES
from synapse_worker.contract import BY_NAME

OPERATOR_ENVIRONMENT = tuple(
    BY_NAME[name].name
    for name in (
        *("REDIS_URL", "SCALE_POSTGRES_URL", "PGBOUNCER_MODE", "REDIS_CA_FILE", "POSTGRES_CA_FILE"),
        *("WORKER_CONCURRENCY", "WORKER_JOB_TIMEOUT", "WORKER_MAX_RETRIES", "WORKER_DRAIN_SECONDS"),
        *("WORKER_HEALTH_PORT", "WORKER_QUEUE_SHARD", "NUM_QUEUE_SHARDS", "ENABLE_TENANT_ISOLATION"),
        *("DEFAULT_TENANT_ID", "K8S_MODE", "SYNAPSE_DATA_DIR", "PUBSUB_EVENT_TTL", "RUNS_RETENTION_DAYS"),
        *("OTLP_ENDPOINT", "METRICS_TOKEN", "API_PORT", "MAX_GLOBAL_QUEUE_DEPTH", "RATE_LIMIT_PER_TENANT_RPS"),
        *("S3_BUCKET", "S3_REGION", "S3_PREFIX", "S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY", "S3_ENDPOINT_URL"),
    )
)
"""Variables that a field of the spec stands for, or that pods must agree on."""

_ENTRIES = 64

_QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"

Quantity = Annotated[
    str | int,
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "maxLength": 32, "pattern": _QUANTITY, "description": "A quantity."}
    ),
]
"""A Kubernetes quantity, for example `500m`, `2` or `1Gi`."""

LabelValue = Annotated[
    str,
    Field(max_length=63, pattern=r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$", description="Value of a label."),
]
AnnotationValue = Annotated[str, Field(max_length=16384, description="Value of an annotation.")]


def _listed(names: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"'{name}'" for name in names) + "]"


class Toleration(ApiModel):
    """A taint that the pods tolerate, as in a pod's `tolerations`."""

    key: str | None = Field(default=None, max_length=317, description="Key of the taint. Unset: every key.")
    operator: Literal["Equal", "Exists"] | None = Field(
        default=None, description="Equal compares the value, Exists does not. Unset: Equal."
    )
    value: str | None = Field(default=None, max_length=63, description="Value of the taint. Unset: empty.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Which effect is tolerated. Unset: every effect."
    )
    toleration_seconds: int | None = Field(
        default=None,
        ge=0,
        le=31_536_000,
        description="Seconds that a NoExecute taint is tolerated. Range: 0 to 31536000. Unset: for ever.",
    )


class SpreadConstraint(ApiModel):
    """How the workers of one shard are spread, as in a pod's `topologySpreadConstraints`; they are what is counted."""

    topology_key: str = Field(
        min_length=1, max_length=317, description="Label of nodes, for example `topology.kubernetes.io/zone`."
    )
    max_skew: int = Field(
        default=1, ge=1, le=1000, description="Largest difference in pods. Range: 1 to 1000. Default: 1."
    )
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"] = Field(
        default="ScheduleAnyway",
        description="Whether a pod that cannot be placed so waits or starts anyway. Default: ScheduleAnyway.",
    )


class ConfigMapKeySelector(ApiModel):
    """One key of a ConfigMap in the namespace of the resource."""

    name: str = Field(min_length=1, max_length=253, description="Name of a ConfigMap in the same namespace.")
    key: str = Field(min_length=1, max_length=253, description="Key of the ConfigMap whose value is taken.")


class FieldSelector(ApiModel):
    """A field of the pod."""

    field_path: str = Field(min_length=1, max_length=253, description="Path of the field, for example `spec.nodeName`.")


class EnvironmentSource(ApiModel):
    """Where a variable's value comes from."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.fieldRef)].filter(x, x).size() == 1",
                    "workers.template.env: give exactly one of secretKeyRef, configMapKeyRef and fieldRef",
                )
            ]
        }
    )

    secret_key_ref: SecretKeySelector | None = Field(
        default=None, description="Key of a Secret. No default; give exactly one source."
    )
    config_map_key_ref: ConfigMapKeySelector | None = Field(
        default=None, description="Key of a ConfigMap. No default; give exactly one source."
    )
    field_ref: FieldSelector | None = Field(
        default=None, description="A field of the pod. No default; give exactly one source."
    )


class EnvironmentVariable(ApiModel):
    """One variable of the worker."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.value) || !has(self.valueFrom)",
                    "workers.template.env: give one of value and valueFrom, not both",
                ),
                rule(
                    f"!(self.name in {_listed(OPERATOR_ENVIRONMENT)})",
                    "workers.template.env: the operator sets this variable; use the field of the spec that stands "
                    "for it",
                ),
            ]
        }
    )

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
        description="Name of the variable, for example `LOG_LEVEL`; docs/environment.md lists those of the image.",
    )
    value: str | None = Field(
        default=None,
        max_length=32768,
        description="Its value; `$(NAME)` is expanded as in every pod. Unset: empty, or from valueFrom.",
    )
    value_from: EnvironmentSource | None = Field(
        default=None, description="Where its value comes from. No default; give this or value."
    )


class SourceReference(ApiModel):
    """A ConfigMap or Secret in the namespace of the resource."""

    name: str = Field(min_length=1, max_length=253, description="Name of the object in the same namespace.")
    optional: bool = Field(default=False, description="Whether it may be missing. Default: false.")


class EnvironmentFrom(ApiModel):
    """Variables from all keys of an object."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "has(self.secretRef) != has(self.configMapRef)",
                    "workers.template.envFrom: give exactly one of secretRef and configMapRef",
                )
            ]
        }
    )

    prefix: str | None = Field(default=None, max_length=253, description="Put before each name. Unset: nothing.")
    secret_ref: SourceReference | None = Field(
        default=None, description="A Secret. No default; give this or configMapRef."
    )
    config_map_ref: SourceReference | None = Field(
        default=None, description="A ConfigMap. No default; give this or secretRef."
    )


class Volume(FreeForm):
    """A volume: its name, and one source as in a pod's `volumes`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    f"!(self.name in {_listed(VOLUMES)})",
                    f"workers.template.volumes: the names {', '.join(VOLUMES)} are the operator's",
                )
            ]
        }
    )

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Name of the volume; beside it one source, for example `persistentVolumeClaim`.",
    )


class VolumeMount(ApiModel):
    """Where a volume is seen."""

    name: str = Field(min_length=1, max_length=63, description="Name of the volume.")
    mount_path: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^/",
        description=f"Folder in the container; {', '.join(MOUNT_PATHS)} are taken.",
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    f"!(self in {_listed(MOUNT_PATHS)})",
                    f"workers.template.volumeMounts: {', '.join(MOUNT_PATHS)} are the operator's",
                )
            ]
        },
    )
    sub_path: str | None = Field(default=None, max_length=1024, description="Part of the volume. Unset: all of it.")
    read_only: bool = Field(default=False, description="Whether it cannot be written. Default: false.")


class Resources(ApiModel):
    """Requests and limits of a worker's container."""

    requests: dict[str, Quantity] = Field(
        default={},
        max_length=_ENTRIES,
        description=(
            "What a node must have free, for example `cpu: 500m`. Default: cpu 100m and memory 256Mi, each only where "
            "neither requests nor limits name that resource."
        ),
    )
    limits: dict[str, Quantity] = Field(
        default={},
        max_length=_ENTRIES,
        description=(
            "What a worker may use at most, for example `memory: 4Gi`. Default: cpu 2 and memory 1Gi, each only where "
            "neither requests nor limits name that resource."
        ),
    )


class SecretPart(NamedTuple):
    """One key of a Secret, or ("") all of it."""

    name: str
    key: str = ""


class PodOverlay(ApiModel):
    """What is laid over the worker pods."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.serviceAccountName) || !has(self.serviceAccountAnnotations)"
                    " || size(self.serviceAccountAnnotations) == 0",
                    "workers.template: serviceAccountAnnotations are for the ServiceAccount that the operator makes; "
                    "annotate your own yourself, or leave serviceAccountName out",
                )
            ]
        }
    )

    labels: dict[str, LabelValue] = Field(
        default={},
        max_length=_ENTRIES,
        description="Labels of the pods beside the operator's own, which cannot be set. Default: none.",
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    f"!{_listed(POD_LABELS)}.exists(name, name in self)",
                    f"workers.template.labels: the labels {', '.join(POD_LABELS)} are the operator's",
                )
            ]
        },
    )
    annotations: dict[str, AnnotationValue] = Field(
        default={},
        max_length=_ENTRIES,
        description="Annotations of the pods beside the operator's own. Default: none.",
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    f"!{_listed(POD_ANNOTATIONS)}.exists(name, name in self)",
                    f"workers.template.annotations: {', '.join(POD_ANNOTATIONS)} are the operator's",
                )
            ]
        },
    )
    resources: Resources = Field(
        default_factory=Resources,
        description="Requests and limits of a worker. Default: room for ten jobs of the usual kind.",
        json_schema_extra={"default": {}},
    )
    node_selector: dict[str, LabelValue] = Field(
        default={}, max_length=_ENTRIES, description="Labels that a node must have. Default: none."
    )
    tolerations: tuple[Toleration, ...] = Field(
        default=(), max_length=_ENTRIES, description="Taints that the pods tolerate. Default: none."
    )
    affinity: FreeForm | None = Field(
        default=None,
        description="Node, pod and anti-affinity, as in a pod's `affinity`; checked when applied. Default: none.",
    )
    topology_spread_constraints: tuple[SpreadConstraint, ...] = Field(
        default=(),
        max_length=16,
        description=(
            "How the workers of a shard are spread. Default: over zones and over nodes, as far as there is room."
        ),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"],
        },
    )
    priority_class_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="PriorityClass of the pods. Unset: the cluster's default.",
    )
    service_account_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="ServiceAccount of the pods; its token is not mounted. Unset: one that the operator makes.",
    )
    service_account_annotations: dict[str, AnnotationValue] = Field(
        default={},
        max_length=_ENTRIES,
        description=(
            "Annotations of the ServiceAccount that the operator makes, for cloud roles, for example "
            "`eks.amazonaws.com/role-arn`. Only in spec.workers. Default: none."
        ),
    )
    env: tuple[EnvironmentVariable, ...] = Field(
        default=(),
        max_length=_ENTRIES,
        description="Variables of the worker beside those that the operator sets. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    env_from: tuple[EnvironmentFrom, ...] = Field(
        default=(),
        max_length=16,
        description="Variables from ConfigMaps and Secrets; what the operator sets wins. Default: none.",
    )
    volumes: tuple[Volume, ...] = Field(
        default=(),
        max_length=_ENTRIES,
        description="Volumes beside the operator's own. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    volume_mounts: tuple[VolumeMount, ...] = Field(
        default=(),
        max_length=_ENTRIES,
        description="Where the worker sees its volumes. Default: none.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["mountPath"]},
    )

    @property
    def secrets(self) -> tuple[SecretPart, ...]:
        """The Secrets that the variables take values from, which a worker reads at its start."""
        sources = (variable.value_from.secret_key_ref for variable in self.env if variable.value_from is not None)
        single = [SecretPart(source.name, source.key) for source in sources if source is not None]
        whole = [SecretPart(source.secret_ref.name) for source in self.env_from if source.secret_ref is not None]
        return tuple(dict.fromkeys((*single, *whole)))


def rendered(part: ApiModel) -> JsonObject:
    """Return a part of the overlay as the pod takes it: without what is not given and what only states a default.

    What is applied must be in the form in which the API server stores it, or it would look as if somebody had taken
    it away: an empty list or text is not stored.
    """
    written: JsonObject = part.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in written.items() if value not in ([], "", False)}
