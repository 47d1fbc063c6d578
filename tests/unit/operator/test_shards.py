"""Shards that come and go: who has workers, and when producers are told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale
from synapse_operator.desired import Desired
from synapse_operator.desired.shards import Flip, Shard, ShardState
from synapse_operator.drains import EMPTY_FOR, drained, emptied
from synapse_operator.naming import CONFIG_HASH_ANNOTATION, STORED_ANNOTATION, Kind
from synapse_operator.observed import Child, Observed, QueueFigures, TopologyRecord, Unknown
from synapse_operator.plan import LOOK_AGAIN_SOON, Cause, plan
from synapse_worker.contract import MAX_SHARDS
from synapse_worker.routing import Route, Topology
from tests.builders import (
    NOW,
    SCALE_UID,
    a_child,
    a_deployment_status,
    a_scale,
    an_observed,
    children_of,
    what_is_desired,
)

ACTIVE, DRAINING, IDLE = ShardState.ACTIVE, ShardState.DRAINING, ShardState.IDLE
EMPTY = QueueFigures(0, 0, None)
NOTHING = {"default": EMPTY, **{str(index): EMPTY for index in range(MAX_SHARDS)}}
UNKNOWN = Unknown("does not answer")


def _scale(shards: int, **spec: Any) -> SynapseScale:
    return a_scale(spec={"queue": {"shards": shards}, **spec})


def _row(shards: int, **changes: Any) -> TopologyRecord:
    return TopologyRecord(
        **{"epoch": 7, "topology": Topology(shards), "enabled": True, "owner_uid": SCALE_UID} | changes
    )


def _seen(scale: SynapseScale, row: Any, *, ready: int | None = None, **changes: Any) -> Observed:
    """Return what is seen once the children of `scale` are there, whatever the row says."""
    shards = scale.spec.queue.shards
    children = children_of(what_is_desired(scale, an_observed(topology=_row(shards))), ready=ready)
    return an_observed(**{"children": children, "queues": NOTHING, "topology": row, **changes})


def _states(desired: Desired) -> list[tuple[str, ShardState]]:
    return [(shard.name, shard.state) for shard in desired.shards]


def _said(shard: Shard) -> tuple[str, tuple[str, ...], int, ShardState]:
    return shard.name, shard.serves, shard.replicas, shard.state


def _deployments(desired: Desired) -> dict[str, JsonObject]:
    return {each.ref.name: each.body for each in desired.manifests if each.ref.kind is Kind.DEPLOYMENT}


# ---- a standing number


def test_each_shard_has_a_deployment_a_budget_and_an_environment() -> None:
    desired = what_is_desired(_scale(MAX_SHARDS), an_observed(topology=_row(MAX_SHARDS)))
    kinds = [manifest.ref.kind for manifest in desired.manifests]
    for kind in (Kind.DEPLOYMENT, Kind.POD_DISRUPTION_BUDGET, Kind.CONFIG_MAP):
        assert kinds.count(kind) == MAX_SHARDS
    assert kinds.count(Kind.SERVICE) == kinds.count(Kind.SERVICE_ACCOUNT) == 1
    assert len({manifest.ref for manifest in desired.manifests}) == len(desired.manifests)
    assert desired.flip is None


def test_shard_0_serves_default_too_and_the_others_their_own() -> None:
    desired = what_is_desired(_scale(3), an_observed(topology=_row(3)))
    served = [each.body["data"]["WORKER_QUEUE_SHARD"] for each in desired.manifests if each.ref.kind is Kind.CONFIG_MAP]
    assert served == ["default,0", "1", "2"]


@pytest.mark.parametrize("shards", [1, 2, 64])
def test_another_number_of_shards_changes_nothing_of_the_others(shards: int) -> None:
    few = what_is_desired(_scale(2), an_observed(topology=_row(2)))
    other = what_is_desired(_scale(shards), an_observed(topology=_row(shards)))
    both = _deployments(few).keys() & _deployments(other).keys()
    assert len(both) == min(2, shards)
    assert all(_deployments(few)[name] == _deployments(other)[name] for name in both)


# ---- pools


def test_a_pool_says_otherwise_for_its_shards() -> None:
    pool = {"name": "big", "shards": [1], "replicas": 5, "concurrency": 2, "template": {"labels": {"size": "big"}}}
    desired = what_is_desired(_scale(3, workers={"concurrency": 9}, pools=[pool]), an_observed(topology=_row(3)))
    assert [shard.replicas for shard in desired.shards] == [1, 5, 1]
    concurrency = [
        each.body["data"]["WORKER_CONCURRENCY"] for each in desired.manifests if each.ref.kind is Kind.CONFIG_MAP
    ]
    assert concurrency == ["9", "2", "9"]
    labels = [body["spec"]["template"]["metadata"]["labels"].get("size") for body in _deployments(desired).values()]
    assert labels == [None, "big", None]
    assert desired.workers == 7


def test_a_pool_keeps_what_it_does_not_say() -> None:
    pool = {"name": "a", "shards": [0], "replicas": 0}
    scale = _scale(2, workers={"concurrency": 9, "maxRetries": 1, "drainTimeoutSeconds": 60}, pools=[pool])
    workers = scale.spec.workers_of(0)
    assert (workers.replicas, workers.concurrency, workers.max_retries) == (0, 9, 1)
    assert workers.drain_timeout_seconds == 60
    assert scale.spec.workers_of(1) == scale.spec.workers


def test_a_pool_rolls_its_own_shards_only() -> None:
    before = what_is_desired(_scale(3), an_observed(topology=_row(3)))
    pool = {"name": "a", "shards": [2], "concurrency": 3}
    after = what_is_desired(_scale(3, pools=[pool]), an_observed(topology=_row(3)))
    same = [name for name, body in _deployments(before).items() if _deployments(after)[name] == body]
    assert same == list(_deployments(before))[:2]


# ---- growing


def test_new_shards_get_their_workers_before_anybody_uses_them() -> None:
    desired = what_is_desired(_scale(3), _seen(_scale(1), _row(1)))
    assert _states(desired) == [("0", ACTIVE), ("1", IDLE), ("2", IDLE)]
    assert [shard.replicas for shard in desired.shards] == [1, 1, 1]
    assert desired.flip is None


def test_producers_are_told_once_each_new_shard_has_a_worker_that_is_ready() -> None:
    row, scale = _row(1), _scale(3)
    assert what_is_desired(scale, _seen(scale, row, ready=0)).flip is None
    assert what_is_desired(scale, _seen(scale, row)).flip == Flip(row, Topology(3), enabled=True)


def test_one_shard_without_a_worker_holds_all_of_them_back() -> None:
    scale = _scale(3, workers={"replicas": 2})
    seen = _seen(scale, _row(1))
    name = naming.deployment_name("demo", "2")
    (manifest,) = [
        each for each in what_is_desired(scale).manifests if each.ref.name == name and each.ref.kind is Kind.DEPLOYMENT
    ]
    for ready, told in ((0, False), (1, True)):
        child = a_child(manifest, status=a_deployment_status(2, ready=ready))
        others = tuple(each for each in seen.children if each.ref != child.ref)
        assert (what_is_desired(scale, replace(seen, children=(*others, child))).flip is not None) is told


def test_a_shard_that_is_to_have_no_worker_holds_nothing_back() -> None:
    scale = _scale(2, pools=[{"name": "none", "shards": [1], "replicas": 0}])
    assert what_is_desired(scale, _seen(scale, _row(1))).flip is not None


def test_the_first_row_is_written_as_soon_as_there_are_tables() -> None:
    assert what_is_desired(_scale(1), _seen(_scale(1), None)).flip == Flip(None, Topology(1), enabled=True)
    assert what_is_desired(_scale(1), _seen(_scale(1), UNKNOWN)).flip is None


def test_routes_and_scale_mode_are_told_at_once() -> None:
    row = _row(2)
    queue = {"shards": 2, "routes": [{"shard": 1, "tenants": ["acme"], "minPriority": 5}]}
    scale = a_scale(spec={"queue": queue, "enabled": False})
    topology = Topology(2, routes=(Route(1, ("acme",), 5),))
    assert what_is_desired(scale, _seen(_scale(2), row)).flip == Flip(row, topology, enabled=False)


@pytest.mark.parametrize(
    ("redis_owner", "row_owner", "gone", "written"),
    [
        (SCALE_UID, SCALE_UID, False, True),
        (SCALE_UID, "another", True, True),
        (SCALE_UID, "", False, True),
        # Another Redis and the same database.
        (SCALE_UID, "another", False, False),
        ("another", SCALE_UID, False, False),
        ("another", "another", True, False),
        (UNKNOWN, SCALE_UID, False, True),
        (UNKNOWN, "another", True, False),
    ],
)
def test_of_two_scales_on_the_same_stores_one_writes_the_row(
    redis_owner: Any, row_owner: str, gone: bool, written: bool
) -> None:
    scale = _scale(3)
    row = _row(2, owner_uid=row_owner, owner_gone=gone)
    assert (what_is_desired(scale, _seen(scale, row, redis_owner=redis_owner)).flip is not None) is written


def test_a_row_of_a_scale_that_is_gone_is_taken_over() -> None:
    row = _row(1, owner_uid="another", owner_gone=True)
    assert what_is_desired(_scale(1), _seen(_scale(1), row)).flip == Flip(row, Topology(1), enabled=True)


# ---- shrinking


def test_producers_are_told_first_when_shards_go() -> None:
    row = _row(3)
    desired = what_is_desired(_scale(1), _seen(_scale(3), row))
    assert desired.flip == Flip(row, Topology(1), enabled=True)
    assert _states(desired) == [("0", ACTIVE), ("1", DRAINING), ("2", DRAINING)]


def test_a_shard_stays_until_it_is_known_to_be_drained() -> None:
    seen = _seen(_scale(3), _row(1))
    assert _states(what_is_desired(_scale(1), seen)) == [("0", ACTIVE), ("1", DRAINING), ("2", DRAINING)]
    seen = replace(seen, drained=frozenset({"2"}))
    assert _states(what_is_desired(_scale(1), seen)) == [("0", ACTIVE), ("1", DRAINING)]


@pytest.mark.parametrize("away", [{"queues": UNKNOWN}, {"topology": UNKNOWN}, {"queues": UNKNOWN, "topology": UNKNOWN}])
def test_unknown_is_never_drained(away: dict[str, Any]) -> None:
    seen = replace(_seen(_scale(3), _row(1), drained=frozenset({"1", "2"})), **away)
    assert [shard.name for shard in what_is_desired(_scale(1), seen).shards] == ["0", "1", "2"]


def test_what_the_row_still_names_stays_although_it_is_empty() -> None:
    seen = _seen(_scale(3), _row(3), drained=frozenset({"1", "2"}))
    assert [shard.name for shard in what_is_desired(_scale(1), seen).shards] == ["0", "1", "2"]


def test_a_draining_shard_keeps_its_workers() -> None:
    seen = _seen(_scale(2, workers={"replicas": 4}), _row(1), queues=NOTHING | {"1": QueueFigures(9, 0, 1.0)})
    desired = what_is_desired(_scale(1, workers={"replicas": 4}), seen)
    assert [*map(_said, desired.shards[1:])] == [("1", ("1",), 4, DRAINING)]


@pytest.mark.parametrize("figures", [QueueFigures(1, 0, 1.0), QueueFigures(0, 1, None)])
def test_a_queue_above_that_fills_again_gets_one_worker_back(figures: QueueFigures) -> None:
    seen = _seen(_scale(1), _row(1), queues=NOTHING | {"40": figures}, drained=frozenset({"40"}))
    desired = what_is_desired(_scale(1, workers={"replicas": 4}), seen)
    assert [*map(_said, desired.shards[1:])] == [("40", ("40",), 1, DRAINING)]


def test_a_queue_above_that_cannot_be_asked_brings_nothing() -> None:
    seen = _seen(_scale(1), _row(1), queues=UNKNOWN)
    assert [shard.name for shard in what_is_desired(_scale(1), seen).shards] == ["0"]


def test_growing_again_keeps_what_was_draining() -> None:
    seen = _seen(_scale(3), _row(1))
    desired = what_is_desired(_scale(3), seen)
    assert _states(desired) == [("0", ACTIVE), ("1", IDLE), ("2", IDLE)]
    assert desired.flip is not None


# ---- scale mode off, several shards


def test_scale_mode_off_takes_all_shards_to_zero_and_brings_one_worker_to_the_job() -> None:
    scale = _scale(3, enabled=False, workers={"replicas": 2})
    seen = _seen(_scale(3, workers={"replicas": 2}), _row(3))
    assert [shard.replicas for shard in what_is_desired(scale, seen).shards] == [0, 0, 0]
    zero = children_of(what_is_desired(_scale(3, workers={"replicas": 0}), an_observed(topology=_row(3))))
    job = replace(seen, children=zero, queues=NOTHING | {"2": QueueFigures(1, 0, 1.0)})
    assert [shard.replicas for shard in what_is_desired(scale, job).shards] == [0, 0, 1]


# ---- tenants' own queues


def _isolated(**tenancy: Any) -> SynapseScale:
    return a_scale(spec={"tenancy": {"isolation": True, **tenancy}})


ISOLATED = _row(1, topology=Topology(1, isolation=True))


def test_the_tenant_pool_is_one_more_shard() -> None:
    scale = _isolated(pool={"replicas": 3, "concurrency": 5})
    desired = what_is_desired(scale, an_observed(topology=ISOLATED))
    assert [*map(_said, desired.shards[1:])] == [("tenants", ("tenants",), 3, ACTIVE)]
    environment = [each.body["data"] for each in desired.manifests if each.ref.kind is Kind.CONFIG_MAP][1]
    assert (environment["WORKER_QUEUE_SHARD"], environment["WORKER_CONCURRENCY"]) == ("tenants", "5")
    assert naming.deployment_name("demo", "tenants") in _deployments(desired)


def test_isolation_waits_for_a_worker_of_the_pool() -> None:
    scale, row = _isolated(), _row(1)
    children = children_of(what_is_desired(scale, an_observed(topology=ISOLATED)))
    seen = an_observed(children=children, queues=NOTHING, topology=row)
    assert what_is_desired(scale, seen).flip == Flip(row, Topology(1, isolation=True), enabled=True)
    assert what_is_desired(scale, replace(seen, children=children_of(what_is_desired(_scale(1))))).flip is None


def test_the_pool_goes_when_all_tenants_queues_are_drained() -> None:
    children = children_of(what_is_desired(_isolated(), an_observed(topology=ISOLATED)))
    seen = an_observed(children=children, queues=NOTHING, topology=ISOLATED)
    assert what_is_desired(_scale(1), seen).flip == Flip(ISOLATED, Topology(1), enabled=True)
    seen = replace(seen, topology=_row(1))
    assert _states(what_is_desired(_scale(1), seen)) == [("0", ACTIVE), ("tenants", DRAINING)]
    assert _states(what_is_desired(_scale(1), replace(seen, drained=frozenset({"tenants"})))) == [("0", ACTIVE)]


def test_a_tenants_queue_that_fills_without_isolation_starts_the_pool_with_one() -> None:
    seen = an_observed(
        queues=NOTHING | {"acme": QueueFigures(4, 0, 1.0)}, topology=_row(1), drained=frozenset({"tenants"})
    )
    desired = what_is_desired(_scale(1, tenancy={"pool": {"replicas": 5}}), seen)
    assert [*map(_said, desired.shards[1:])] == [("tenants", ("tenants",), 1, DRAINING)]


def test_tenants_queues_are_empty_together() -> None:
    queues = NOTHING | {"acme": EMPTY, "other": EMPTY}
    assert "tenants" in _emptied({}, queues=queues)
    assert "tenants" not in _emptied({}, queues=queues | {"other": QueueFigures(0, 1, None)})
    assert "tenants" not in _emptied({}, queues=queues, topology=ISOLATED)


# ---- drains


def _emptied(since: dict[str, Any], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"topology": _row(2), "behind": (), "queues": NOTHING, "now": NOW, **changes}
    return emptied(since, **given)


def test_only_queues_that_producers_use_no_more_count() -> None:
    assert set(_emptied({})) == {*(str(index) for index in range(2, MAX_SHARDS)), "tenants"}


def test_empty_twice_half_a_minute_apart_is_drained() -> None:
    since = _emptied({})
    assert drained(since, NOW) == frozenset()
    later = NOW + EMPTY_FOR
    assert "2" in drained(_emptied(since, now=later), later)
    assert "2" not in drained(_emptied(since, now=later), later - timedelta(seconds=1))


def test_how_long_a_queue_must_be_empty_can_be_set() -> None:
    since, minute = _emptied({}), timedelta(minutes=1)
    assert "2" not in drained(since, NOW + EMPTY_FOR, minute)
    assert "2" in drained(since, NOW + minute, minute)


@pytest.mark.parametrize("job", [QueueFigures(1, 0, 0.0), QueueFigures(0, 1, None)], ids=["waits", "runs"])
def test_a_job_in_between_begins_the_wait_anew(job: QueueFigures) -> None:
    since = _emptied(_emptied({}), queues=NOTHING | {"2": job}, now=NOW + timedelta(seconds=15))
    assert "2" not in since
    again = _emptied(since, now=NOW + EMPTY_FOR)
    assert "2" not in drained(again, NOW + EMPTY_FOR)
    assert "3" in drained(again, NOW + EMPTY_FOR)


@pytest.mark.parametrize(
    "changes",
    [{"topology": UNKNOWN}, {"queues": UNKNOWN}, {"behind": UNKNOWN}, {"behind": ("api-1",)}],
    ids=["no row", "no figures", "no producers", "one behind"],
)
def test_what_is_not_known_to_be_over_begins_the_wait_anew(changes: dict[str, Any]) -> None:
    assert _emptied(_emptied({}), **changes, now=NOW + EMPTY_FOR) == {}


def test_a_queue_that_producers_use_again_is_forgotten() -> None:
    assert "2" not in _emptied(_emptied({}), topology=_row(3), now=NOW + EMPTY_FOR)


# ---- plan


def _ready(desired: Desired) -> tuple[Child, ...]:
    return children_of(desired)


def test_a_drained_shard_loses_its_deployment_and_budget_and_later_its_environment() -> None:
    scale, seen = _scale(1), _seen(_scale(2), _row(1), drained=frozenset({"1"}))
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    name = naming.deployment_name("demo", "1")
    gone = {(step.ref.kind, step.ref.name) for step in made.delete}
    assert {(Kind.DEPLOYMENT, name), (Kind.POD_DISRUPTION_BUDGET, name)} <= gone
    assert len(gone) == 3
    assert not made.apply


def test_the_row_is_part_of_the_plan_and_looked_at_again_soon() -> None:
    scale = _scale(2)
    seen = _seen(scale, _row(1))
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    assert made.flip == Flip(_row(1), Topology(2), enabled=True)
    assert made.wake_at == NOW + LOOK_AGAIN_SOON
    assert not made.empty


def test_four_deployments_roll_at_a_time() -> None:
    seen = an_observed(
        children=children_of(what_is_desired(_scale(10), an_observed(topology=_row(10)))), topology=_row(10)
    )
    scale = _scale(10, image="other")
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    changed = [step for step in made.apply if step.manifest.ref.kind is Kind.DEPLOYMENT]
    assert [step.cause for step in changed] == [Cause.CHANGED] * 4


def test_a_resize_waits_for_no_rollout() -> None:
    seen = an_observed(
        children=children_of(what_is_desired(_scale(10), an_observed(topology=_row(10)))), topology=_row(10)
    )
    scale = _scale(10, workers={"replicas": 3})
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    assert len([step for step in made.apply if step.manifest.ref.kind is Kind.DEPLOYMENT]) == 10


def test_nor_does_one_beside_a_change_that_waits_for_its_turn() -> None:
    before = what_is_desired(_scale(10), an_observed(topology=_row(10)))
    seen = an_observed(children=children_of(before), topology=_row(10))
    scale = _scale(10, image="other", workers={"replicas": 3})
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    rolled = {step.manifest.ref.name for step in made.apply if step.manifest.ref.kind is Kind.DEPLOYMENT}
    resized = {step.child.ref.name: step.replicas for step in made.resize}
    assert (len(rolled), len(resized), set(resized.values())) == (4, 6, {3})
    assert rolled | set(resized) == {naming.deployment_name("demo", str(index)) for index in range(10)}
    assert made.resize[0].event.message.endswith("from 1 worker to 3 workers")
    # Somebody else counts these workers.
    theirs = _scale(10, image="other", workers={"autoscaling": {"mode": "External"}})
    made = plan(theirs, what_is_desired(theirs, seen), seen, NOW)
    assert made.resize == ()


def test_while_other_scales_replace_pods_this_one_waits_but_for_new_and_resized_deployments() -> None:
    before = what_is_desired(_scale(2), an_observed(topology=_row(2)))
    seen = an_observed(children=children_of(before), topology=_row(2))
    scale = _scale(3, image="other", workers={"replicas": 2})
    made = plan(scale, what_is_desired(scale, seen), seen, NOW, may_roll=False)
    applied = [step.manifest.ref.name for step in made.apply if step.manifest.ref.kind is Kind.DEPLOYMENT]
    assert applied == [naming.deployment_name("demo", "2")]
    assert [step.replicas for step in made.resize] == [2, 2]
    assert not made.rolls
    assert plan(scale, what_is_desired(scale, seen), seen, NOW).rolls


def test_what_rolls_already_takes_a_place_and_may_be_changed_again() -> None:
    before = what_is_desired(_scale(10), an_observed(topology=_row(10)))
    rolling = {naming.deployment_name("demo", str(index)) for index in (5, 6, 7)}
    children = tuple(
        Child.read(child.ref.kind, child.raw | {"status": a_deployment_status(2, updated=1)})
        if child.ref.name in rolling and child.ref.kind is Kind.DEPLOYMENT
        else child
        for child in children_of(before)
    )
    seen = an_observed(children=children, topology=_row(10))
    scale = _scale(10, image="other")
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    changed = {step.manifest.ref.name for step in made.apply if step.manifest.ref.kind is Kind.DEPLOYMENT}
    assert changed == rolling | {naming.deployment_name("demo", "0")}


def test_each_deployment_keeps_the_environment_before() -> None:
    scale = _scale(2)
    now = what_is_desired(scale, an_observed(topology=_row(2)))
    former = tuple(
        a_child(manifest, created=f"2026-11-24T10:0{age}:00Z")
        for age, concurrency in enumerate((5, 6, 7))
        for manifest in what_is_desired(
            _scale(2, workers={"concurrency": concurrency}), an_observed(topology=_row(2))
        ).manifests
        if manifest.ref.kind is Kind.CONFIG_MAP
    )
    seen = an_observed(children=(*children_of(now), *former), topology=_row(2))
    made = plan(scale, now, seen, NOW)
    assert {step.ref for step in made.delete} == {child.ref for child in former[:4]}


def test_the_hash_of_a_pod_covers_all_of_it() -> None:
    """A change of the overlay must count as a rollout too."""

    def config_hash(**workers: Any) -> str:
        (body,) = _deployments(what_is_desired(_scale(1, workers=workers))).values()
        found: str = body["spec"]["template"]["metadata"]["annotations"][CONFIG_HASH_ANNOTATION]
        return found

    assert config_hash() != config_hash(template={"labels": {"a": "b"}})
    assert config_hash() != config_hash(template={"nodeSelector": {"a": "b"}})
    assert config_hash() == config_hash(replicas=9)


# ---- stored settings


def _stored_hash(stored: Any, children: tuple[Child, ...] = (), **workers: Any) -> str:
    observed = an_observed(stored=stored, children=children)
    (body,) = _deployments(what_is_desired(_scale(1, workers=workers), observed)).values()
    found: str = body["spec"]["template"]["metadata"]["annotations"][STORED_ANNOTATION]
    return found


def test_a_saved_setting_rolls_the_pods_that_read_it() -> None:
    assert _stored_hash({"worker_concurrency": 7}) != _stored_hash({"worker_concurrency": 8})
    assert _stored_hash({"event_ttl": 60}) != _stored_hash({})


@pytest.mark.parametrize(
    "workers", [{"concurrency": 5}, {"template": {"env": [{"name": "PUBSUB_EVENT_TTL", "value": "60"}]}}]
)
def test_one_that_a_variable_hides_rolls_nothing(workers: dict[str, Any]) -> None:
    hidden = {"concurrency": "worker_concurrency", "template": "event_ttl"}[next(iter(workers))]
    assert _stored_hash({hidden: 70}, **workers) == _stored_hash({hidden: 80}, **workers)


def test_settings_that_cannot_be_read_roll_nothing() -> None:
    saved = an_observed(stored={"worker_concurrency": 7})
    children = children_of(what_is_desired(_scale(1), saved))
    assert _stored_hash(UNKNOWN, children) == _stored_hash({"worker_concurrency": 7})
    assert _stored_hash(UNKNOWN) == _stored_hash({})
