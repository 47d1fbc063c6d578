"""How many workers a shard has by its jobs, and for how long they stay when there are fewer."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_operator.api.workers import AutoscalingSpec
from synapse_operator.autoscale import Recent, Recommendation, bounded, load_of, recommended, remembered
from synapse_operator.desired.shards import recommendations
from synapse_operator.naming import Kind
from synapse_operator.observed import Child, Observed, Overview, PostgresAnswers, QueueFigures, Unknown
from synapse_operator.plan import LOOK_AGAIN, LOOK_AGAIN_AT_LOAD, plan
from tests.builders import (
    NOW,
    a_child,
    a_deployment_status,
    a_scale,
    an_observed,
    children_of,
    manifest_of,
    what_is_desired,
)

UNKNOWN = Unknown("does not answer")
WINDOW = timedelta(seconds=300)

counts = st.integers(min_value=0, max_value=100_000)
figures = st.builds(
    lambda waits, active, parked: QueueFigures(waits + parked, active, None, parked), counts, counts, counts
)
specs = st.builds(
    lambda least, more, seconds: AutoscalingSpec(
        mode="BuiltIn", min_replicas=least, max_replicas=max(1, least + more), scale_down_stabilization_seconds=seconds
    ),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 3600),
)


# ---- load


@pytest.mark.parametrize(
    ("queues", "load"),
    [
        ([], 0),
        ([QueueFigures(3, 2, 1.0)], 5),
        ([QueueFigures(3, 2, 1.0), QueueFigures(0, 4, None)], 9),
        ([QueueFigures(50, 0, None, parked=50)], 1),
        ([QueueFigures(52, 5, None, parked=50), QueueFigures(9, 0, None, parked=9)], 8),
    ],
    ids=["nothing", "waiting and running", "two queues", "only parked", "parked beside others"],
)
def test_what_counts_as_load(queues: list[QueueFigures], load: int) -> None:
    assert load_of(queues) == load


@given(st.lists(figures, max_size=5))
def test_load_is_zero_exactly_when_nothing_is_there(queues: list[QueueFigures]) -> None:
    assert (load_of(queues) == 0) is not any(each.queued or each.active for each in queues)


# ---- workers for a load


@given(specs, counts, st.integers(1, 1000), st.integers(0, 2))
def test_as_few_as_hold_the_load_within_the_bounds(spec: AutoscalingSpec, load: int, target: int, least: int) -> None:
    found = recommended(spec, load, target=target, least=least)
    most = spec.max_replicas or 0
    assert spec.min_replicas <= found <= most
    assert found * target >= load or found == most
    assert found in (spec.min_replicas, most, least) or (found - 1) * target < load


@given(specs, counts, counts, st.integers(1, 1000))
def test_more_load_never_asks_for_fewer(spec: AutoscalingSpec, one: int, other: int, target: int) -> None:
    less, more = sorted((one, other))
    assert recommended(spec, less, target=target) <= recommended(spec, more, target=target)


# ---- the window


steps = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20)), min_size=1, max_size=40)


@given(steps, st.integers(0, 20), st.integers(1, 600))
def test_the_most_of_the_window_holds(looks: list[tuple[int, int]], present: int, seconds: int) -> None:
    window, now, recent = timedelta(seconds=seconds), NOW, Recent()
    asked: list[tuple[datetime, int]] = [(NOW + timedelta(seconds=looks[0][0]), present)]
    for wait, replicas in looks:
        now += timedelta(seconds=wait)
        asked.append((now, replicas))
        recent = remembered(recent, replicas, present=present, window=window, now=now)
        assert recent[0].replicas == max(each for at, each in asked if now - at <= window)
        assert recent[-1] == Recommendation(now, replicas)
        assert len(recent) <= 21


@given(specs, st.lists(counts, min_size=1, max_size=10), st.integers(0, 1000))
def test_never_down_within_the_window(spec: AutoscalingSpec, loads: list[int], present: int) -> None:
    recent, most = Recent(), bounded(spec, present)
    for number, load in enumerate(loads):
        asked = recommended(spec, load, target=10)
        most = max(most, asked)
        now = NOW + timedelta(seconds=5 * number)
        recent = remembered(recent, asked, present=present, window=timedelta(seconds=60), now=now)
        assert bounded(spec, recent[0].replicas) == most


# ---- of a scale


def _spec(**autoscaling: Any) -> dict[str, Any]:
    return {"workers": {"autoscaling": {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 8, **autoscaling}}}


def _present(replicas: int) -> Any:
    return children_of(what_is_desired(a_scale(spec={"workers": {"replicas": replicas}})))


def _workers(spec: dict[str, Any], observed: Observed, recent: dict[str, Recent] | None = None) -> int:
    """Return the workers that are wanted after one look, or after the last one of several."""
    scale = a_scale(spec=spec)
    asked = recommendations(scale, observed, recent or {}, NOW)
    seen = replace(observed, recommended={name: each[0].replicas for name, each in asked.items()})
    return what_is_desired(scale, seen).workers


def _jobs(queued: int, active: int = 0, parked: int = 0) -> dict[str, QueueFigures]:
    return {"default": QueueFigures(queued, active, None, parked)}


OUTDATED = {"postgres": PostgresAnswers(None), "stored": UNKNOWN, "topology": UNKNOWN, "overview": UNKNOWN}


def test_workers_stay_while_tables_of_an_older_release_cannot_be_asked() -> None:
    assert _workers(_spec(scaleDownStabilizationSeconds=0), an_observed(**OUTDATED, children=_present(5))) == 5
    off = {**_spec(), "enabled": False}
    assert _workers(off, an_observed(**OUTDATED, children=_present(0))) == 1
    assert _workers(off, an_observed(**OUTDATED, children=_present(5))) == 5


@pytest.mark.parametrize(
    ("autoscaling", "changes", "workers"),
    [
        ({}, {}, 0),
        ({"minReplicas": 2}, {}, 2),
        ({}, {"queues": _jobs(1)}, 1),
        ({}, {"queues": _jobs(10)}, 1),
        ({}, {"queues": _jobs(10, active=1)}, 2),
        ({}, {"queues": _jobs(10_000)}, 8),
        ({}, {"queues": _jobs(10), "stored": {"worker_concurrency": 2}}, 5),
        ({"targetJobsPerWorker": 4}, {"queues": _jobs(10), "stored": {"worker_concurrency": 2}}, 3),
        ({}, {"queues": _jobs(500, parked=500)}, 1),
        ({}, {"overview": Overview(0, 0, 0, open_jobs=40)}, 1),
        ({}, {"overview": Overview(0, 0, 0, open_jobs=0, work_due=True)}, 1),
        ({}, {"postgres": PostgresAnswers(None), "stored": UNKNOWN, "topology": UNKNOWN}, 1),
        ({}, OUTDATED, 1),
    ],
    ids=[
        "nothing to do",
        "the least",
        "one job",
        "a full worker",
        "one more",
        "the most",
        "the stored concurrency",
        "the target of the spec",
        "parked jobs",
        "jobs that only PostgreSQL knows",
        "work without a job",
        "tables that only a worker makes",
        "tables of an older release, whose jobs nobody can count",
    ],
)
def test_a_new_shard_has_what_its_jobs_ask_for(
    autoscaling: dict[str, Any], changes: dict[str, Any], workers: int
) -> None:
    assert _workers(_spec(**autoscaling), an_observed(**changes)) == workers


def test_the_concurrency_of_the_spec_is_the_target() -> None:
    spec = _spec()
    spec["workers"]["concurrency"] = 5
    assert _workers(spec, an_observed(queues=_jobs(10), stored={"worker_concurrency": 2})) == 2


@pytest.mark.parametrize("window", [0, 300])
def test_an_operator_that_starts_anew_waits_before_it_takes_workers_away(window: int) -> None:
    seen = an_observed(children=_present(6))
    assert _workers(_spec(scaleDownStabilizationSeconds=window), seen) == (6 if window else 0)


def test_up_at_once_and_down_after_the_window() -> None:
    scale, recent = a_scale(spec=_spec()), dict[str, Recent]()
    wanted = []
    for second, jobs in ((0, 10), (5, 40), (10, 5), (300, 5), (306, 5), (605, 0), (611, 0)):
        seen = an_observed(queues=_jobs(jobs), children=_present(1))
        recent = recommendations(scale, seen, recent, NOW + timedelta(seconds=second))
        wanted.append(recent["0"][0].replicas)
    assert wanted == [1, 4, 4, 4, 1, 1, 0]


@pytest.mark.parametrize("away", [{"queues": UNKNOWN}, {"overview": UNKNOWN}, {"queues": UNKNOWN, "overview": UNKNOWN}])
@pytest.mark.parametrize("window", [0, 300])
def test_unknown_is_never_idle_and_moves_nothing(away: dict[str, Any], window: int) -> None:
    spec = _spec(scaleDownStabilizationSeconds=window)
    scale, long_ago = a_scale(spec=spec), NOW - timedelta(hours=1)
    recent = recommendations(scale, an_observed(children=_present(5)), {}, long_ago)
    assert _workers(spec, an_observed(**away, children=_present(5)), recent) == 5


def test_a_shard_of_which_nothing_is_known_begins_with_the_least() -> None:
    assert _workers(_spec(minReplicas=2), an_observed(queues=UNKNOWN)) == 2


def test_the_window_begins_anew_when_a_store_is_back() -> None:
    scale = a_scale(spec=_spec())
    recent = recommendations(scale, an_observed(children=_present(5)), {}, NOW - timedelta(hours=1))
    recent = recommendations(scale, an_observed(children=_present(5), queues=UNKNOWN), recent, NOW)
    back = recommendations(scale, an_observed(children=_present(5)), recent, NOW + timedelta(seconds=299))
    assert back["0"][0].replicas == 5
    later = recommendations(scale, an_observed(children=_present(5)), back, NOW + timedelta(seconds=301))
    assert later["0"][0].replicas == 0


@pytest.mark.parametrize("jobs", [0, 10_000])
def test_paused_leaves_the_workers_as_they_are(jobs: int) -> None:
    assert _workers(_spec(paused=True), an_observed(queues=_jobs(jobs), children=_present(12))) == 12


def test_other_bounds_hold_at_once() -> None:
    assert _workers(_spec(maxReplicas=3), an_observed(children=_present(6))) == 3


def test_each_shard_is_counted_by_itself() -> None:
    spec = {
        **_spec(),
        "queue": {"shards": 3},
        "pools": [{"name": "fixed", "shards": [2], "replicas": 4, "autoscaling": {"mode": "Off"}}],
    }
    seen = an_observed(queues={"default": QueueFigures(10, 0, None), "0": QueueFigures(5, 0, None)})
    scale = a_scale(spec=spec)
    asked = recommendations(scale, seen, {}, NOW)
    assert set(asked) == {"0", "1"}
    seen = replace(seen, recommended={name: each[0].replicas for name, each in asked.items()})
    assert {shard.name: shard.replicas for shard in what_is_desired(scale, seen).shards} == {"0": 2, "1": 0, "2": 4}


def test_the_tenant_pool_is_counted_by_all_tenants_queues() -> None:
    spec = {"tenancy": {"isolation": True, "pool": _spec()["workers"]}}
    seen = an_observed(queues={**_jobs(0), "acme": QueueFigures(11, 0, None), "other": QueueFigures(0, 10, None)})
    asked = recommendations(a_scale(spec=spec), seen, {}, NOW)
    assert {name: each[0].replicas for name, each in asked.items()} == {"tenants": 3}


def test_scale_mode_off_goes_by_the_most_that_the_spec_allows() -> None:
    spec = {"enabled": False, **_spec(maxReplicas=4)}
    assert _workers(spec, an_observed(queues=_jobs(99), children=_present(9))) == 4
    assert _workers(spec, an_observed(queues=_jobs(99))) == 1
    assert _workers(spec, an_observed(children=_present(4))) == 0


@pytest.mark.parametrize(
    ("spec", "rhythm"),
    [
        (_spec(), LOOK_AGAIN_AT_LOAD),
        (_spec(paused=True), LOOK_AGAIN),
        ({**_spec(), "enabled": False}, LOOK_AGAIN),
        ({"workers": {"autoscaling": {"mode": "External"}}}, LOOK_AGAIN),
        ({}, LOOK_AGAIN),
        ({"tenancy": {"isolation": True, "pool": _spec()["workers"]}}, LOOK_AGAIN_AT_LOAD),
    ],
    ids=["built in", "paused", "scale mode off", "external", "off", "the tenant pool alone"],
)
def test_load_is_read_every_five_seconds_where_it_decides(spec: dict[str, Any], rhythm: timedelta) -> None:
    scale, seen = a_scale(spec=spec), an_observed()
    desired = what_is_desired(scale, seen)
    settled = replace(seen, children=children_of(desired))
    desired = replace(desired, flip=None)
    assert plan(scale, desired, settled, NOW).wake_at == NOW + rhythm


# ---- somebody else counts


EXTERNAL = {"workers": {"replicas": 2, "autoscaling": {"mode": "External"}}}


def _live(spec: dict[str, Any], replicas: int | None = None) -> Any:
    """Return the children of a scale; with `replicas`, somebody else has set those of its Deployment."""
    children = children_of(what_is_desired(a_scale(spec=spec)))
    return children if replicas is None else tuple(_scaled(child, replicas) for child in children)


def _scaled(child: Child, replicas: int) -> Child:
    """Return a child as a `kubectl scale` leaves a Deployment."""
    if child.ref.kind is not Kind.DEPLOYMENT:
        return child
    raw = copy.deepcopy(child.raw)
    raw["spec"]["replicas"] = replicas
    raw["status"] = a_deployment_status(replicas)
    (ours,) = raw["metadata"]["managedFields"]
    ours["fieldsV1"]["f:spec"].pop("f:replicas", None)
    theirs = {"manager": "kubectl", "operation": "Update", "subresource": "scale"}
    raw["metadata"]["managedFields"].append({**theirs, "fieldsV1": {"f:spec": {"f:replicas": {}}}})
    return Child.read(child.ref.kind, raw)


def _replicas(spec: dict[str, Any], children: Any) -> tuple[int | None, int]:
    """Return the replicas that are applied, None = left out, and those that the status tells."""
    desired = what_is_desired(a_scale(spec=spec), an_observed(children=children))
    return manifest_of(desired, Kind.DEPLOYMENT).body["spec"].get("replicas"), desired.workers


@pytest.mark.parametrize(
    ("children", "replicas"),
    [
        ((), (2, 2)),
        (_live(EXTERNAL), (2, 2)),
        (_live({"workers": {"replicas": 7}}), (7, 7)),
        (_live(EXTERNAL, 5), (None, 5)),
        (_live(EXTERNAL, 0), (None, 0)),
    ],
    ids=["a new one begins with ours", "ours alone", "adopted", "another's", "another's zero"],
)
def test_replicas_are_left_out_only_once_somebody_else_owns_them(
    children: Any, replicas: tuple[int | None, int]
) -> None:
    assert _replicas(EXTERNAL, children) == replicas


@pytest.mark.parametrize(
    ("spec", "replicas"),
    [({"workers": {"replicas": 2}}, 2), (_spec(), 5), (_spec(paused=True), 5), ({"enabled": False, **EXTERNAL}, 0)],
    ids=["off: the spec's", "built in: adopted", "paused: adopted", "scale mode off: ours"],
)
def test_on_the_way_back_a_number_is_applied(spec: dict[str, Any], replicas: int) -> None:
    scale, seen = a_scale(spec=spec), an_observed(children=_live(EXTERNAL, 5))
    asked = recommendations(scale, seen, {}, NOW)
    seen = replace(seen, recommended={name: each[0].replicas for name, each in asked.items()})
    assert manifest_of(what_is_desired(scale, seen), Kind.DEPLOYMENT).body["spec"]["replicas"] == replicas


def test_handing_over_is_one_apply_and_then_nothing_whatever_the_number() -> None:
    scale, children = a_scale(spec=EXTERNAL), _live(EXTERNAL, 5)
    seen = an_observed(children=children)
    made = plan(scale, what_is_desired(scale, seen), seen, NOW)
    (step,) = made.apply
    assert (step.manifest.ref.kind, step.event) == (Kind.DEPLOYMENT, None)
    given = tuple(
        a_child(step.manifest, status=a_deployment_status(5)) if child.ref == step.manifest.ref else child
        for child in children
    )
    for replicas in (5, 9, 0):
        seen = an_observed(children=tuple(_scaled(child, replicas) for child in given))
        assert plan(scale, what_is_desired(scale, seen), seen, NOW).empty


def test_a_shard_that_goes_is_ours_again() -> None:
    spec = {**EXTERNAL, "queue": {"shards": 2}}
    children = _live(spec, 5)
    desired = what_is_desired(a_scale(spec=EXTERNAL), an_observed(children=children))
    assert {shard.name: shard.handed_over for shard in desired.shards} == {"0": True, "1": False}
    assert {shard.name: shard.replicas for shard in desired.shards} == {"0": 5, "1": 5}
