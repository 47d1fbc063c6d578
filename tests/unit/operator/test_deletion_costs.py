"""Which pods are kept when there are to be fewer, and when the hint is taken away."""

from __future__ import annotations

from typing import Any

import pytest

from synapse_operator.deletion_costs import Cost, after_a_resize, before_a_resize, shrinking
from synapse_operator.naming import DELETION_COST_ANNOTATION, FIELD_MANAGER, SHARD_LABEL, Kind
from synapse_operator.observed import Child, Observed, Pod
from synapse_operator.plan import Plan, plan
from tests.builders import NOW, a_deployment_status, a_pod, a_scale, an_observed, children_of, what_is_desired


def _pod(name: str, cost: str | None = None, *, shard: str = "0", manager: str = FIELD_MANAGER, **metadata: Any) -> Pod:
    if cost is not None:
        owned = {"f:metadata": {"f:annotations": {f"f:{DELETION_COST_ANNOTATION}": {}}}}
        metadata["managedFields"] = [{"manager": manager, "operation": "Update", "fieldsV1": owned}]
        metadata["annotations"] = {DELETION_COST_ANNOTATION: cost}
    return a_pod(name, ready=True, labels={SHARD_LABEL: shard}, **metadata)


def _resized(before: int, after: int) -> Plan:
    observed = an_observed(children=children_of(what_is_desired(a_scale(spec={"workers": {"replicas": before}}))))
    scale = a_scale(spec={"workers": {"replicas": after}})
    return plan(scale, what_is_desired(scale, observed), observed, NOW)


@pytest.mark.parametrize(
    ("before", "after", "shards"),
    [(3, 2, ("0",)), (3, 0, ()), (3, 3, ()), (2, 3, ())],
    ids=["fewer", "none: all go", "the same", "more"],
)
def test_a_choice_is_made_when_some_go_and_some_stay(before: int, after: int, shards: tuple[str, ...]) -> None:
    assert shrinking(_resized(before, after)) == shards


def test_a_resize_beside_a_change_that_waits_is_one_too() -> None:
    observed = an_observed(children=children_of(what_is_desired(a_scale(spec={"workers": {"replicas": 3}}))))
    scale = a_scale(spec={"workers": {"replicas": 1}, "image": "other"})
    assert shrinking(plan(scale, what_is_desired(scale, observed), observed, NOW, may_roll=False)) == ("0",)


def test_a_new_deployment_is_no_resize() -> None:
    scale, observed = a_scale(), an_observed()
    assert shrinking(plan(scale, what_is_desired(scale, observed), observed, NOW)) == ()


def test_pods_cost_the_jobs_that_they_hold() -> None:
    pods = [
        _pod("busy"),
        _pod("busier", "2"),
        _pod("idle"),
        _pod("was-busy", "1"),
        _pod("same", "4"),
        _pod("other-shard", shard="1"),
        _pod("going", deletionTimestamp="2026-11-24T12:00:00Z"),
    ]
    held = {"busy": 1, "busier": 7, "same": 4, "other-shard": 3, "going": 2, "elsewhere": 9}
    assert before_a_resize(pods, ("0",), held) == (Cost("busy", 1), Cost("busier", 7), Cost("was-busy", None))


def test_somebody_elses_cost_is_left_alone() -> None:
    assert before_a_resize([_pod("theirs", "5", manager="kubectl")], ("0",), {}) == ()


def _settling(total: int, *, generation: int = 1) -> Observed:
    """A Deployment that is to have two workers and has `total`."""
    children = [
        Child.read(
            child.ref.kind,
            child.raw
            | {"status": a_deployment_status(total), "metadata": {**child.raw["metadata"], "generation": generation}},
        )
        if child.ref.kind is Kind.DEPLOYMENT
        else child
        for child in children_of(what_is_desired(a_scale(spec={"workers": {"replicas": 2}})))
    ]
    return an_observed(children=tuple(children), pods=(_pod("a", "1"), _pod("b"), _pod("c", "1", shard="9")))


@pytest.mark.parametrize(
    ("observed", "costs"),
    [(_settling(3), ()), (_settling(2, generation=2), ()), (_settling(2), (Cost("a", None),))],
    ids=["one is still to go", "not seen yet", "all gone"],
)
def test_costs_go_once_the_pods_that_go_are_chosen(observed: Observed, costs: tuple[Cost, ...]) -> None:
    assert after_a_resize(observed, shrinking=()) == costs
    assert after_a_resize(observed, shrinking=("0",)) == ()
