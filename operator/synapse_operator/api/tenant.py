"""SynapseTenant: what one tenant of a SynapseScale may use.

A tenant is any string that jobs bear as their tenant id; a SynapseTenant gives it a name and limits, as the form on a
main instance's settings page does, and both end in the same table. A tenant without one is not limited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ConfigDict, Field, ValidationError

from synapse_operator.api.common import (
    OBJECT_NAME,
    ApiModel,
    Condition,
    JsonObject,
    ObjectMeta,
    PrinterColumn,
    Resource,
    first_problem,
    rule,
)
from synapse_operator.api.reasons import ConditionType
from synapse_operator.api.scale import RATE_LIMIT
from synapse_operator.api.workers import WorkersOverride
from synapse_operator.naming import SCALE_KIND, SKIP_DRAIN_ANNOTATION, TENANT_KIND, TENANT_PLURAL
from synapse_worker.contract import BY_NAME

TENANT_ID_LENGTH = 255
"""Of the columns that hold one."""

NAME_LENGTH = 500

MAX_RUNS = BY_NAME["MAX_GLOBAL_QUEUE_DEPTH"].maximum or 0
"""No tenant can have more than all together."""

MAX_PRIORITY = 1000

MAX_DRAIN_SECONDS = 604_800


_OTHER_SCALE = rule(
    "self == oldSelf",
    "scaleRef.name cannot be changed, since the tenant's runs stay with their scale: create another SynapseTenant",
)
_OTHER_ID = rule(
    "has(self.tenantId) == has(oldSelf.tenantId) && (!has(self.tenantId) || self.tenantId == oldSelf.tenantId)",
    "tenantId cannot be set, changed or removed later, since the tenant's runs bear it: create another SynapseTenant",
)


def _no_nul(field: str) -> JsonObject:
    message = f"{field}: the character NUL is not accepted, since PostgreSQL cannot store it"
    return {"x-kubernetes-validations": [rule(r"!self.contains('\u0000')", message)]}


class ScaleReference(ApiModel):
    """A SynapseScale in the namespace of the resource."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=OBJECT_NAME,
        description="Name of a SynapseScale in the same namespace. Required; it cannot be changed.",
        json_schema_extra={"x-kubernetes-validations": [_OTHER_SCALE]},
    )


class SynapseTenantSpec(ApiModel):
    """What is wanted."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [_OTHER_ID]})

    scale_ref: ScaleReference = Field(description="The SynapseScale whose tenant this is. Required.")
    tenant_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=TENANT_ID_LENGTH,
        description=(
            f"The tenant id that jobs bear: any string of 1 to {TENANT_ID_LENGTH} characters. It cannot be changed. "
            "Unset: metadata.name."
        ),
        json_schema_extra=_no_nul("tenantId"),
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        max_length=NAME_LENGTH,
        description=f"A name for people to read, 1 to {NAME_LENGTH} characters. Unset: none.",
        json_schema_extra=_no_nul("name"),
    )
    max_queued_runs: int = Field(
        default=1000,
        ge=0,
        le=MAX_RUNS,
        description=(
            "Runs of the tenant that may wait; more are refused with 429 by who accepts them, that is a main instance, "
            f"which reads it from the table `tenants`. Range: 0 to {MAX_RUNS}. Default: 1000."
        ),
    )
    max_concurrent_runs: int = Field(
        default=100,
        ge=0,
        le=MAX_RUNS,
        description=(
            "Runs of the tenant that workers run at once, over all of them; more wait. 0 = none starts. Workers see a "
            f"change within seconds. Range: 0 to {MAX_RUNS}. Default: 100."
        ),
    )
    priority: int = Field(
        default=0,
        ge=0,
        le=MAX_PRIORITY,
        description=(
            "Weight of the tenant's own queue among those that a worker serves, less one: 1 gets twice the turns of 0. "
            f"Without a queue of its own it says nothing. Range: 0 to {MAX_PRIORITY}. Default: 0."
        ),
    )
    rate_limit_rps: int | None = Field(
        default=None,
        ge=RATE_LIMIT.minimum,
        le=RATE_LIMIT.maximum,
        description=(
            "Requests a second to the V2 API; more are refused with 429. "
            f"Range: {RATE_LIMIT.minimum} to {RATE_LIMIT.maximum}. Unset: as for every tenant."
        ),
    )
    workers: WorkersOverride | None = Field(
        default=None,
        description=(
            "Workers of the tenant's own, which serve its queue and no other; what is unset here is as in spec.workers "
            "of the SynapseScale. They need tenancy.isolation there. Unset: the tenant pool serves its queue."
        ),
    )
    drain_timeout_seconds: int = Field(
        default=3600,
        ge=0,
        le=MAX_DRAIN_SECONDS,
        description=(
            "Longest time in seconds that the deletion waits, under tenancy.isolation, until the tenant's queue is "
            "empty; new runs are refused meanwhile. What is left then is run by the tenant pool. The annotation "
            f"`{SKIP_DRAIN_ANNOTATION}` ends the wait. Range: 0 to {MAX_DRAIN_SECONDS}. Default: 3600."
        ),
    )


class SynapseTenantStatus(ApiModel):
    """What is the case, written by the operator only."""

    observed_generation: int | None = Field(
        default=None, ge=0, description="metadata.generation of the spec that this status was made for."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description="Ready; reasons: docs/crd-reference.md.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    tenant_id: str | None = Field(
        default=None, max_length=TENANT_ID_LENGTH, description="The tenant id that is in force."
    )
    queue: str | None = Field(
        default=None,
        max_length=TENANT_ID_LENGTH,
        description="Where the tenant's jobs wait. Absent: its SynapseScale is not known.",
    )
    served_by: str | None = Field(
        default=None,
        max_length=TENANT_ID_LENGTH,
        description=(
            "Which workers serve that: `shards` = those of the scale's queues, `tenants` = the tenant pool, else the "
            "Deployment of the tenant's own. Absent: as for queue."
        ),
    )
    queued_runs: int | None = Field(
        default=None,
        ge=0,
        description=(
            "Runs in PostgreSQL that wait for a worker, written at most every 60 seconds. Absent: it cannot be asked."
        ),
    )
    active_runs: int | None = Field(
        default=None,
        ge=0,
        description=(
            "Runs in PostgreSQL that a worker has, written at most every 60 seconds. Absent: it cannot be asked."
        ),
    )


class SynapseTenant(ApiModel):
    """One tenant of one SynapseScale. `status` is not read from here, as with a SynapseScale."""

    metadata: ObjectMeta
    spec: SynapseTenantSpec

    @property
    def tenant_id(self) -> str:
        """The tenant id that is in force."""
        return self.spec.tenant_id or self.metadata.name

    @property
    def terminating(self) -> bool:
        """Whether it is being deleted."""
        return self.metadata.deletion_timestamp is not None


@dataclass(frozen=True, slots=True)
class InvalidTenant:
    """A stored object that breaks the present schema, as an older CRD may have let in; fields as `InvalidScale`'s."""

    metadata: ObjectMeta
    sentence: str


def read_tenant(body: Mapping[str, object]) -> SynapseTenant | InvalidTenant:
    """Read a SynapseTenant as the API server sent it (its defaults are in it)."""
    metadata = ObjectMeta.model_validate(body["metadata"])
    try:
        return SynapseTenant(metadata=metadata, spec=SynapseTenantSpec.model_validate(body.get("spec") or {}))
    except ValidationError as error:
        return InvalidTenant(metadata, first_problem(error))


TENANT_RESOURCE = Resource(
    kind=TENANT_KIND,
    plural=TENANT_PLURAL,
    short_names=("stenant",),
    description=f"{TENANT_KIND}: one tenant of a {SCALE_KIND}, and what it may use.",
    spec=SynapseTenantSpec,
    status=SynapseTenantStatus,
    scale=None,
    columns=(
        PrinterColumn("Tenant", "string", ".status.tenantId", "The tenant id that is in force."),
        PrinterColumn("Scale", "string", ".spec.scaleRef.name", "The SynapseScale whose tenant it is."),
        PrinterColumn("Queue", "string", ".status.queue", "Where the tenant's jobs wait."),
        PrinterColumn("Served-By", "string", ".status.servedBy", "Which workers serve that."),
        PrinterColumn("Queued", "integer", ".status.queuedRuns", "Runs that wait; empty: PostgreSQL cannot be asked."),
        PrinterColumn("Active", "integer", ".status.activeRuns", "Runs that run; empty: PostgreSQL cannot be asked."),
        PrinterColumn("Max-Queued", "integer", ".spec.maxQueuedRuns", "Runs that may wait."),
        PrinterColumn("Max-Concurrent", "integer", ".spec.maxConcurrentRuns", "Runs that may run at once."),
        PrinterColumn(
            "Ready",
            "string",
            f'.status.conditions[?(@.type=="{ConditionType.READY}")].status',
            "Whether the tenant is in PostgreSQL as its spec says.",
        ),
        PrinterColumn("Age", "date", ".metadata.creationTimestamp", "Time since it was created."),
    ),
)
"""What the CRD says beside the schema."""
