"""The workers of a SynapseScale: how many, with which settings, on which pods.

Ranges and defaults that the workers know too come from `synapse_worker.contract`. What is laid over their pods is
`overlay`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from synapse_operator.api.common import ApiModel, rule
from synapse_operator.api.overlay import PodOverlay
from synapse_worker.contract import BY_NAME, MAX_SHARDS, PROCESS_MARGIN_SECONDS, Variable

MAX_REPLICAS = 1000

DEFAULT_DRAIN_SECONDS = 300
"""Longer than the image's own default, which has to fit Docker: a model's answer may take minutes."""

CONCURRENCY = BY_NAME["WORKER_CONCURRENCY"]
JOB_TIMEOUT = BY_NAME["WORKER_JOB_TIMEOUT"]
MAX_RETRIES = BY_NAME["WORKER_MAX_RETRIES"]
DRAIN = BY_NAME["WORKER_DRAIN_SECONDS"]
HEALTH_PORT = BY_NAME["WORKER_HEALTH_PORT"]
DEFAULT_HEALTH_PORT = int(HEALTH_PORT.default or 0)


def accepted(variable: Variable) -> str:
    """Return the range of a variable as a sentence of a description."""
    return f"Range: {variable.minimum} to {variable.maximum}."


_CONCURRENCY = "Jobs that one worker runs at once."
_JOB_TIMEOUT = (
    "Seconds of work, over all workers that had the job and without waiting time, until a job is cancelled "
    "and its run is marked failed."
)
_MAX_RETRIES = (
    "Retries after a failed execution before the job goes to the dead-letter queue (3 = up to 4 executions); "
    "stopped or lost workers cost none."
)
_DRAIN = (
    "Longest time in seconds that a worker which is told to stop may stay inside one step; its jobs go to "
    f"other workers at the next step anyway. The pod's grace period is {PROCESS_MARGIN_SECONDS} seconds more."
)
_HEALTH_PORT = "Port of probes and metrics; the metrics Service follows it."

DEFAULT_STABILIZATION_SECONDS = 300
MAX_STABILIZATION_SECONDS = 3600
MAX_TARGET = 10_000


class AutoscalingSpec(ApiModel):
    """Who decides how many workers a shard has."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                # An object that is a default itself is looked at before its fields have theirs.
                rule(
                    "!has(self.mode) || self.mode != 'BuiltIn' || has(self.maxReplicas)",
                    "autoscaling: mode BuiltIn needs maxReplicas, the most workers that a shard may get",
                ),
                rule(
                    "!has(self.maxReplicas) || !has(self.minReplicas) || self.maxReplicas >= self.minReplicas",
                    "autoscaling: maxReplicas is less than minReplicas; give the same or more",
                ),
            ]
        }
    )

    mode: Literal["Off", "BuiltIn", "External"] = Field(
        default="Off",
        description=(
            "Off: as many as `replicas` says. BuiltIn: the operator goes by the jobs of the shard; `replicas` is not "
            "read. External: somebody else changes the Deployments, for example a HorizontalPodAutoscaler or KEDA; "
            "`replicas` is where a new Deployment begins. Default: Off."
        ),
    )
    min_replicas: int = Field(
        default=1,
        ge=0,
        le=MAX_REPLICAS,
        description=(
            "BuiltIn: fewest worker pods for each shard; 0 = none while there is nothing to do. "
            f"Range: 0 to {MAX_REPLICAS}. Default: 1."
        ),
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        le=MAX_REPLICAS,
        description=(
            "BuiltIn: most worker pods for each shard, at least minReplicas. "
            f"Range: 1 to {MAX_REPLICAS}. No default; required with BuiltIn."
        ),
    )
    target_jobs_per_worker: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TARGET,
        description=(
            "BuiltIn: jobs, waiting or running, for each worker pod; more = fewer pods and longer queues. "
            f"Range: 1 to {MAX_TARGET}. Unset: the concurrency of the workers."
        ),
    )
    scale_down_stabilization_seconds: int = Field(
        default=DEFAULT_STABILIZATION_SECONDS,
        ge=0,
        le=MAX_STABILIZATION_SECONDS,
        description=(
            "BuiltIn: seconds for which fewer pods must have been enough before any is taken away; more are "
            f"started at once. Range: 0 to {MAX_STABILIZATION_SECONDS}. Default: {DEFAULT_STABILIZATION_SECONDS}."
        ),
    )
    paused: bool = Field(
        default=False,
        description=(
            "BuiltIn: true keeps the worker pods that there are, also when somebody changes a Deployment. "
            "Default: false."
        ),
    )


class WorkersSpec(ApiModel):
    """The workers of each shard."""

    replicas: int = Field(
        default=1,
        ge=0,
        le=MAX_REPLICAS,
        description=(
            "Worker pods for each shard; `kubectl scale` changes this field. 0 = no worker, jobs wait. Not read with "
            "autoscaling.mode BuiltIn. "
            f"Range: 0 to {MAX_REPLICAS}. Default: 1."
        ),
    )
    concurrency: int | None = Field(
        default=None,
        ge=CONCURRENCY.minimum,
        le=CONCURRENCY.maximum,
        description=(
            f"{_CONCURRENCY} {accepted(CONCURRENCY)} Unset: the setting stored in Postgres "
            f"(`{CONCURRENCY.stored}`), else {CONCURRENCY.default}."
        ),
    )
    job_timeout_seconds: int | None = Field(
        default=None,
        ge=JOB_TIMEOUT.minimum,
        le=JOB_TIMEOUT.maximum,
        description=(
            f"{_JOB_TIMEOUT} {accepted(JOB_TIMEOUT)} Unset: the setting stored in Postgres "
            f"(`{JOB_TIMEOUT.stored}`), else {JOB_TIMEOUT.default}."
        ),
    )
    max_retries: int | None = Field(
        default=None,
        ge=MAX_RETRIES.minimum,
        le=MAX_RETRIES.maximum,
        description=(
            f"{_MAX_RETRIES} {accepted(MAX_RETRIES)} Unset: the setting stored in Postgres "
            f"(`{MAX_RETRIES.stored}`), else {MAX_RETRIES.default}."
        ),
    )
    drain_timeout_seconds: int = Field(
        default=DEFAULT_DRAIN_SECONDS,
        ge=DRAIN.minimum,
        le=DRAIN.maximum,
        description=f"{_DRAIN} {accepted(DRAIN)} Default: {DEFAULT_DRAIN_SECONDS}.",
    )
    health_port: int = Field(
        default=DEFAULT_HEALTH_PORT,
        ge=HEALTH_PORT.minimum,
        le=HEALTH_PORT.maximum,
        description=f"{_HEALTH_PORT} {accepted(HEALTH_PORT)} Default: {DEFAULT_HEALTH_PORT}.",
    )
    autoscaling: AutoscalingSpec = Field(
        default_factory=AutoscalingSpec,
        description="Who decides how many worker pods a shard has. Default: `replicas`.",
        json_schema_extra={"default": {}},
    )
    template: PodOverlay = Field(
        default_factory=PodOverlay,
        description=(
            "What is laid over the worker pods; what the operator sets itself wins. When the API server refuses it, "
            "the pods stay as they are and the condition ChildrenApplied says why. Default: nothing."
        ),
        json_schema_extra={"default": {}},
    )

    def overridden(self, by: WorkersOverride) -> WorkersSpec:
        """Return these workers with what `by` says otherwise."""
        given = {name: getattr(by, name) for name in WorkersOverride.model_fields}
        return self.model_copy(update={name: value for name, value in given.items() if value is not None})


_UNSET = "Unset: as in spec.workers."


class WorkersOverride(ApiModel):
    """What some workers have otherwise than `spec.workers`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule(
                    "!has(self.template) || !has(self.template.serviceAccountAnnotations)"
                    " || size(self.template.serviceAccountAnnotations) == 0",
                    "template.serviceAccountAnnotations: all workers share one ServiceAccount; give them in "
                    "workers.template, or name another one in serviceAccountName",
                )
            ]
        }
    )

    replicas: int | None = Field(
        default=None,
        ge=0,
        le=MAX_REPLICAS,
        description=f"Worker pods for each of its shards. Range: 0 to {MAX_REPLICAS}. {_UNSET}",
    )
    concurrency: int | None = Field(
        default=None,
        ge=CONCURRENCY.minimum,
        le=CONCURRENCY.maximum,
        description=f"{_CONCURRENCY} {accepted(CONCURRENCY)} {_UNSET}",
    )
    job_timeout_seconds: int | None = Field(
        default=None,
        ge=JOB_TIMEOUT.minimum,
        le=JOB_TIMEOUT.maximum,
        description=f"{_JOB_TIMEOUT} {accepted(JOB_TIMEOUT)} {_UNSET}",
    )
    max_retries: int | None = Field(
        default=None,
        ge=MAX_RETRIES.minimum,
        le=MAX_RETRIES.maximum,
        description=f"{_MAX_RETRIES} {accepted(MAX_RETRIES)} {_UNSET}",
    )
    drain_timeout_seconds: int | None = Field(
        default=None,
        ge=DRAIN.minimum,
        le=DRAIN.maximum,
        description=f"{_DRAIN} {accepted(DRAIN)} {_UNSET}",
    )
    autoscaling: AutoscalingSpec | None = Field(
        default=None,
        description=(
            "Who decides how many worker pods each of its shards has; takes the place of workers.autoscaling as a "
            f"whole. {_UNSET}"
        ),
    )
    template: PodOverlay | None = Field(
        default=None,
        description=f"What is laid over its pods; takes the place of workers.template as a whole. {_UNSET}",
    )


class PoolSpec(WorkersOverride):
    """Some shards whose workers are otherwise than the rest."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="Name of the pool, shown in status.shards.",
    )
    shards: tuple[Annotated[int, Field(ge=0, le=MAX_SHARDS - 1, description="Index of a shard.")], ...] = Field(
        min_length=1,
        max_length=MAX_SHARDS,
        description=(
            f"Its shards, by index, 0 to {MAX_SHARDS - 1}; each shard is in one pool at most. One from queue.shards on "
            "counts while it is drained."
        ),
        json_schema_extra={"x-kubernetes-list-type": "set"},
    )
