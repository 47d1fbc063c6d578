"""When a look at the stores is enough, and what ends that."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from synapse_operator.api.common import JsonObject
from synapse_operator.autoscale import Recommendation
from synapse_operator.cluster.observe import ScaleKey
from synapse_operator.observed import QueueFigures, TopologyRecord, Unknown
from synapse_operator.plan import plan
from synapse_operator.rest import CHECKS, LONGEST_CHECK, Rest, Rests, at_rest
from synapse_worker.queueing import owner
from synapse_worker.routing import Topology
from synapse_worker.store import topology
from tests.builders import (
    NOW,
    SCALE_UID,
    a_scale,
    an_observed,
    children_of,
    what_is_desired,
)

KEY = ScaleKey("team-a", "demo")
RESYNC, RHYTHM, SOON = timedelta(seconds=60), timedelta(seconds=15), timedelta(seconds=1)
SETTLED: JsonObject = {
    "conditions": [
        {"type": "Ready", "status": "True"},
        {"type": "Reconciling", "status": "False"},
        {"type": "Stalled", "status": "False"},
    ]
}
REST = cast("Rest", object())


def rests() -> Rests:
    """One scale at rest since NOW."""
    found = Rests(RESYNC)
    found.begin(KEY, NOW)
    found.settle(KEY, REST, NOW)
    return found


def test_a_scale_rests_until_something_happens_or_a_whole_look_is_due() -> None:
    found = rests()
    assert found.get(KEY, NOW + timedelta(seconds=5)) is REST
    assert found.get(KEY, NOW + CHECKS * RESYNC) is None
    found.disturb(KEY)
    assert found.get(KEY, NOW + timedelta(seconds=5)) is None


def test_what_happens_during_a_look_keeps_the_scale_from_rest() -> None:
    found = Rests(RESYNC)
    found.begin(KEY, NOW)
    found.disturb(KEY)
    found.settle(KEY, REST, NOW)
    assert found.get(KEY, NOW) is None
    found.begin(KEY, NOW)
    found.settle(KEY, REST, NOW)
    assert found.get(KEY, NOW) is REST


def test_a_long_resync_lets_no_mark_run_out() -> None:
    found = Rests(timedelta(hours=1))
    found.begin(KEY, NOW)
    found.settle(KEY, REST, NOW)
    assert found.check_due(KEY, NOW + LONGEST_CHECK, RHYTHM)
    assert LONGEST_CHECK.total_seconds() * 2 < min(owner.OWNER_SECONDS, topology.OWNER_SECONDS)


def test_what_no_watch_tells_is_looked_at_once_a_resync() -> None:
    found = rests()
    assert not found.check_due(KEY, NOW + RESYNC - RHYTHM, RHYTHM)
    assert found.check_due(KEY, NOW + RESYNC - RHYTHM + SOON, RHYTHM), "the next look would be late"
    found.checked(KEY, NOW + RESYNC)
    assert not found.check_due(KEY, NOW + RESYNC + SOON, RHYTHM)


def verdict(*, spec: JsonObject | None = None, previous: JsonObject = SETTLED, **changes: Any) -> bool:
    """Judge a scale that has all it wants, but for what is given."""
    scale = a_scale(spec=spec, **changes.pop("metadata", {}))
    recent, todo = changes.pop("recent", {}), changes.pop("todo", None)
    row = TopologyRecord(1, Topology(1), enabled=True, owner_uid=SCALE_UID)
    seen = an_observed(topology=row)
    seen = replace(seen, children=children_of(what_is_desired(scale, seen)), **changes)
    desired = what_is_desired(scale, seen)
    return at_rest(scale, desired, seen, todo or plan(scale, desired, seen, NOW), recent, previous)


def test_a_scale_with_nothing_to_do_is_at_rest() -> None:
    assert verdict()


@pytest.mark.parametrize(
    "changes",
    [
        {"queues": {"default": QueueFigures(queued=1, active=0, oldest_seconds=1.0)}},
        {"queues": {"default": QueueFigures(queued=0, active=1, oldest_seconds=None)}},
        {"queues": Unknown("Redis is away")},
        {"previous": {}},
        {"previous": {"conditions": [{"type": "Ready", "status": "False"}, *SETTLED["conditions"][1:]]}},
        {"previous": {"conditions": [*SETTLED["conditions"], {"type": "RedisSafe", "status": "False"}]}},
        {"previous": {"conditions": [*SETTLED["conditions"], {"type": "BackendExclusive", "status": "False"}]}},
        {"spec": {"queue": {"shards": 2}}},
        {"spec": {"observability": {"podMonitor": {"enabled": True}}}},
        {"metadata": {"annotations": {"scale.synapseorch.com/paused": "true"}}},
        {"recent": {"0": (Recommendation(NOW, 3), Recommendation(NOW, 1))}},
    ],
    ids=[
        *("a job waits", "a job runs", "a store is away", "no status yet", "not ready"),
        *("Redis may drop jobs", "another scale has the stores", "a shard is not used yet"),
        *("a kind that is not watched", "paused", "fewer workers are due some time"),
    ],
)
def test_what_keeps_a_scale_from_rest(changes: dict[str, Any]) -> None:
    assert not verdict(**changes)


def test_one_that_waits_for_its_turn_to_replace_pods_is_not_at_rest() -> None:
    scale = a_scale(spec={"image": "another/worker:2"})
    seen = an_observed(topology=TopologyRecord(1, Topology(1), enabled=True, owner_uid=SCALE_UID))
    seen = replace(seen, children=children_of(what_is_desired(a_scale(), seen)))
    desired = what_is_desired(scale, seen)
    todo = plan(scale, desired, seen, NOW, may_roll=False)
    assert todo.empty
    assert not at_rest(scale, desired, seen, todo, {}, SETTLED)
