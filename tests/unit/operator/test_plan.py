"""What is applied and deleted, counted; and above all when nothing is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator.api.common import JsonObject
from synapse_operator.api.reasons import EventReason, Reason
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired import Blocked, Desired
from synapse_operator.desired.manifest import Manifest
from synapse_operator.naming import HASH_ANNOTATION, PAUSED_ANNOTATION, Kind
from synapse_operator.observed import Child, Found, Observed
from synapse_operator.plan import LOOK_AGAIN, LOOK_AGAIN_SOON, Cause, Event, Plan, plan
from tests.builders import (
    NOW,
    a_child,
    a_deployment_status,
    a_live_object,
    a_scale,
    an_observed,
    children_of,
    manifest_of,
    what_is_desired,
)

SCALE = a_scale()
DESIRED = what_is_desired(SCALE)


def _plan(*children: Child, scale: SynapseScale = SCALE, desired: Desired | Blocked = DESIRED) -> Plan:
    return plan(scale, desired, an_observed(children=children), NOW)


def _with(child: Child) -> tuple[Child, ...]:
    """Return all children as they should be, but for one."""
    return (*(other for other in children_of(DESIRED) if other.ref != child.ref), child)


def _edited(kind: Kind, edit: Any, *, lose: tuple[str, ...] = (), **metadata: Any) -> Child:
    """Return a child after somebody's edit, which took the ownership of `lose` from us."""
    live = a_live_object(manifest_of(DESIRED, kind), status=a_deployment_status(1), **metadata)
    edit(live)
    if lose:
        tree = live["metadata"]["managedFields"][0]["fieldsV1"]
        for key in lose[:-1]:
            tree = tree[key]
        del tree[lose[-1]]
    return Child.read(kind, live)


def _causes(made: Plan) -> list[tuple[Kind, Cause]]:
    return [(step.manifest.ref.kind, step.cause) for step in made.apply]


def test_a_new_scale_gets_everything_in_order() -> None:
    made = _plan()
    assert [step.manifest for step in made.apply] == list(DESIRED.manifests)
    assert {step.cause for step in made.apply} == {Cause.ABSENT}
    assert [step.event for step in made.apply if step.event] == [
        Event("Normal", EventReason.CREATED, "Created Deployment demo-worker-0-6f35e35b with 1 worker")
    ]


def test_a_scale_that_is_as_it_should_be_needs_nothing() -> None:
    made = _plan(*children_of(DESIRED))
    assert made.empty
    assert made == Plan(wake_at=NOW + LOOK_AGAIN)


@pytest.mark.parametrize("index", range(len(DESIRED.manifests)))
def test_a_deleted_child_comes_back_and_nothing_else_is_sent(index: int) -> None:
    children = children_of(DESIRED)
    made = _plan(*children[:index], *children[index + 1 :])
    assert [(step.manifest, step.cause) for step in made.apply] == [(DESIRED.manifests[index], Cause.ABSENT)]
    assert not made.delete


def _scale_to(replicas: int) -> Any:
    def edit(live: JsonObject) -> None:
        live["spec"]["replicas"] = replicas

    return edit


def _nothing(live: JsonObject) -> None:
    pass


DRIFTS = [
    pytest.param(_edited(Kind.DEPLOYMENT, _scale_to(9), lose=("f:spec", "f:replicas")), id="kubectl scale"),
    pytest.param(
        _edited(
            Kind.DEPLOYMENT,
            lambda live: live["metadata"]["labels"].clear(),
            lose=("f:metadata", "f:labels", "f:app.kubernetes.io/managed-by"),
        ),
        id="label removed",
    ),
    pytest.param(
        _edited(Kind.SERVICE, lambda live: live["spec"].pop("selector"), lose=("f:spec", "f:selector")),
        id="selector removed",
    ),
    pytest.param(
        _edited(
            Kind.SERVICE_ACCOUNT,
            lambda live: live["metadata"].pop("ownerReferences"),
            lose=("f:metadata", "f:ownerReferences"),
        ),
        id="owner removed",
    ),
    pytest.param(_edited(Kind.POD_DISRUPTION_BUDGET, _nothing, managedFields=[]), id="managedFields reset"),
]


@pytest.mark.parametrize("child", DRIFTS)
def test_drift_is_repaired_with_one_apply(child: Child) -> None:
    made = _plan(*_with(child))
    (step,) = made.apply
    assert (step.manifest.ref, step.cause, step.replaces) == (child.ref, Cause.DRIFTED, child)
    assert step.event is not None
    assert step.event.reason is EventReason.REPAIRED


def test_somebody_elses_additions_are_left_alone() -> None:
    def add(live: JsonObject) -> None:
        live["metadata"]["labels"]["theirs"] = "1"
        live["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"
        live["spec"]["progressDeadlineSeconds"] = 600
        live["metadata"]["managedFields"].append({"manager": "kubectl", "operation": "Update", "fieldsV1": {}})

    assert _plan(*_with(_edited(Kind.DEPLOYMENT, add, generation=5))).empty


def test_what_an_admission_webhook_rewrites_is_not_fought_for() -> None:
    """Its change is made within our own request: the value differs, but the field is ours."""

    def rewrite(live: JsonObject) -> None:
        live["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror.example/worker"

    assert _plan(*_with(_edited(Kind.DEPLOYMENT, rewrite))).empty


def test_a_changed_spec_is_applied_where_it_matters_and_nowhere_else() -> None:
    changed = what_is_desired(a_scale(spec={"workers": {"concurrency": 20}}))
    made = _plan(*children_of(DESIRED), desired=changed)
    assert _causes(made) == [(Kind.CONFIG_MAP, Cause.ABSENT), (Kind.DEPLOYMENT, Cause.CHANGED)]


def test_a_rotated_secret_touches_the_deployment_only() -> None:
    rotated = what_is_desired(SCALE, an_observed(redis_url=Found(SecretStr("redis://:rotated@redis"))))
    made = _plan(*children_of(DESIRED), desired=rotated)
    assert _causes(made) == [(Kind.DEPLOYMENT, Cause.CHANGED)]
    assert made.apply[0].event == Event(
        "Normal", EventReason.UPDATED, "Updated Deployment demo-worker-0-6f35e35b, which rolls out new pods"
    )


def test_a_resize_is_told_as_one() -> None:
    bigger = what_is_desired(a_scale(spec={"workers": {"replicas": 4}}))
    made = _plan(*children_of(DESIRED), desired=bigger)
    assert _causes(made) == [(Kind.DEPLOYMENT, Cause.CHANGED)]
    assert made.apply[0].event == Event(
        "Normal", EventReason.SCALED, "Scaled Deployment demo-worker-0-6f35e35b from 1 worker to 4 workers"
    )


def test_a_removed_hash_annotation_is_put_back() -> None:
    child = _edited(Kind.SERVICE, lambda live: live["metadata"]["annotations"].pop(HASH_ANNOTATION))
    assert _causes(_plan(*_with(child))) == [(Kind.SERVICE, Cause.CHANGED)]


# ---- what must not be touched


def test_a_blocked_scale_is_left_as_it_is() -> None:
    drifted = _edited(Kind.DEPLOYMENT, _scale_to(9), lose=("f:spec", "f:replicas"))
    made = _plan(drifted, desired=Blocked(Reason.SECRET_NOT_FOUND, "gone"))
    assert made == Plan(wake_at=NOW + LOOK_AGAIN)


def test_a_scale_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    leaving = a_scale(deletionTimestamp="2026-11-24T12:00:00Z")
    assert plan(leaving, DESIRED, an_observed(), NOW) == Plan()


def test_a_child_that_is_going_away_is_waited_for() -> None:
    leaving = _edited(Kind.DEPLOYMENT, _nothing, deletionTimestamp="2026-11-24T12:00:00Z")
    made = _plan(*_with(leaving))
    assert made == Plan(wake_at=NOW + LOOK_AGAIN_SOON)


def test_a_paused_scale_is_left_as_it_is() -> None:
    paused = a_scale(annotations={PAUSED_ANNOTATION: "true"})
    drifted = _edited(Kind.DEPLOYMENT, _scale_to(9), lose=("f:spec", "f:replicas"))
    assert _plan(drifted, scale=paused) == Plan(wake_at=NOW + LOOK_AGAIN)


def test_what_a_switch_takes_away_is_deleted() -> None:
    switched_on = {"networkPolicy": {"enabled": True}, "observability": {"podMonitor": {"enabled": True}}}
    with_policy = children_of(what_is_desired(a_scale(spec=switched_on)))
    without = what_is_desired(a_scale(spec={"podDisruptionBudget": {"enabled": False}}))
    made = _plan(*with_policy, desired=without)
    assert {step.ref.kind for step in made.delete} == {
        Kind.POD_DISRUPTION_BUDGET,
        Kind.NETWORK_POLICY,
        Kind.POD_MONITOR,
    }
    assert not made.apply
    assert not _plan(*(replace(child, owner_uid="somebody") for child in with_policy), desired=without).delete


def _foreign(**metadata: Any) -> Child:
    return _edited(Kind.SERVICE, _nothing, managedFields=[], annotations={}, **metadata)


@pytest.mark.parametrize(
    "child",
    [
        _foreign(ownerReferences=[]),
        _foreign(ownerReferences=[{"kind": "SynapseScale", "name": "other", "uid": "u", "controller": True}]),
        _foreign(ownerReferences=[{"kind": "Deployment", "name": "demo", "uid": "u", "controller": True}]),
    ],
    ids=["nobody's", "another scale's", "another kind's"],
)
def test_an_object_of_somebody_else_is_not_taken_over(child: Child) -> None:
    made = _plan(*_with(child))
    assert made.empty
    (failure,) = made.failures
    assert (failure.ref, failure.reason) == (child.ref, Reason.NAME_TAKEN)
    assert "does not belong to this SynapseScale" in failure.sentence


def test_what_a_deleted_scale_of_the_same_name_left_is_taken_over() -> None:
    before = what_is_desired(a_scale(uid="22222222-2222-4222-8222-222222222222"))
    made = _plan(*children_of(before))
    assert {step.cause for step in made.apply} == {Cause.CHANGED}
    # The old fingerprint was made with the old UID; names do not change.
    assert {step.manifest.ref for step in made.apply} == {manifest.ref for manifest in DESIRED.manifests}


# ---- ConfigMaps


def _environments(count: int) -> list[Manifest]:
    """Return the ConfigMaps of `count` former specs."""
    specs = [a_scale(spec={"workers": {"concurrency": 50 + number}}) for number in range(count)]
    return [manifest_of(what_is_desired(scale), Kind.CONFIG_MAP) for scale in specs]


def _former(count: int) -> tuple[Child, ...]:
    return tuple(
        a_child(manifest, created=f"2026-11-24T10:0{number}:00Z")
        for number, manifest in enumerate(_environments(count))
    )


def test_the_previous_config_map_is_kept_and_older_ones_go() -> None:
    former = _former(3)
    made = _plan(*children_of(DESIRED), *former)
    assert {(step.ref, step.uid) for step in made.delete} == {(child.ref, child.uid) for child in former[:2]}
    assert not made.apply


@pytest.mark.parametrize(
    "status",
    [
        {},
        a_deployment_status(2, updated=1),
        a_deployment_status(1, ready=0),
        a_deployment_status(1) | {"observedGeneration": 0},
    ],
    ids=["nothing yet", "an old pod left", "not ready", "not seen"],
)
def test_no_config_map_goes_while_a_rollout_may_need_it(status: JsonObject) -> None:
    deployment = a_child(manifest_of(DESIRED, Kind.DEPLOYMENT), status=status)
    assert not _plan(*_with(deployment), *_former(3)).delete


def test_no_config_map_goes_while_the_deployment_is_to_be_changed() -> None:
    bigger = what_is_desired(a_scale(spec={"workers": {"replicas": 4}}))
    assert not _plan(*children_of(DESIRED), *_former(3), desired=bigger).delete


def test_no_config_map_goes_while_the_deployment_is_missing() -> None:
    children = [child for child in children_of(DESIRED) if child.ref.kind is not Kind.DEPLOYMENT]
    assert not _plan(*children, *_former(3)).delete


def test_a_config_map_of_somebody_else_is_not_deleted() -> None:
    theirs = tuple(replace(child, owner_uid="somebody") for child in _former(3))
    assert not _plan(*children_of(DESIRED), *theirs).delete


def test_an_immutable_config_map_with_other_content_is_replaced() -> None:
    spoilt = _edited(Kind.CONFIG_MAP, lambda live: live.update(data={"WORKER_CONCURRENCY": "99"}))
    made = _plan(*_with(spoilt))
    assert [(step.ref, step.uid) for step in made.delete] == [(spoilt.ref, spoilt.uid)]
    assert _causes(made) == [(Kind.CONFIG_MAP, Cause.DRIFTED)]


def test_a_plan_changes_nothing_that_it_was_given() -> None:
    observed: Observed = an_observed(children=children_of(DESIRED))
    before = copy.deepcopy(observed)
    plan(SCALE, what_is_desired(a_scale(spec={"image": "other"})), observed, NOW)
    assert observed == before
