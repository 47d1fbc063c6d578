"""Scales with which nothing happens: between two whole looks it is enough to ask their stores whether that is still so.

A whole look costs a dozen requests to the API server and as many questions to the stores. A hundred scales, looked at
every few seconds, would cost a fifth of a core for nothing. Whether a scale is at rest is decided here, and so is when
that ends; what the stores are asked is `backends`', and a whole look is `reconcile`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import ConditionType
from synapse_operator.api.scale import SynapseScale
from synapse_operator.autoscale import Recent
from synapse_operator.backends import View
from synapse_operator.cluster.observe import Key
from synapse_operator.conditions import ConditionStatus
from synapse_operator.desired.manifest import Manifest
from synapse_operator.desired.model import Blocked, Desired
from synapse_operator.desired.shards import ShardState
from synapse_operator.observed import Observed, Unknown
from synapse_operator.plan import Plan

LONGEST_CHECK = timedelta(seconds=60)
"""What no watch tells is looked at so soon, however long the resync is: the marks in the stores must not run out."""

CHECKS = 5
"""Such checks until a whole look is due whatever happened: what the watch lost of a child is noticed then."""

_AT_REST = {
    ConditionType.READY: ConditionStatus.TRUE,
    ConditionType.RECONCILING: ConditionStatus.FALSE,
    ConditionType.STALLED: ConditionStatus.FALSE,
}

_MENDED_ELSEWHERE = (ConditionType.REDIS_SAFE, ConditionType.BACKEND_EXCLUSIVE)
"""What is amiss with the stores of a scale that is Ready; whoever mends it waits to see that it is."""


@dataclass(frozen=True, slots=True)
class Rest:
    """One scale at rest, as a whole look saw it.

    Attributes:
        scale: the scale.
        previous: its status.
        view: what its stores said.
        observed: what there was, without the children.
        rhythm: how soon to ask the stores again.
    """

    scale: SynapseScale
    previous: JsonObject
    view: View
    observed: Observed
    rhythm: timedelta


class Rests:
    """Which scales are at rest; in memory, so an operator that starts anew looks at each of them."""

    def __init__(self, resync: timedelta) -> None:
        """`resync` is the time between two looks at what no watch tells (Secrets, marks, settings), or longer."""
        self._check = min(resync, LONGEST_CHECK)
        self._resting: dict[Key, Rest] = {}
        self._looks: dict[Key, datetime] = {}
        """When the next whole look is due at the latest, of scales to which nothing happened since the last began."""
        self._checks: dict[Key, datetime] = {}

    def disturb(self, key: Key) -> None:
        """Something happened to a scale, or to what belongs to it."""
        self._resting.pop(key, None)
        self._looks.pop(key, None)

    def get(self, key: Key, now: datetime) -> Rest | None:
        """Return how a scale rests; None = a whole look is due."""
        rest = self._resting.get(key)
        return rest if rest is not None and now < self._looks[key] else None

    def begin(self, key: Key, now: datetime) -> None:
        """A whole look begins."""
        self._resting.pop(key, None)
        self._looks[key] = now + CHECKS * self._check

    def settle(self, key: Key, rest: Rest, now: datetime) -> None:
        """A whole look has left the scale at rest, unless something happened meanwhile."""
        if key in self._looks:
            self._resting[key] = rest
            self.checked(key, now)

    def check_due(self, key: Key, now: datetime, rhythm: timedelta) -> bool:
        """Return whether what no watch tells is to be looked at now, since `rhythm` from now would be too late."""
        return now + rhythm > self._checks[key]

    def checked(self, key: Key, now: datetime) -> None:
        """It was looked at."""
        self._checks[key] = now + self._check

    def forget(self, key: Key) -> None:
        """Forget a scale that is gone."""
        self.disturb(key)
        self._checks.pop(key, None)


def at_rest(
    scale: SynapseScale,
    desired: Desired | Blocked,
    observed: Observed,
    todo: Plan,
    recent: Mapping[str, Recent],
    previous: JsonObject,
) -> bool:
    """Return whether time alone brings nothing: only events, or what the stores say, can change a decision.

    Args:
        scale: the scale.
        desired: what it should have.
        observed: what a look saw.
        todo: what the look decided.
        recent: what was asked for lately; where more than now was, fewer workers are due some time.
        previous: the stored status, which still says it all.
    """
    if isinstance(desired, Blocked) or not todo.empty or todo.failures or scale.metadata.paused:
        return False
    if isinstance(observed.queues, Unknown) or any(each.queued or each.active for each in observed.queues.values()):
        return False
    if scale.spec.observability.pod_monitor.enabled:
        return False  # the one kind that is not watched
    if observed.pods or not all(shard.state is ShardState.ACTIVE for shard in desired.shards):
        return False
    if not all(_is_current(observed, manifest) for manifest in desired.manifests):
        return False  # it waits for its turn to replace pods
    if any(len(asked) > 1 for asked in recent.values()):
        return False
    said = {condition["type"]: condition["status"] for condition in previous.get("conditions") or ()}
    if any(said.get(type_) == ConditionStatus.FALSE for type_ in _MENDED_ELSEWHERE):
        return False
    return all(said.get(type_) == status for type_, status in _AT_REST.items())


def _is_current(observed: Observed, manifest: Manifest) -> bool:
    child = observed.child(manifest.ref)
    return child is not None and child.applied_hash == manifest.applied_hash
