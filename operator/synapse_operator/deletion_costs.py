"""Which worker pods are worth keeping when there are to be fewer: those that run jobs.

Kubernetes takes pods with a lower deletion cost first. What a pod costs is the number of jobs that its worker holds,
written right before a resize and taken away once the pods that go are chosen, since jobs come and go.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from synapse_operator.naming import SHARD_LABEL, Kind
from synapse_operator.observed import Observed, Pod, Rollout
from synapse_operator.plan import Plan


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost that a pod is to have; None = none."""

    pod: str
    jobs: int | None


def shrinking(plan: Plan) -> tuple[str, ...]:
    """Return the shards of which some workers go and some stay."""
    changes = [(step.child, step.replicas) for step in plan.resize]
    changes += [
        (step.replaces, step.manifest.body["spec"].get("replicas", 0))
        for step in plan.apply
        if step.manifest.ref.kind is Kind.DEPLOYMENT and step.replaces is not None
    ]
    return tuple(
        shard
        for child, replicas in changes
        if 0 < replicas < Rollout.of(child).wanted
        and (shard := (child.raw["metadata"].get("labels") or {}).get(SHARD_LABEL))
    )


def before_a_resize(pods: Iterable[Pod], shards: Collection[str], held: Mapping[str, int]) -> tuple[Cost, ...]:
    """Return what has to be written so that pods cost what they hold.

    Args:
        pods: those of the scale.
        shards: where workers go.
        held: worker id, which is its pod's name -> jobs that it holds.
    """
    return tuple(
        Cost(pod.name, held.get(pod.name))
        for pod in pods
        if pod.shard in shards and not pod.terminating and pod.deletion_cost != held.get(pod.name)
    )


def after_a_resize(observed: Observed, *, shrinking: Collection[str]) -> tuple[Cost, ...]:
    """Return what has to be taken away: costs of pods whose Deployment has as many as it is to have.

    Args:
        observed: what is there.
        shrinking: shards whose pods are to cost something now.
    """
    settled = {
        (child.raw["metadata"].get("labels") or {}).get(SHARD_LABEL)
        for child in observed.of_kind(Kind.DEPLOYMENT)
        if Rollout.of(child).chosen
    }
    return tuple(
        Cost(pod.name, None)
        for pod in observed.pods
        if pod.deletion_cost is not None and pod.shard in settled.difference(shrinking) and not pod.terminating
    )
