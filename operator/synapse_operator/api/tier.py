"""The V2 API tier of a SynapseScale: `spec.api`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from synapse_operator.api.common import ApiModel, LocalObjectReference
from synapse_operator.api.overlay import AnnotationValue
from synapse_worker.contract import BY_NAME

API_PORT = int(BY_NAME["API_PORT"].default or 0)

MAX_API_REPLICAS = 100

MAX_KEY_ERRORS = 20
MAX_KEY_ERROR = 500


class ApiServiceSpec(ApiModel):
    """The Service that leads to the API."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP",
        description="Who reaches it: ClusterIP, NodePort or LoadBalancer, as of a Service. Default: ClusterIP.",
    )
    port: int = Field(
        default=API_PORT, ge=1, le=65_535, description=f"Its port. Range: 1 to 65535. Default: {API_PORT}."
    )
    annotations: dict[str, AnnotationValue] = Field(
        default={}, max_length=64, description="Its annotations, as load balancers read them. Default: none."
    )


class ApiTierSpec(ApiModel):
    """The V2 API, served by pods of the workers' image."""

    enabled: bool = Field(default=False, description="Whether the API is served. Default: false.")
    replicas: int = Field(
        default=2,
        ge=0,
        le=MAX_API_REPLICAS,
        description=f"Pods that serve it. Range: 0 to {MAX_API_REPLICAS}. Default: 2.",
    )
    service: ApiServiceSpec = Field(
        default_factory=ApiServiceSpec,
        description="The Service that leads to it. Default: within the cluster.",
        json_schema_extra={"default": {}},
    )
    keys_secret_ref: LocalObjectReference | None = Field(
        default=None,
        description=(
            "Secret whose entries are API keys: each the name of a key, with the value "
            '`{"token": "..", "tenantId": ".."}`; tenantId, of a key that speaks for one tenant only, may be left out. '
            "Only a hash of each token gets into PostgreSQL; what vanishes from the Secret is revoked within about a "
            "minute. Unset: keys are made by `synapse-worker keys`."
        ),
    )


KeyProblem = Annotated[str, Field(max_length=MAX_KEY_ERROR, description="What is wrong with one entry.")]


class ApiTierStatus(ApiModel):
    """The V2 API as it is."""

    desired: int = Field(ge=0, description="Pods that are wanted.")
    ready: int = Field(ge=0, description="Pods that answer their readiness probe.")
    service: str = Field(max_length=63, description="Name of its Service.")
    port: int = Field(ge=1, le=65_535, description="Port of its Service.")
    keys: int | None = Field(
        default=None,
        ge=0,
        description="API keys in PostgreSQL from keysSecretRef. Absent: none is named, or it cannot be asked.",
    )
    key_errors: tuple[KeyProblem, ...] = Field(
        default=(),
        max_length=MAX_KEY_ERRORS,
        description=f"Entries of the Secret that are no keys, the first {MAX_KEY_ERRORS}.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )
