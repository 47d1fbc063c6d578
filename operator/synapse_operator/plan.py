"""What is to be done to the cluster for one scale, as a value that can be looked at and counted.

`plan` compares what is wanted with what is there. It does nothing itself: `cluster.apply` carries it out and
answers with an `ApplyReport`, from which `status` tells the user.

When is an object applied? When it is not there, when its hash annotation is not ours, or when one of the fields
that we applied is no longer ours according to managedFields: whoever changes or removes a field of ours takes
it over. So the live object alone decides, a restarted operator writes nothing, and three things are left
alone that a comparison of values would fight for ever: defaults of the server, what an admission webhook
rewrites in our own request, and fields that others add (`kubectl rollout restart` is one).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import EventReason, Reason
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired.environment import SHARDS_TO_SERVE
from synapse_operator.desired.manifest import Manifest
from synapse_operator.desired.model import Blocked, Desired
from synapse_operator.desired.shards import Flip
from synapse_operator.naming import CONFIG_HASH_ANNOTATION, SCALE_KIND, Kind, Ref
from synapse_operator.observed import Child, Observed, Rollout, Unknown

LOOK_AGAIN = timedelta(seconds=15)
"""How soon figures are read again: the rhythm in which a status may show new ones."""

LOOK_AGAIN_AT_LOAD = timedelta(seconds=5)
"""The same where workers are counted by their jobs."""

LOOK_AGAIN_SOON = timedelta(seconds=2)
"""How soon when a child is still going away and nothing tells us when it is gone."""

ROLLING_AT_ONCE = 4
"""Deployments of one scale whose pods are replaced at a time: a rollout needs room for a quarter more pods."""


@dataclass(frozen=True, slots=True)
class Event:
    """One Kubernetes Event on the scale."""

    type: Literal["Normal", "Warning"]
    reason: EventReason
    message: str


class Cause(StrEnum):
    """Why an object is applied."""

    ABSENT = "absent"
    CHANGED = "changed"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Apply:
    """One server-side apply, forced.

    Attributes:
        manifest: what is applied.
        cause: why.
        event: posted once it has succeeded; None = not worth one.
        replaces: the live object; None = there is none. What somebody added can contradict what we apply (an `env`
            value beside our `valueFrom`, a second port with the name of ours), and an apply cannot take it away. So an
            apply that is refused as invalid (422) is preceded by a replacement (PUT) of this version, and repeated.
    """

    manifest: Manifest
    cause: Cause
    event: Event | None
    replaces: Child | None


@dataclass(frozen=True, slots=True)
class Resize:
    """A change of a Deployment's replicas alone, while the rest of its manifest waits for its turn.

    Attributes:
        child: the Deployment as it is; only this version is changed.
        replicas: workers that are wanted.
        event: posted once it has succeeded.
    """

    child: Child
    replicas: int
    event: Event


@dataclass(frozen=True, slots=True)
class Delete:
    """One deletion in the background, with the UID as precondition; "not found" and "another UID" are success."""

    ref: Ref
    uid: str


@dataclass(frozen=True, slots=True)
class Failure:
    """One object that is not as it should be; `sentence` is the server's or ours."""

    ref: Ref
    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: `delete`, `resize`, `apply`, up to the first failure; beside it `flip`.

    An object is preceded by what it needs, so a Deployment never starts pods whose ConfigMap was refused.

    Attributes:
        failures: what cannot be done at all; reported as it is.
        flip: how the topology's row is to be changed.
        wake_at: when to look again although nothing happened (UTC); None = the resync is enough.
    """

    delete: tuple[Delete, ...] = ()
    resize: tuple[Resize, ...] = ()
    apply: tuple[Apply, ...] = ()
    failures: tuple[Failure, ...] = ()
    flip: Flip | None = None
    wake_at: datetime | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is to be written."""
        return not (self.delete or self.resize or self.apply or self.flip)

    @property
    def creates(self) -> bool:
        """Whether something is to be made that was not there."""
        return any(step.replaces is None for step in self.apply)

    @property
    def rolls(self) -> bool:
        """Whether pods that are there are to be replaced."""
        return any(
            step.replaces is not None
            and step.manifest.ref.kind is Kind.DEPLOYMENT
            and _config_hash(step.replaces.raw) != _config_hash(step.manifest.body)
            for step in self.apply
        )


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What became of a plan.

    Attributes:
        applied: what was written.
        failures: those of the plan, and what the API server refused.
        flip_failure: why the topology's row could not be changed; "" = it was, or did not have to be.
    """

    applied: tuple[Ref, ...] = ()
    failures: tuple[Failure, ...] = ()
    flip_failure: str = ""


def plan(
    scale: SynapseScale, desired: Desired | Blocked, observed: Observed, now: datetime, *, may_roll: bool = True
) -> Plan:
    """Return what brings `observed` to `desired`.

    Args:
        scale: the scale; one that terminates gets an empty plan, since owner references do the work, and so does one
            that is paused.
        desired: what is wanted; `Blocked` leaves the children as they are.
        observed: what is there.
        now: the present time, UTC.
        may_roll: whether pods may be replaced now, or other scales are at it.
    """
    if scale.terminating:
        return Plan()
    if isinstance(desired, Blocked) or scale.metadata.paused:
        return Plan(wake_at=now + LOOK_AGAIN)
    deletions = [*_superseded_config_maps(scale, desired, observed), *_unwanted(scale, desired, observed)]
    applies: list[Apply] = []
    resizes: list[Resize] = []
    failures: list[Failure] = []
    leaving = False
    rolls = _Rolls(desired, observed, ROLLING_AT_ONCE if may_roll else 0)
    for manifest in desired.manifests:
        child = observed.child(manifest.ref)
        if child is None:
            applies.append(Apply(manifest, Cause.ABSENT, _creation(manifest), None))
        elif child.terminating:
            # Applying to it would be lost with it; it is created again when it is gone.
            leaving = True
        elif not _ours(scale, child):
            failures.append(_name_taken(child))
        elif _spoilt(child, manifest):
            # Immutable: what somebody else put there under our name can only be replaced.
            deletions.append(Delete(child.ref, child.uid))
            applies.append(Apply(manifest, Cause.DRIFTED, _repair(manifest), None))
        elif child.applied_hash != manifest.applied_hash and not rolls.may_change(child, manifest):
            # Its turn comes when another one is through; the number of its workers does not wait for that.
            resizes += _resized(child, manifest)
        elif child.applied_hash != manifest.applied_hash:
            applies.append(Apply(manifest, Cause.CHANGED, _change(child, manifest), child))
        elif not owns(child.owned_fields, manifest.body):
            applies.append(Apply(manifest, Cause.DRIFTED, _repair(manifest), child))
    return Plan(
        delete=tuple(deletions),
        resize=tuple(resizes),
        apply=tuple(applies),
        failures=tuple(failures),
        flip=desired.flip,
        wake_at=now + (LOOK_AGAIN_SOON if leaving or desired.flip else _rhythm(scale, desired)),
    )


def _rhythm(scale: SynapseScale, desired: Desired) -> timedelta:
    """Return how soon figures are read again."""
    modes = (shard.workers.autoscaling for shard in desired.shards)
    by_load = any(each.mode == "BuiltIn" and not each.paused for each in modes)
    return LOOK_AGAIN_AT_LOAD if by_load and scale.spec.enabled else LOOK_AGAIN


class _Rolls:
    """Counts the Deployments whose pods are being replaced, so that no more than `most` are at a time."""

    def __init__(self, desired: Desired, observed: Observed, most: int) -> None:
        self._most = most
        children = (observed.child(manifest.ref) for manifest in desired.manifests)
        deployments = [child for child in children if child is not None and child.ref.kind is Kind.DEPLOYMENT]
        self._rolling = {child.ref for child in deployments if not Rollout.of(child).complete}

    def may_change(self, child: Child, manifest: Manifest) -> bool:
        """Whether a child may be changed now; one that rolls anyway may, since that may be what repairs it."""
        if child.ref.kind is not Kind.DEPLOYMENT or child.ref in self._rolling:
            return True
        if _config_hash(child.raw) == _config_hash(manifest.body):
            return True  # no pod is replaced
        if len(self._rolling) >= self._most:
            return False
        self._rolling.add(child.ref)
        return True


def owns(owned: JsonObject | None, body: JsonObject) -> bool:
    """Return whether managedFields still give us every field of `body`.

    Args:
        owned: `fieldsV1` of our apply; None = we own nothing.
        body: the manifest as it was applied.
    """
    if owned is None:
        return False
    # What identifies an object has no owner.
    metadata = {key: value for key, value in body["metadata"].items() if key not in ("name", "namespace")}
    content = {key: value for key, value in body.items() if key not in ("apiVersion", "kind", "metadata")}
    return _owned({"metadata": metadata, **content}, owned)


def _owned(value: object, owned: JsonObject) -> bool:
    """`owned` is the tree below a field of ours: empty for a leaf, or one that is replaced as a whole."""
    if not owned:
        return True
    if isinstance(value, dict):
        return all(f"f:{key}" in owned and _owned(item, owned[f"f:{key}"]) for key, item in value.items())
    if isinstance(value, list):
        return all(_item_owned(item, owned) for item in value)
    return True


def _item_owned(item: object, owned: JsonObject) -> bool:
    for field, below in owned.items():
        if field.startswith("k:") and isinstance(item, dict):
            keys = json.loads(field.removeprefix("k:"))
            # A key with a default (the protocol of a port) may be left out by us.
            if all(item.get(key, value) == value for key, value in keys.items()):
                return _owned(item, below)
        elif field.startswith("v:") and json.loads(field.removeprefix("v:")) == item:
            return True
    return False


def _ours(scale: SynapseScale, child: Child) -> bool:
    """Whether a child may be written: ours, or left behind by a scale of the same name that was deleted."""
    owners = child.raw["metadata"].get("ownerReferences") or ()
    by_name = any(owner.get("kind") == SCALE_KIND and owner.get("name") == scale.metadata.name for owner in owners)
    # Without an owner but with fields that we applied: somebody removed the owner reference.
    return child.owner_uid == scale.metadata.uid or by_name or (not owners and child.owned_fields is not None)


def _name_taken(child: Child) -> Failure:
    sentence = f"{child.ref} exists and does not belong to this SynapseScale; delete it, or rename the SynapseScale"
    return Failure(child.ref, Reason.NAME_TAKEN, sentence)


def _spoilt(child: Child, manifest: Manifest) -> bool:
    live = child.raw
    return bool(
        child.ref.kind is Kind.CONFIG_MAP and live.get("immutable") and live.get("data") != manifest.body["data"]
    )


def _superseded_config_maps(scale: SynapseScale, desired: Desired, observed: Observed) -> Iterator[Delete]:
    """Yield the ConfigMaps that no pod can need any more: all rollouts are over, and it is not the previous one.

    The previous one of each Deployment stays for the ReplicaSet that it keeps for `kubectl rollout undo`.
    """
    wanted = {manifest.ref: manifest for manifest in desired.manifests}
    for ref, manifest in wanted.items():
        if ref.kind is not Kind.DEPLOYMENT:
            continue
        live = observed.child(ref)
        if live is None or live.applied_hash != manifest.applied_hash or not Rollout.of(live).complete:
            return
    old = [
        child
        for child in observed.of_kind(Kind.CONFIG_MAP)
        if child.ref not in wanted and not child.terminating and child.owner_uid == scale.metadata.uid
    ]
    served = {_served(manifest.body) for manifest in desired.manifests if manifest.ref.kind is Kind.CONFIG_MAP}
    previous: set[str] = set()
    for child in sorted(old, key=lambda child: (child.created, child.ref.name), reverse=True):
        queues = _served(child.raw)
        if queues in served and queues not in previous:
            previous.add(queues)
        else:
            yield Delete(child.ref, child.uid)


def _served(config_map: JsonObject) -> str:
    """Return which queues the workers of an environment serve: to which Deployment it belongs."""
    found: str = (config_map.get("data") or {}).get(SHARDS_TO_SERVE, "")
    return found


def _unwanted(scale: SynapseScale, desired: Desired, observed: Observed) -> Iterator[Delete]:
    """Yield what is wanted no more; what must stay until its work is done, `desired` goes on wanting."""
    wanted = {manifest.ref for manifest in desired.manifests}
    for kind in (
        Kind.DEPLOYMENT,
        Kind.POD_DISRUPTION_BUDGET,
        Kind.SERVICE,
        Kind.NETWORK_POLICY,
        Kind.POD_MONITOR,
    ):
        for child in observed.of_kind(kind):
            if child.ref in wanted or child.terminating or child.owner_uid != scale.metadata.uid:
                continue
            if naming.TENANT_LABEL in (child.raw["metadata"].get("labels") or {}) and isinstance(
                observed.topology, Unknown
            ):
                continue  # the pool cannot be told now to serve that tenant
            yield Delete(child.ref, child.uid)


def _creation(manifest: Manifest) -> Event | None:
    if manifest.ref.kind is not Kind.DEPLOYMENT:
        return None
    return Event("Normal", EventReason.CREATED, f"Created {manifest.ref} with {_workers(manifest.body)}")


def _change(child: Child, manifest: Manifest) -> Event | None:
    if manifest.ref.kind is not Kind.DEPLOYMENT:
        return None
    if _config_hash(child.raw) == _config_hash(manifest.body):
        if "replicas" not in manifest.body["spec"]:
            return None  # handed over
        before, after = _workers(child.raw), _workers(manifest.body)
        scaled = Event("Normal", EventReason.SCALED, f"Scaled {manifest.ref} from {before} to {after}")
        return scaled if before != after else None
    return Event("Normal", EventReason.UPDATED, f"Updated {manifest.ref}, which rolls out new pods")


def _resized(child: Child, manifest: Manifest) -> list[Resize]:
    replicas = manifest.body["spec"].get("replicas")
    if replicas is None or replicas == Rollout.of(child).wanted:
        return []
    sentence = f"Scaled {manifest.ref} from {_workers(child.raw)} to {_workers(manifest.body)}"
    return [Resize(child, replicas, Event("Normal", EventReason.SCALED, sentence))]


def _repair(manifest: Manifest) -> Event:
    return Event("Warning", EventReason.REPAIRED, f"Put {manifest.ref} right, which somebody had changed")


def _workers(deployment: JsonObject) -> str:
    replicas = deployment["spec"].get("replicas", 1)
    role = deployment["metadata"]["labels"].get(naming.ROLE_LABEL)
    what = "pod" if role == naming.API_ROLE else "worker"
    return f"{replicas} {what}" if replicas == 1 else f"{replicas} {what}s"


def _config_hash(deployment: JsonObject) -> str | None:
    annotations = deployment["spec"]["template"]["metadata"].get("annotations") or {}
    found: str | None = annotations.get(CONFIG_HASH_ANNOTATION)
    return found
