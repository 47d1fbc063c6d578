"""The operator's settings, and the only place of this package that reads the environment.

Every variable has a default that suits the shipped manifests, except the worker image, which only the
release knows. A value that cannot be used stops the process with one sentence that names the variable
and what is accepted. What the workers read is another table: `synapse_worker.contract`.
"""

from __future__ import annotations

import re
import socket
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from synapse_operator.drains import EMPTY_FOR
from synapse_operator.status import FIGURES_EVERY

_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

Port = Annotated[int, Field(ge=1, le=65_535)]


class SettingsError(ValueError):
    """A variable that cannot be used; `str()` is one sentence for the person who set it."""


class Settings(BaseSettings):
    """What one operator process runs with. The name of a field in capitals is its variable."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, case_sensitive=False)

    worker_image: str = Field(min_length=1, description="image of worker pods whose SynapseScale names none")
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="namespaces to serve, comma-separated; empty = the whole cluster"
    )
    pod_namespace: str = Field(
        default="synapse-system", description="namespace of this process, which also holds its Lease"
    )
    pod_name: str = Field(
        default_factory=socket.gethostname, description="name of this process in the Lease and in Events"
    )
    kubeconfig: str = Field(
        default="", description="file to reach the API server by; empty = the pod's own service account"
    )
    health_port: Port = Field(default=8080, description="port of /livez and /readyz")
    metrics_port: Port = Field(default=9090, description="port of /metrics")
    resync_seconds: int = Field(
        default=60,
        ge=1,
        le=3600,
        description="seconds after which a scale is looked at again although nothing happened (plus or minus a tenth); "
        "60 bounds how long a rotated Secret or a store that came back goes unnoticed",
    )
    shard_empty_seconds: int = Field(
        default=int(EMPTY_FOR.total_seconds()),
        ge=1,
        le=3600,
        description="seconds for which a queue that producers use no more must have been empty before its workers go; "
        "longer than a producer takes from reading the topology to writing its job",
    )
    status_figures_seconds: int = Field(
        default=int(FIGURES_EVERY.total_seconds()),
        ge=1,
        le=3600,
        description="shortest time in seconds between two statuses of a scale that differ in figures or messages only; "
        "what changes a condition is written at once",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe log lines written"
    )
    log_format: Literal["json", "console"] = Field(default="json", description="form of log lines")

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        for name in names:
            if not _NAMESPACE.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a namespace; accepted: names separated by commas")
        return names


def load() -> Settings:
    """Read the settings of this process.

    Raises:
        SettingsError: the first variable that is missing or not accepted, in one sentence.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # the environment brings the missing argument
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        variable = str(first["loc"][0]).upper()
        if first["type"] == "missing":
            meaning = Settings.model_fields[variable.lower()].description
            raise SettingsError(f"{variable} is not set; it is required: {meaning}.") from None
        problem = first["msg"].removeprefix("Value error, ").removesuffix(".")
        raise SettingsError(f"{variable} is {first['input']!r}, which is not accepted: {problem}.") from None
