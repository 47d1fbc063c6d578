"""What exists for one SynapseScale, read whole before anything is decided.

Frozen values only: `cluster.observe` and `backends` fill them in, `desired`, `plan` and `status` ask them
questions. "Could not be asked" is a value of its own here (`Unknown`, `NotTried`) and never zero, nothing
or missing: whoever mistakes the one for the other scales busy workers away.

The functions that read raw API objects (`Child.read`, `Pod.read`, `read_secret_key`) are pure too: they
take JSON as the API server sends it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.overlay import SecretPart
from synapse_operator.api.workers import WorkersOverride
from synapse_operator.api_keys import KeyEntries
from synapse_operator.naming import Kind, Ref
from synapse_worker.routing import Topology
from synapse_worker.sync.documents import SUFFIXES, Problem, Source


@dataclass(frozen=True, slots=True)
class Unknown:
    """Could not be asked; `sentence` says why, without a secret."""

    sentence: str


# ---- Secrets


@dataclass(frozen=True, slots=True)
class Found:
    """The value was there and is not empty."""

    value: SecretStr


@dataclass(frozen=True, slots=True)
class SecretMissing:
    """There is no such Secret; `sentence` says what to do."""

    sentence: str


@dataclass(frozen=True, slots=True)
class KeyMissing:
    """The Secret is there, the key is not or holds nothing; `sentence` says what to do."""

    sentence: str


SecretLookup = Found | SecretMissing | KeyMissing | Unknown


def read_secret_part(secret: JsonObject, part: SecretPart) -> SecretStr | None:
    """Return a part of a Secret as one text, whatever its bytes are; None = it is not there."""
    data = secret.get("data") or {}
    if not part.key:
        return SecretStr(json.dumps(data, sort_keys=True))
    return SecretStr(data[part.key]) if part.key in data else None


def read_secret_key(secret: JsonObject | None, selector: SecretKeySelector, content: str) -> SecretLookup:
    """Look up one key.

    Args:
        secret: the Secret as the API server sent it; None = it said 404.
        selector: which key of it.
        content: what should be there, for the sentence: `the URL`.
    """
    if secret is None:
        return SecretMissing(
            f"Secret {selector.name} does not exist in this namespace; create it with the key {selector.key}"
        )
    encoded = (secret.get("data") or {}).get(selector.key)
    if encoded is None:
        return KeyMissing(f"Secret {selector.name} has no key {selector.key}; add it, or name another key")
    try:
        text = base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return KeyMissing(f"key {selector.key} of Secret {selector.name} is not text; put {content} there")
    if not text.strip():
        return KeyMissing(f"key {selector.key} of Secret {selector.name} is empty; put {content} there")
    return Found(SecretStr(text))


# ---- sources of definitions


class SourceKind(StrEnum):
    """Kinds of objects that hold definitions."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # noqa: S105  # the name of a kind


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A source, by kind and name."""

    kind: SourceKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def read_source(ref: SourceRef, raw: JsonObject) -> tuple[Source, ...]:
    """Return the texts of a source, by key; keys with a suffix of something else hold no definitions.

    Args:
        ref: which source.
        raw: the ConfigMap or Secret as the API server sent it.
    """
    secret = ref.kind is SourceKind.SECRET
    data = raw.get("data") or {}
    texts: dict[str, str | None] = {key: _decoded(value) if secret else value for key, value in data.items()}
    texts |= dict.fromkeys(raw.get("binaryData") or {})
    return tuple(
        Source(str(ref), key, texts[key], takes_secrets=secret, shown=not secret)
        for key in sorted(texts)
        if "." not in key or key.lower().endswith(SUFFIXES)
    )


def _decoded(encoded: str) -> str | None:
    """Return a value of a Secret; None = it is no text."""
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except (binascii.Error, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """What became of the last sync of definitions.

    Attributes:
        at: when it ended, UTC.
        written: rows that it wrote or took back.
        total: definitions and settings that Postgres holds as the sources say.
        problems: what was not synced.
        not_found: whether a source does not exist.
        unreadable: whether a source could not be read.
        failure: why it ended early; "" = it did not.
        asked: value of the sync-now annotation that was carried out by it, or by one before; None = of none.
    """

    at: datetime
    written: int
    total: int
    problems: tuple[Problem, ...]
    not_found: bool
    unreadable: bool
    failure: str
    asked: str | None


# ---- Redis and Postgres, as the operator itself reaches them


@dataclass(frozen=True, slots=True)
class RedisAnswers:
    """Redis answered: `version` as text, `eviction_policy` ("" where it would not say); of a cluster, the worst.

    `clustered`: its keys live in hash slots, so stock arq workers cannot work beside ours; `masters`: nodes that hold
    keys, 0 = they cannot be told.
    """

    version: str
    eviction_policy: str
    clustered: bool = False
    masters: int = 0


@dataclass(frozen=True, slots=True)
class PostgresAnswers:
    """PostgreSQL answered; `schema_version` None = the tables do not exist yet."""

    schema_version: int | None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """It does not answer now; waiting may help. `sentence` holds no secret."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """Its URL is not accepted, or it answered and said no; somebody must change something."""

    sentence: str


@dataclass(frozen=True, slots=True)
class NotTried:
    """Nobody asked, since there was no URL to ask with."""

    sentence: str


RedisState = RedisAnswers | Unreachable | Unusable | NotTried
PostgresState = PostgresAnswers | Unreachable | Unusable | NotTried


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One queue.

    Attributes:
        queued: jobs that wait for a worker.
        active: jobs under a lease.
        parked: jobs of `queued` that wait because their tenants run as many as they may.
        oldest_seconds: how long the first one has been due; None = nothing waits.
    """

    queued: int
    active: int
    oldest_seconds: float | None
    parked: int = 0


@dataclass(frozen=True, slots=True)
class TopologyRecord:
    """The topology's row, which producers go by.

    Attributes:
        epoch: one more with each change.
        owner_uid: UID of the SynapseScale that the database belongs to; "" = nobody's any more.
        owner_gone: whether that one has been silent for so long that another may take over.
    """

    epoch: int
    topology: Topology
    enabled: bool
    owner_uid: str
    owner_gone: bool = False

    def is_free_for(self, uid: str) -> bool:
        """Whether the scale `uid` may write the row."""
        return self.owner_uid in ("", uid) or self.owner_gone


@dataclass(frozen=True, slots=True)
class Overview:
    """What Postgres knows over all queues.

    Attributes:
        dead_letters: unresolved rows of the dead-letter queue.
        slots: jobs that the workers which are online can run at once.
        active_jobs: jobs that these workers run, by their last heartbeat (at most 30 s old).
        open_jobs: jobs without an outcome.
        work_due: whether there is work without a job that only a worker does: a webhook to send, a deadline that has
            passed, runs that should have been removed a day ago.
    """

    dead_letters: int
    slots: int
    active_jobs: int
    open_jobs: int
    work_due: bool = False

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return self.open_jobs > 0 or self.work_due


# ---- tenants


@dataclass(frozen=True, slots=True)
class DedicatedTenant:
    """A tenant with workers of its own.

    Attributes:
        shard: what its workers and their Deployment are known by (`naming.tenant_shard`).
        tenant_id: the tenant's id, which names its queue.
        resource: name of its SynapseTenant.
        workers: what its workers have otherwise than those of the scale.
    """

    shard: str
    tenant_id: str
    resource: str
    workers: WorkersOverride


# ---- Kubernetes


@dataclass(frozen=True, slots=True)
class Child:
    """One object of ours, or one that bears our name.

    Attributes:
        version: its resourceVersion.
        owner_uid: UID of its controller; None = it has none.
        applied_hash: what our annotation on it says; None = not there.
        owned_fields: `fieldsV1` of our own apply in managedFields; None = we own nothing of it.
        created: creation time as the API server writes it (sorts as text).
        raw: the object.
    """

    ref: Ref
    uid: str
    version: str
    owner_uid: str | None
    applied_hash: str | None
    owned_fields: JsonObject | None
    terminating: bool
    created: str
    raw: JsonObject

    @classmethod
    def read(cls, kind: Kind, raw: JsonObject) -> Child:
        """Read an object as the API server sent it."""
        metadata = raw["metadata"]
        owners = [owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")]
        ours = [
            entry.get("fieldsV1")
            for entry in metadata.get("managedFields") or ()
            if entry.get("manager") == naming.FIELD_MANAGER
            and entry.get("operation") == "Apply"
            and not entry.get("subresource")
        ]
        return cls(
            ref=Ref(kind, metadata["namespace"], metadata["name"]),
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            owner_uid=owners[0]["uid"] if owners else None,
            applied_hash=(metadata.get("annotations") or {}).get(naming.HASH_ANNOTATION),
            owned_fields=ours[0] if ours else None,
            terminating="deletionTimestamp" in metadata,
            created=metadata.get("creationTimestamp") or "",
            raw=raw,
        )

    @property
    def others_set_replicas(self) -> bool:
        """Whether managedFields name somebody else who set a Deployment's replicas: an autoscaler, `kubectl scale`."""
        return any(
            "f:replicas" in (entry.get("fieldsV1") or {}).get("f:spec", {})
            for entry in self.raw["metadata"].get("managedFields") or ()
            if entry.get("manager") != naming.FIELD_MANAGER
        )


_POD_NAME = re.compile(r'pods "[^"]*" is forbidden')
"""How the server begins a refusal; the name is another at each attempt, and the status must not be."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a Deployment is, from its own status.

    Attributes:
        wanted: replicas in its spec.
        total: pods it has, old and new, without those that terminate.
        updated: pods of its current template.
        ready: pods that answer their readiness probe, old and new.
        current: whether the Deployment controller has seen the present spec.
        refusal: why pods cannot be created (quota, policy); None = they can.
        stuck: whether the Deployment controller has given up on it.
    """

    wanted: int
    total: int
    updated: int
    ready: int
    available: int
    current: bool
    refusal: str | None
    stuck: bool

    @classmethod
    def of(cls, child: Child) -> Rollout:
        """Read a Deployment."""
        spec, status = child.raw["spec"], child.raw.get("status") or {}
        failures = [
            _POD_NAME.sub(
                "a pod is forbidden", condition.get("message") or condition.get("reason") or "no reason is given"
            )
            for condition in status.get("conditions") or ()
            if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
        ]
        return cls(
            wanted=spec.get("replicas", 1),
            total=status.get("replicas", 0),
            updated=status.get("updatedReplicas", 0),
            ready=status.get("readyReplicas", 0),
            available=status.get("availableReplicas", 0),
            current=status.get("observedGeneration", 0) >= child.raw["metadata"].get("generation", 1),
            refusal=failures[0] if failures else None,
            stuck=any(
                condition.get("type") == "Progressing" and condition.get("status") == "False"
                for condition in status.get("conditions") or ()
            ),
        )

    @property
    def chosen(self) -> bool:
        """Whether the pods that go are known: no more are left than are wanted."""
        return self.current and self.total <= self.wanted

    @property
    def rolling(self) -> bool:
        """Whether pods are being replaced, and that gets on."""
        return (not self.current or self.updated < self.total) and not self.stuck

    @property
    def complete(self) -> bool:
        """Whether every pod is of the current template and available, and no old one is left."""
        return self.current and self.wanted == self.total == self.updated == self.available


class PodProblemKind(StrEnum):
    """Why a pod does not run, from what hinders it first to what hinders it last."""

    UNSCHEDULABLE = "Unschedulable"
    IMAGE = "Image"
    CONFIGURATION = "Configuration"
    CRASH = "Crash"


@dataclass(frozen=True, slots=True)
class PodProblem:
    """What hinders a pod; `sentence` is what kubelet or scheduler says, in our words."""

    kind: PodProblemKind
    sentence: str


_WAITING = {
    "ImagePullBackOff": PodProblemKind.IMAGE,
    "ErrImagePull": PodProblemKind.IMAGE,
    "ErrImageNeverPull": PodProblemKind.IMAGE,
    "InvalidImageName": PodProblemKind.IMAGE,
    "ImageInspectError": PodProblemKind.IMAGE,
    "RegistryUnavailable": PodProblemKind.IMAGE,
    "CreateContainerConfigError": PodProblemKind.CONFIGURATION,
    "CreateContainerError": PodProblemKind.CONFIGURATION,
    "RunContainerError": PodProblemKind.CONFIGURATION,
    "CrashLoopBackOff": PodProblemKind.CRASH,
}

_RESTARTS_OF_A_LOOP = 3
"""Restarts after which a container that is not ready counts as crashing, also between two back-offs."""

_MESSAGE_LENGTH = 400


@dataclass(frozen=True, slots=True)
class Pod:
    """One worker pod. A pod that terminates, or has ended, has no problem: it is on its way out.

    Attributes:
        shard: whose worker it is.
        deletion_cost: what we wrote there (`deletion_costs`); None = nothing.
    """

    name: str
    ready: bool
    terminating: bool
    problem: PodProblem | None
    shard: str = ""
    deletion_cost: int | None = None

    @classmethod
    def read(cls, raw: JsonObject) -> Pod:
        """Read a pod as the API server sent it."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
        terminating = "deletionTimestamp" in metadata
        gone = terminating or status.get("phase") in ("Succeeded", "Failed")
        return cls(
            name=metadata["name"],
            ready=conditions.get("Ready", {}).get("status") == "True",
            terminating=terminating,
            problem=None if gone else _pod_problem(metadata["name"], conditions, status),
            shard=(metadata.get("labels") or {}).get(naming.SHARD_LABEL, ""),
            deletion_cost=_our_deletion_cost(metadata),
        )


def _our_deletion_cost(metadata: JsonObject) -> int | None:
    """Return the deletion cost that we wrote; somebody else's is not ours to take away."""
    ours = any(
        f"f:{naming.DELETION_COST_ANNOTATION}"
        in (entry.get("fieldsV1") or {}).get("f:metadata", {}).get("f:annotations", {})
        for entry in metadata.get("managedFields") or ()
        if entry.get("manager") == naming.FIELD_MANAGER
    )
    text = (metadata.get("annotations") or {}).get(naming.DELETION_COST_ANNOTATION, "")
    return int(text) if ours and text.isdecimal() else None


def _pod_problem(name: str, conditions: Mapping[str, JsonObject], status: JsonObject) -> PodProblem | None:
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        return PodProblem(PodProblemKind.UNSCHEDULABLE, f"no node takes pod {name}: {_clip(scheduled.get('message'))}")
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        kind = _WAITING.get(waiting.get("reason", ""))
        if kind is None and container.get("restartCount", 0) >= _RESTARTS_OF_A_LOOP and not container.get("ready"):
            kind = PodProblemKind.CRASH
        if kind is PodProblemKind.CRASH:
            return PodProblem(kind, _crash_sentence(name, container))
        if kind is not None:
            return PodProblem(kind, f"pod {name} waits with {waiting['reason']}: {_clip(waiting.get('message'))}")
    return None


def _crash_sentence(name: str, container: JsonObject) -> str:
    ended = (container.get("lastState") or {}).get("terminated") or {}
    start = f"pod {name} was restarted {container.get('restartCount', 0)} times"
    if ended.get("reason") == "OOMKilled":
        return f"{start}: it used more memory than its limit"
    lines = [line.strip() for line in (ended.get("message") or "").splitlines() if line.strip()]
    code = f"it exited with code {ended['exitCode']}" if "exitCode" in ended else "it does not stay up"
    return f"{start}: {code}" + (f": {_clip(lines[-1])}" if lines else "")


def _clip(text: str | None) -> str:
    line = " ".join((text or "no reason is given").split())
    return line if len(line) <= _MESSAGE_LENGTH else line[: _MESSAGE_LENGTH - 1] + "…"


# ---- all of it


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that is known of one scale at one moment.

    Attributes:
        redis_url: the URL, from the Secret or (as `Found`) from the spec.
        postgres_url: the same for PostgreSQL.
        redis_ca: the certificates (PEM) that Redis is checked with; None = the system's.
        postgres_ca: the same for PostgreSQL.
        metrics_token: the token of the workers' metrics; None = they are open.
        otlp_headers: what a collector of traces is sent with each call; None = nothing.
        queues: figures by name, of every queue that may hold jobs whatever the topology says now.
        redis_owner: UID of the SynapseScale that Redis is marked with, after our own try to mark it.
        stored: settings that are saved in PostgreSQL and stand in for variables, by their key there.
        topology: the topology's row; None = the tables are there, and nobody has written it.
        behind: ids of producers that are alive and may still go by an older row.
        drained: shards that producers use no more and that have been empty for long enough (`drains`).
        recommended: workers of each shard that is scaled by its jobs, most that were asked for lately (`autoscale`).
        dedicated: the tenants that are to have workers of their own, by their shards.
        template_secrets: what the overlays' variables take from Secrets, without what is missing or cannot be read.
        children: found by label, and by name for those of `naming.expected_refs` that the list lacks.
        pods: all pods of the scale.
        api_keys: what the Secret of API keys holds; None = none is named.
        keys_left: hashes of API keys that were left alone, since they are somebody else's; unknown = PostgreSQL was not
            told of the keys.
        sync: the last sync of the sources that the spec names; None = this process has seen none.
        s3_keys: variable -> key of the S3 user, as far as the spec names a Secret with them.
    """

    redis_url: SecretLookup
    postgres_url: SecretLookup
    redis_ca: SecretLookup | None
    postgres_ca: SecretLookup | None
    redis: RedisState
    postgres: PostgresState
    queues: Mapping[str, QueueFigures] | Unknown
    overview: Overview | Unknown
    redis_owner: str | Unknown
    stored: Mapping[str, int | str | SecretStr] | Unknown
    topology: TopologyRecord | Unknown | None
    behind: tuple[str, ...] | Unknown
    drained: frozenset[str]
    children: tuple[Child, ...]
    pods: tuple[Pod, ...]
    metrics_token: SecretLookup | None = None
    otlp_headers: SecretLookup | None = None
    sync: SyncOutcome | None = None
    recommended: Mapping[str, int] = field(default_factory=dict)
    dedicated: Mapping[str, DedicatedTenant] = field(default_factory=dict)
    template_secrets: Mapping[SecretPart, SecretStr] = field(default_factory=dict)
    s3_keys: Mapping[str, SecretLookup] = field(default_factory=dict)
    api_keys: KeyEntries | SecretMissing | Unknown | None = None
    keys_left: frozenset[str] | Unknown = frozenset()
    # A scale of 64 shards has two hundred children, and each is looked up several times.
    _by_ref: Mapping[Ref, Child] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the children."""
        object.__setattr__(self, "_by_ref", {child.ref: child for child in self.children})

    def child(self, ref: Ref) -> Child | None:
        """Return the child with this kind and name."""
        return self._by_ref.get(ref)

    def of_kind(self, kind: Kind) -> tuple[Child, ...]:
        """Return the children of one kind, by name."""
        return tuple(sorted((c for c in self.children if c.ref.kind is kind), key=lambda c: c.ref.name))

    @property
    def queue(self) -> QueueFigures | Unknown:
        """The queues taken together."""
        if isinstance(self.queues, Unknown):
            return self.queues
        figures = self.queues.values()
        ages = [figure.oldest_seconds for figure in figures if figure.oldest_seconds is not None]
        return QueueFigures(
            queued=sum(figure.queued for figure in figures),
            active=sum(figure.active for figure in figures),
            oldest_seconds=max(ages, default=None),
            parked=sum(figure.parked for figure in figures),
        )

    @property
    def any_queued(self) -> bool:
        """Whether a queue is known to hold jobs."""
        return not isinstance(self.queue, Unknown) and bool(self.queue.queued or self.queue.active)

    @property
    def migrated(self) -> bool:
        """Whether PostgreSQL is known to hold the tables of this release, which workers make."""
        return isinstance(self.postgres, PostgresAnswers) and self.postgres.schema_version is not None

    @property
    def outdated(self) -> bool:
        """Whether PostgreSQL holds the tables of an older release: who works there cannot be asked until one starts."""
        return isinstance(self.postgres, PostgresAnswers) and not self.migrated and isinstance(self.overview, Unknown)

    @property
    def idle(self) -> bool | Unknown:
        """Whether nothing waits and nothing runs; unknown as soon as one of the stores cannot say."""
        if isinstance(self.queues, Unknown):
            return self.queues
        if isinstance(self.overview, Unknown):
            return self.overview
        busy = self.overview.has_work or any(figure.queued or figure.active for figure in self.queues.values())
        return not busy

    @property
    def rolling(self) -> bool:
        """Whether pods are being replaced, and nothing hinders that."""
        deployments = (child for child in self.of_kind(Kind.DEPLOYMENT) if not child.terminating)
        return self.pod_problem is None and any(Rollout.of(child).rolling for child in deployments)

    @property
    def pod_problem(self) -> PodProblem | None:
        """The problem to tell first: what comes first in a pod's life, then by name."""
        order = list(PodProblemKind)
        found = [(order.index(pod.problem.kind), pod.name, pod.problem) for pod in self.pods if pod.problem]
        return min(found, key=lambda item: item[:2])[2] if found else None
