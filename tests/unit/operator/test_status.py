"""What the user reads: the right reason for each trouble, nothing written twice, no secret anywhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from synapse_operator.api.common import JsonObject
from synapse_operator.api.crd import crd
from synapse_operator.api.reasons import ConditionType, EventReason, Reason
from synapse_operator.api.scale import MAX_SYNC_MESSAGE, SCALE_RESOURCE, InvalidScale, SynapseScale, read_scale
from synapse_operator.api_keys import KeyEntries
from synapse_operator.desired import Blocked, Desired, desired_for_scale
from synapse_operator.naming import PAUSED_ANNOTATION, Kind
from synapse_operator.observed import (
    Found,
    KeyMissing,
    NotTried,
    Observed,
    Overview,
    PostgresAnswers,
    QueueFigures,
    RedisAnswers,
    SecretMissing,
    SyncOutcome,
    TopologyRecord,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_operator.plan import ApplyReport, Event, Failure
from synapse_operator.status import (
    FIGURES_EVERY,
    MINIMUM_REDIS,
    SAFE_EVICTION_POLICY,
    figures_due,
    invalid_status,
    next_status,
    transition_events,
)
from synapse_worker import connections
from synapse_worker.routing import ONE_QUEUE
from synapse_worker.sync.documents import Problem
from tests.builders import (
    HASH_KEY,
    IMAGE,
    NOW,
    POSTGRES_URL,
    a_child,
    a_deployment_status,
    a_pod,
    a_scale,
    a_scale_body,
    an_observed,
    children_of,
    manifest_of,
    what_is_desired,
)

LATER = NOW + timedelta(minutes=5)
SCALE = a_scale(spec={"workers": {"replicas": 2}}, generation=3)
DESIRED = what_is_desired(SCALE)
ALL_READY = children_of(DESIRED)


@dataclass(frozen=True)
class Told:
    """A status, with its conditions by type."""

    status: JsonObject

    def condition(self, type_: ConditionType) -> tuple[str, str]:
        """Return status and reason."""
        condition = self._find(type_)
        return condition["status"], condition["reason"]

    def message(self, type_: ConditionType) -> str:
        """Return the message."""
        found: str = self._find(type_)["message"]
        return found

    def _find(self, type_: ConditionType) -> JsonObject:
        (condition,) = [each for each in self.status["conditions"] if each["type"] == type_]
        found: JsonObject = condition
        return found


def _next(
    *,
    scale: SynapseScale = SCALE,
    desired: Desired | Blocked | None = None,
    report: ApplyReport | None = None,
    previous: JsonObject | None = None,
    now: Any = NOW,
    figures: bool = True,
    **changes: Any,
) -> JsonObject | None:
    observed = an_observed(**{"children": ALL_READY, **changes})
    if desired is None:
        desired = desired_for_scale(scale, observed, default_image=IMAGE, hash_key=HASH_KEY)
    return next_status(
        scale, desired, observed, report or ApplyReport(), previous=previous or {}, now=now, figures=figures
    )


def _told(**arguments: Any) -> Told:
    status = _next(**arguments)
    assert status is not None
    return Told(status)


READY = _told()


def _partly(ready: int, **status: Any) -> dict[str, Any]:
    """Return observed changes in which `ready` of the workers are ready."""
    deployment = manifest_of(DESIRED, Kind.DEPLOYMENT)
    child = a_child(deployment, status=a_deployment_status(2, ready=ready) | status)
    return {"children": (*(other for other in ALL_READY if other.ref != child.ref), child)}


# ---- ready


def test_a_scale_with_all_its_workers_is_ready() -> None:
    assert READY.condition(ConditionType.READY) == ("True", "WorkersReady")
    assert READY.condition(ConditionType.RECONCILING) == ("False", "Settled")
    assert READY.condition(ConditionType.STALLED) == ("False", "NothingToDo")
    assert READY.condition(ConditionType.REDIS_REACHABLE) == ("True", "Reachable")
    assert READY.condition(ConditionType.REDIS_SAFE) == ("True", "NoEviction")
    assert READY.condition(ConditionType.POSTGRES_REACHABLE) == ("True", "Reachable")
    assert READY.condition(ConditionType.BACKEND_EXCLUSIVE) == ("True", "Exclusive")
    assert READY.condition(ConditionType.CHILDREN_APPLIED) == ("True", "Applied")


def test_the_rest_of_the_status() -> None:
    status = {key: value for key, value in READY.status.items() if key != "conditions"}
    assert status == {
        "observedGeneration": 3,
        "replicas": 2,
        "selector": "scale.synapseorch.com/role=worker,scale.synapseorch.com/scale=demo",
        "workers": {"desired": 2, "ready": 2, "summary": "2/2", "capacity": 10, "active": 0},
        "queue": {"queued": 0, "active": 0, "parked": 0, "deadLettered": 0},
        "shards": [
            {
                "name": "0",
                "queue": "default,0",
                "desired": 2,
                "ready": 2,
                "queued": 0,
                "active": 0,
                "state": "Active",
            }
        ],
        "effective": {
            "concurrency": {"value": 10, "source": "Default"},
            "jobTimeoutSeconds": {"value": 3600, "source": "Default"},
            "maxRetries": {"value": 3, "source": "Default"},
            "eventTtlSeconds": {"value": 3600, "source": "Default"},
            "runDays": {"value": 90, "source": "Default"},
        },
        "image": IMAGE,
    }


def test_effective_values_say_where_they_come_from() -> None:
    scale = a_scale(spec={"workers": {"concurrency": 5, "replicas": 2}, "retention": {"runDays": 7}})
    told = _told(scale=scale, stored={"worker_concurrency": 7, "job_timeout": 60, "runs_retention_days": 30})
    assert told.status["effective"] == {
        "concurrency": {"value": 5, "source": "Spec"},
        "jobTimeoutSeconds": {"value": 60, "source": "Stored"},
        "maxRetries": {"value": 3, "source": "Default"},
        "eventTtlSeconds": {"value": 3600, "source": "Default"},
        "runDays": {"value": 7, "source": "Spec"},
    }
    assert _told(scale=scale, stored=Unknown("away")).status["effective"] == {
        "concurrency": {"value": 5, "source": "Spec"},
        "runDays": {"value": 7, "source": "Spec"},
    }


def test_a_queue_with_jobs_and_no_worker_by_order_is_named() -> None:
    scale = a_scale(spec={"workers": {"replicas": 0}})
    told = _told(scale=scale, queues={"default": QueueFigures(1, 0, 1.0), "0": QueueFigures(0, 0, None)})
    assert told.status["unservedQueues"] == ["default"]
    assert "unservedQueues" not in READY.status


def test_a_shard_tells_its_pool_and_its_own_figures() -> None:
    spec = {"queue": {"shards": 2}, "pools": [{"name": "big", "shards": [1], "replicas": 3}]}
    queues = {"default": QueueFigures(2, 1, 1.0), "0": QueueFigures(1, 0, 1.0), "1": QueueFigures(5, 4, 1.0, parked=2)}
    told = _told(scale=a_scale(spec=spec), queues=queues)
    assert [(each["name"], each.get("pool"), each["queued"], each["active"]) for each in told.status["shards"]] == [
        ("0", None, 3, 1),
        ("1", "big", 5, 4),
    ]
    assert told.status["shards"][1]["state"] == "Idle"
    assert told.status["queue"]["parked"] == 2
    assert told.condition(ConditionType.RECONCILING) == ("True", "RollingOut")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queues": Unknown("away")}, "Shards 1 stay until both stores answer"),
        ({"behind": ("api-1", "api-2")}, "Shards 1 stay until these producers have heard of it: api-1, api-2"),
        ({"queues": {"1": QueueFigures(1, 0, 1.0)}}, "Shards 1 work off what they hold: 1 job"),
        ({}, "Shards 1 work off what they hold: 0 jobs"),
    ],
)
def test_a_drain_says_what_it_waits_for(changes: dict[str, Any], message: str) -> None:
    two = a_scale(spec={"queue": {"shards": 2}})
    told = _told(scale=a_scale(), children=children_of(what_is_desired(two)), **changes)
    assert told.condition(ConditionType.RECONCILING) == ("True", "Draining")
    assert told.message(ConditionType.RECONCILING) == message
    assert told.condition(ConditionType.READY) == ("True", "WorkersReady")


def test_figures_of_shards_wait_too() -> None:
    assert _next(previous=READY.status, figures=False, queues={"default": QueueFigures(9, 1, None)}) is None


def test_a_row_that_cannot_be_written_is_said() -> None:
    told = _told(report=ApplyReport(flip_failure="PostgreSQL refuses: no rights"))
    assert told.condition(ConditionType.READY) == ("False", "TopologyNotWritten")
    assert told.message(ConditionType.READY) == "PostgreSQL refuses: no rights"


def test_all_conditions_are_there_in_order_and_of_this_generation() -> None:
    conditions = READY.status["conditions"]
    assert [condition["type"] for condition in conditions] == sorted(ConditionType)
    assert {condition["observedGeneration"] for condition in conditions} == {3}
    assert {condition["lastTransitionTime"] for condition in conditions} == {"2026-11-24T12:00:00Z"}


def test_a_new_scale_is_on_its_way() -> None:
    told = _told(children=(), report=ApplyReport(applied=tuple(m.ref for m in DESIRED.manifests)))
    assert told.condition(ConditionType.READY) == ("False", "WorkersNotReady")
    assert told.message(ConditionType.READY) == "0 of 2 workers are ready"
    assert told.condition(ConditionType.RECONCILING) == ("True", "RollingOut")
    assert told.condition(ConditionType.STALLED) == ("False", "NothingToDo")
    assert told.status["workers"]["summary"] == "0/2"


def test_a_rollout_with_full_capacity_stays_ready() -> None:
    told = _told(**_partly(2, replicas=3, updatedReplicas=1))
    assert told.condition(ConditionType.READY) == ("True", "WorkersReady")
    assert told.condition(ConditionType.RECONCILING) == ("True", "RollingOut")


@pytest.mark.parametrize(
    ("autoscaling", "ready", "expected"),
    [
        ({"mode": "BuiltIn", "minReplicas": 1, "maxReplicas": 9}, 1, "True"),
        ({"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 9}, 1, "True"),
        ({"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 9}, 0, "False"),
        ({"mode": "BuiltIn", "minReplicas": 3, "maxReplicas": 9}, 2, "False"),
        ({"mode": "External"}, 1, "True"),
        ({"mode": "External"}, 0, "False"),
        ({"mode": "Off"}, 4, "False"),
    ],
)
def test_more_workers_by_load_are_no_reason_not_to_be_ready(
    autoscaling: dict[str, Any], ready: int, expected: str
) -> None:
    scale = a_scale(spec={"workers": {"replicas": 5, "autoscaling": autoscaling}})
    before = an_observed(recommended={"0": 5})
    told = _told(scale=scale, recommended={"0": 5}, children=children_of(what_is_desired(scale, before), ready=ready))
    assert told.condition(ConditionType.READY)[0] == expected
    assert told.condition(ConditionType.RECONCILING) == ("True", "RollingOut")
    assert told.message(ConditionType.READY) == f"{ready} of 5 workers are ready"


def test_what_was_just_applied_is_not_settled() -> None:
    told = _told(report=ApplyReport(applied=(manifest_of(DESIRED, Kind.DEPLOYMENT).ref,)))
    assert told.condition(ConditionType.RECONCILING) == ("True", "RollingOut")


def test_no_worker_wanted_is_ready_too() -> None:
    scale = a_scale(spec={"workers": {"replicas": 0}})
    children = children_of(what_is_desired(scale))
    told = _told(scale=scale, children=children)
    assert told.condition(ConditionType.READY) == ("True", "ScaledToZero")
    assert told.condition(ConditionType.RECONCILING) == ("False", "Settled")


@pytest.mark.parametrize(
    ("autoscaling", "message"),
    [
        ({}, "No worker is wanted (workers.replicas is 0); jobs wait"),
        (
            {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 3},
            "No worker is wanted, since there is nothing to do; the next job brings one",
        ),
        (
            {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 3, "paused": True},
            "There is no worker, and workers.autoscaling.paused keeps it so; jobs wait",
        ),
        (
            {"mode": "External"},
            "No worker is wanted by whoever scales the Deployments (workers.autoscaling.mode is External); jobs wait",
        ),
    ],
    ids=["replicas 0", "nothing to do", "paused", "external"],
)
def test_why_no_worker_is_wanted_is_said(autoscaling: dict[str, Any], message: str) -> None:
    scale = a_scale(spec={"workers": {"replicas": 0, "autoscaling": autoscaling}})
    told = _told(scale=scale, children=children_of(what_is_desired(scale)))
    assert told.message(ConditionType.READY) == message


@pytest.mark.parametrize(
    ("queued", "message"),
    [(0, "Scale mode is off; no work is left"), (2, "Scale mode is off; workers finish what is left")],
)
def test_a_disabled_scale_says_whether_work_is_left(queued: int, message: str) -> None:
    scale = a_scale(spec={"enabled": False, "workers": {"replicas": 2}})
    told = _told(scale=scale, queues={"default": QueueFigures(queued, 0, None)})
    assert told.condition(ConditionType.READY) == ("True", "Disabled")
    assert told.message(ConditionType.READY) == message


def test_a_paused_scale_says_so_and_compares_nothing() -> None:
    paused = a_scale(spec={"workers": {"replicas": 5}}, annotations={PAUSED_ANNOTATION: "true"})
    told = _told(scale=paused)
    assert told.condition(ConditionType.PAUSED) == ("True", "PausedByAnnotation")
    assert told.condition(ConditionType.CHILDREN_APPLIED) == ("Unknown", "PausedByAnnotation")
    assert told.condition(ConditionType.RECONCILING) == ("False", "Settled")
    assert told.status["workers"]["summary"] == "2/5"
    assert READY.condition(ConditionType.PAUSED) == ("False", "NotPaused")


# ---- troubles


def _pods(**pod: Any) -> dict[str, Any]:
    return {**_partly(0), "pods": (a_pod("p", **pod),)}


NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
QUOTA = 'pods "x" is forbidden: exceeded quota: small, requested: limits.memory=1Gi'

TROUBLES: Mapping[str, tuple[dict[str, Any], Reason, bool, str]] = {
    # name: (observed changes, reason of Ready, stalled, part of the message)
    "no Secret": ({"redis_url": SecretMissing("create it")}, Reason.SECRET_NOT_FOUND, True, "create it"),
    "no key": ({"postgres_url": KeyMissing("add it")}, Reason.SECRET_KEY_NOT_FOUND, True, "add it"),
    "Secret unreadable": ({"redis_url": Unknown("forbidden")}, Reason.SECRET_UNREADABLE, False, "forbidden"),
    "Redis URL": ({"redis": Unusable("names no host")}, Reason.REDIS_UNUSABLE, True, "names no host"),
    "Postgres URL": ({"postgres": Unusable("no database")}, Reason.POSTGRES_UNUSABLE, True, "no database"),
    "Redis away": ({"redis": Unreachable("Redis is away")}, Reason.REDIS_UNREACHABLE, False, "check that it runs"),
    "Postgres away": ({"postgres": Unreachable("PostgreSQL is away")}, Reason.POSTGRES_UNREACHABLE, False, "is away"),
    "no image": (
        _pods(waiting={"reason": "ImagePullBackOff", "message": "Back-off pulling image"}),
        Reason.IMAGE_PULL_FAILED,
        True,
        "check image, imagePullPolicy and imagePullSecrets",
    ),
    "container config": (
        _pods(waiting={"reason": "CreateContainerConfigError", "message": "container has runAsNonRoot"}),
        Reason.POD_CONFIG_ERROR,
        True,
        "runs as a numeric user",
    ),
    "crash": (
        _pods(waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 1, "message": "boom"}, restarts=5),
        Reason.CRASH_LOOP,
        True,
        "exited with code 1: boom; read its log",
    ),
    "no node": (_pods(conditions=[NO_NODE]), Reason.UNSCHEDULABLE, False, "0/3 nodes are available; add nodes"),
    "quota for pods": (
        _partly(0, conditions=[{"type": "ReplicaFailure", "status": "True", "message": QUOTA}]),
        Reason.QUOTA_EXCEEDED,
        True,
        "raise the ResourceQuota",
    ),
    "policy for pods": (
        _partly(0, conditions=[{"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}]),
        Reason.REFUSED,
        True,
        "violates PodSecurity",
    ),
    "not ready": (_partly(1), Reason.WORKERS_NOT_READY, False, "1 of 2 workers are ready"),
}


@pytest.mark.parametrize("name", TROUBLES)
def test_each_trouble_has_its_reason_and_says_what_to_do(name: str) -> None:
    changes, reason, stalled, words = TROUBLES[name]
    told = _told(**changes)
    assert told.condition(ConditionType.READY) == ("False", reason)
    assert words in told.message(ConditionType.READY)
    if stalled:
        assert told.condition(ConditionType.STALLED) == ("True", reason)
        assert told.message(ConditionType.STALLED) == told.message(ConditionType.READY)
        assert told.condition(ConditionType.RECONCILING)[0] == "False"
    else:
        assert told.condition(ConditionType.STALLED) == ("False", "NothingToDo")


@pytest.mark.parametrize(
    ("reason", "stalled"),
    [
        (Reason.QUOTA_EXCEEDED, True),
        (Reason.REFUSED, True),
        (Reason.KIND_ABSENT, True),
        (Reason.NAME_TAKEN, True),
        (Reason.CLUSTER_UNAVAILABLE, False),
    ],
)
def test_what_could_not_be_applied_is_said_with_the_servers_words(reason: Reason, stalled: bool) -> None:
    ref = manifest_of(DESIRED, Kind.SERVICE).ref
    told = _told(report=ApplyReport(failures=(Failure(ref, reason, "the server says no"),)))
    assert told.condition(ConditionType.CHILDREN_APPLIED) == ("False", reason)
    assert told.message(ConditionType.CHILDREN_APPLIED) == f"{ref}: the server says no"
    assert told.condition(ConditionType.READY) == ("False", reason)
    assert told.condition(ConditionType.STALLED)[0] == str(stalled)
    assert told.condition(ConditionType.RECONCILING)[0] == str(not stalled)


def test_refused_pods_are_told_in_children_applied() -> None:
    told = _told(**TROUBLES["quota for pods"][0])
    assert told.condition(ConditionType.CHILDREN_APPLIED) == ("False", "QuotaExceeded")
    message = told.message(ConditionType.CHILDREN_APPLIED)
    assert message == "pods cannot be created: a pod is forbidden: exceeded quota: small, requested: limits.memory=1Gi"


def test_a_blocked_scale_keeps_its_figures_of_workers_and_says_frozen() -> None:
    told = _told(redis_url=SecretMissing("create it"), redis=NotTried("no URL"), previous={"image": "old"})
    assert told.condition(ConditionType.CHILDREN_APPLIED) == ("Unknown", "Frozen")
    assert told.condition(ConditionType.REDIS_REACHABLE) == ("Unknown", "NotTried")
    assert told.condition(ConditionType.REDIS_SAFE) == ("Unknown", "NotTried")
    assert told.status["workers"]["summary"] == "2/2"
    assert told.status["image"] == "old"


def test_the_cause_is_told_before_its_consequence() -> None:
    crash = _pods(waiting={"reason": "CrashLoopBackOff"}, restarts=4)
    told = _told(**crash, redis=Unreachable("Redis is away"))
    assert told.condition(ConditionType.READY) == ("False", "RedisUnreachable")


def test_pods_do_not_matter_where_none_is_wanted() -> None:
    scale = a_scale(spec={"workers": {"replicas": 0}})
    told = _told(scale=scale, pods=(a_pod(waiting={"reason": "CrashLoopBackOff"}),))
    assert told.condition(ConditionType.READY) == ("True", "ScaledToZero")


# ---- Redis and Postgres


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        (RedisAnswers("7.2.4", "noeviction"), ("True", "NoEviction")),
        (RedisAnswers("6.2.0", "noeviction"), ("True", "NoEviction")),
        (RedisAnswers("7.2.4", "noeviction", clustered=True), ("True", "NoArqPeers")),
        (RedisAnswers("7.2.4", "allkeys-lru", clustered=True), ("False", "EvictionPolicy")),
        (RedisAnswers("7.2.4", "allkeys-lru"), ("False", "EvictionPolicy")),
        (RedisAnswers("7.2.4", "volatile-ttl"), ("False", "EvictionPolicy")),
        (RedisAnswers("7.2.4", ""), ("Unknown", "EvictionPolicyUnknown")),
        (RedisAnswers("6.0.16", "noeviction"), ("False", "RedisTooOld")),
        (RedisAnswers("5", "noeviction"), ("False", "RedisTooOld")),
        (RedisAnswers("unstable", "noeviction"), ("True", "NoEviction")),
        (RedisAnswers("", "noeviction"), ("True", "NoEviction")),
        (Unreachable("away"), ("Unknown", "NotTried")),
    ],
)
def test_redis_safe(redis: Any, expected: tuple[str, str]) -> None:
    assert _told(redis=redis).condition(ConditionType.REDIS_SAFE) == expected


@pytest.mark.parametrize(("shards", "told"), [(1, True), (11, True), (12, False), (64, False)])
def test_a_cluster_with_few_queues_is_told_that_masters_may_be_idle(shards: int, told: bool) -> None:
    scale = a_scale(spec={"queue": {"shards": shards}})
    found = _told(scale=scale, redis=RedisAnswers("7.2.4", "noeviction", clustered=True, masters=3))
    message = found.message(ConditionType.REDIS_SAFE)
    assert (f"one of its 3 masters: with fewer than 12 shards (queue.shards is {shards})" in message) is told


def test_a_database_of_another_scale_is_told() -> None:
    row = TopologyRecord(1, ONE_QUEUE, enabled=True, owner_uid="another")
    found = _told(topology=row)
    assert found.condition(ConditionType.BACKEND_EXCLUSIVE) == ("False", "BackendShared")
    message = found.message(ConditionType.BACKEND_EXCLUSIVE)
    assert message.startswith("The PostgreSQL database is in use by another SynapseScale (UID another)")
    gone = _told(topology=replace(row, owner_gone=True))
    assert gone.condition(ConditionType.BACKEND_EXCLUSIVE) == ("True", "Exclusive")


def test_an_unsafe_redis_is_a_warning_and_no_more() -> None:
    told = _told(redis=RedisAnswers("7.2.4", "allkeys-lru"))
    assert told.condition(ConditionType.READY) == ("True", "WorkersReady")
    assert told.message(ConditionType.REDIS_SAFE).endswith("set it to noeviction")


def test_the_bounds_of_redis_are_those_of_the_worker() -> None:
    assert MINIMUM_REDIS == connections.MINIMUM_REDIS
    assert SAFE_EVICTION_POLICY == connections.SAFE_EVICTION_POLICY


def test_a_redis_of_another_scale_is_a_warning_and_an_event() -> None:
    told = _told(redis_owner="another-uid")
    assert told.condition(ConditionType.BACKEND_EXCLUSIVE) == ("False", "BackendShared")
    assert "UID another-uid" in told.message(ConditionType.BACKEND_EXCLUSIVE)
    assert told.condition(ConditionType.READY) == ("True", "WorkersReady")
    (event,) = transition_events(READY.status, told.status)
    assert (event.type, event.reason) == ("Warning", EventReason.BACKEND_SHARED)
    assert transition_events(told.status, told.status) == ()


def test_whose_a_silent_redis_is_is_unknown() -> None:
    told = _told(redis_owner=Unknown("Redis is out of memory"))
    assert told.condition(ConditionType.BACKEND_EXCLUSIVE) == ("Unknown", "NotTried")
    assert transition_events(READY.status, told.status) == ()


def test_a_database_without_tables_is_reachable() -> None:
    told = _told(postgres=PostgresAnswers(schema_version=None))
    assert told.condition(ConditionType.POSTGRES_REACHABLE) == ("True", "Reachable")
    assert "creates its tables" in told.message(ConditionType.POSTGRES_REACHABLE)


# ---- figures


def test_unknown_figures_are_absent_and_never_zero() -> None:
    unknown = Unknown("away")
    told = _told(queues=unknown, overview=unknown)
    assert "queue" not in told.status
    assert told.status["workers"] == {"desired": 2, "ready": 2, "summary": "2/2"}
    assert _told(queues=unknown).status["queue"] == {"deadLettered": 0}
    assert _told(overview=unknown).status["queue"] == {"queued": 0, "active": 0, "parked": 0}


WORK: dict[str, Any] = {
    "queues": {"default": QueueFigures(3, 2, 7.9)},
    "overview": Overview(dead_letters=4, slots=20, active_jobs=2, open_jobs=5),
}


def test_figures_are_written_when_they_are_due() -> None:
    told = _told(previous=READY.status, now=LATER, **WORK)
    assert told.status["queue"] == {"queued": 3, "active": 2, "parked": 0, "oldestSeconds": 7, "deadLettered": 4}
    assert told.status["workers"]["capacity"] == 20


def test_figures_alone_write_nothing_before() -> None:
    assert _next(previous=READY.status, now=LATER, figures=False, **WORK) is None


def test_a_transition_is_written_at_once_with_the_figures_of_before() -> None:
    told = _told(previous=READY.status, now=LATER, figures=False, **WORK, **_partly(1))
    assert told.condition(ConditionType.READY) == ("False", "WorkersNotReady")
    assert told.status["queue"] == READY.status["queue"]
    assert told.status["workers"] == {"desired": 2, "ready": 1, "summary": "1/2", "capacity": 10, "active": 0}


def test_another_message_for_the_same_trouble_waits_for_the_figures() -> None:
    """Kubelet alternates between ErrImagePull and ImagePullBackOff for as long as an image is missing."""
    one = _told(**_pods(waiting={"reason": "ErrImagePull", "message": "not found"}))
    other = _pods(waiting={"reason": "ImagePullBackOff", "message": "back-off"})
    assert _next(previous=one.status, now=LATER, figures=False, **other) is None
    assert "back-off" in _told(previous=one.status, now=LATER, figures=True, **other).message(ConditionType.READY)


def test_figures_become_known_and_unknown_at_once() -> None:
    unknown = Unknown("away")
    without = _told(queues=unknown, overview=unknown).status
    assert _told(previous=without, figures=False).status["queue"] == READY.status["queue"]
    assert _told(previous=without, figures=False).status["workers"]["capacity"] == 10
    assert "queue" not in _told(previous=READY.status, figures=False, queues=unknown, overview=unknown).status


def test_when_figures_are_due() -> None:
    assert figures_due(None, NOW)
    assert not figures_due(NOW, NOW + FIGURES_EVERY - timedelta(seconds=1))
    assert figures_due(NOW, NOW + FIGURES_EVERY)


# ---- when nothing is written


def test_nothing_is_written_twice() -> None:
    assert _next(previous=READY.status, now=LATER) is None


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_that_goes_on_is_written_once(name: str) -> None:
    changes = TROUBLES[name][0]
    assert _next(previous=_told(**changes).status, now=LATER, **changes) is None


def test_a_transition_time_moves_only_when_the_status_flips() -> None:
    told = _told(previous=READY.status, now=LATER, redis=Unreachable("away"))
    times = {each["type"]: each["lastTransitionTime"] for each in told.status["conditions"]}
    assert times["Ready"] == times["RedisReachable"] == "2026-11-24T12:05:00Z"
    assert times["PostgresReachable"] == times["Stalled"] == "2026-11-24T12:00:00Z"
    other = _told(previous=told.status, now=LATER + timedelta(hours=1), redis=Unreachable("still away"))
    assert {each["type"]: each["lastTransitionTime"] for each in other.status["conditions"]} == times


def test_a_new_generation_is_written() -> None:
    newer = a_scale(spec={"workers": {"replicas": 2}}, generation=4)
    status = _next(scale=newer, previous=READY.status, now=LATER)
    assert status is not None
    assert status["observedGeneration"] == 4
    assert {condition["lastTransitionTime"] for condition in status["conditions"]} == {"2026-11-24T12:00:00Z"}


def test_conditions_of_others_are_neither_kept_nor_fought() -> None:
    foreign = copy.deepcopy(READY.status)
    foreign["conditions"].insert(0, {"type": "Theirs", "status": "True"})
    assert _next(previous=foreign, now=LATER) is None


# ---- secrets


def test_no_secret_gets_into_a_status_or_an_event() -> None:
    url = "postgresql://synapse:p%40ss-word@postgres/synapse"
    said = f"cannot connect to {url} with p%40ss-word, that is p@ss-word, or redis-password"
    told = _told(
        postgres_url=Found(SecretStr(url)),
        **_pods(waiting={"reason": "CrashLoopBackOff"}, last={"exitCode": 1, "message": said}, restarts=5),
    )
    text = json.dumps(told.status) + repr(transition_events({}, told.status))
    for secret in ("p%40ss-word", "p@ss-word", "redis-password"):
        assert secret not in text
    assert "cannot connect to *** with ***, that is ***, or ***" in text


# ---- events


def test_an_event_for_each_transition_and_none_otherwise() -> None:
    down = _told(previous=READY.status, now=LATER, redis=Unreachable("Redis is away"))
    assert transition_events({}, READY.status) == (
        Event("Normal", EventReason.BECAME_READY, "2 of 2 workers are ready"),
    )
    (event,) = transition_events(READY.status, down.status)
    assert (event.type, event.reason) == ("Warning", EventReason.NOT_READY)
    assert event.message.startswith("RedisUnreachable: Redis is away")
    assert transition_events(down.status, down.status) == ()
    assert transition_events(READY.status, _told(**WORK).status) == ()


def test_a_start_and_a_resize_are_no_warnings() -> None:
    assert transition_events({}, _told(children=()).status) == ()
    assert transition_events(READY.status, _told(**_partly(1)).status) == ()


def test_another_reason_is_another_event() -> None:
    one = _told(redis=Unreachable("away"))
    other = _told(postgres=Unreachable("away"))
    (event,) = transition_events(one.status, other.status)
    assert event.message.startswith("PostgresUnreachable: ")


def test_an_unsafe_redis_is_an_event() -> None:
    told = _told(redis=RedisAnswers("7.2.4", "allkeys-lru"))
    (event,) = transition_events(READY.status, told.status)
    assert (event.type, event.reason) == ("Warning", EventReason.REDIS_UNSAFE)


# ---- an object that cannot be read


def test_an_invalid_scale_is_stalled_and_its_children_are_frozen() -> None:
    invalid = read_scale(a_scale_body(spec={"workers": {"replicas": -1}}, generation=4))
    assert isinstance(invalid, InvalidScale)
    status = invalid_status(invalid, previous=READY.status, now=LATER)
    assert status is not None
    told = Told(status)
    assert told.condition(ConditionType.READY) == ("False", "InvalidSpec")
    assert told.condition(ConditionType.STALLED) == ("True", "InvalidSpec")
    assert told.condition(ConditionType.CHILDREN_APPLIED) == ("Unknown", "Frozen")
    assert "spec.workers.replicas" in told.message(ConditionType.STALLED)
    assert status["workers"] == READY.status["workers"]
    assert invalid_status(invalid, previous=status, now=LATER + timedelta(hours=1)) is None


# ---- definitions


SYNCING = a_scale(
    spec={"workers": {"replicas": 2}, "sync": {"sources": [{"configMapRef": {"name": "defs"}}]}}, generation=3
)
BAD = Problem("ConfigMap defs", "a.yaml", 7, "It is bad.")
GONE = Problem("Secret keys", "", None, "It does not exist.")


def _outcome(**changes: Any) -> SyncOutcome:
    ordinary = SyncOutcome(
        at=NOW, written=3, total=3, problems=(), not_found=False, unreadable=False, failure="", asked=None
    )
    return replace(ordinary, **changes)


SYNCED = _told(scale=SYNCING, sync=_outcome())


@pytest.mark.parametrize(
    ("outcome", "condition", "words"),
    [
        (_outcome(), ("True", "Synced"), "3 definitions and settings of 1 source are synced"),
        (
            _outcome(problems=(BAD, BAD)),
            ("False", "DocumentsRefused"),
            "3 definitions and settings of 1 source are synced; 2 errors, see status.sync.errors; "
            "the first: ConfigMap defs/a.yaml:7: It is bad.",
        ),
        (
            _outcome(problems=(GONE, BAD), not_found=True),
            ("False", "SourceNotFound"),
            "Secret keys: It does not exist.",
        ),
        (_outcome(problems=(GONE,), unreadable=True), ("False", "SourceUnreadable"), "1 error,"),
        (_outcome(failure="No rights."), ("False", "SyncFailed"), "ended early and is tried again: No rights."),
        (None, ("Unknown", "SyncPending"), "The sync is under way"),
    ],
)
def test_what_became_of_a_sync(outcome: SyncOutcome | None, condition: tuple[str, str], words: str) -> None:
    told = _told(scale=SYNCING, sync=outcome)
    assert told.condition(ConditionType.DEFINITIONS_SYNCED) == condition
    assert words in told.message(ConditionType.DEFINITIONS_SYNCED)
    assert told.condition(ConditionType.READY)[0] == "True", "workers run on with what is there"


def test_why_a_sync_has_not_begun() -> None:
    def why(**changes: Any) -> str:
        return _told(scale=SYNCING, **changes).message(ConditionType.DEFINITIONS_SYNCED)

    assert why(postgres=Unreachable("PostgreSQL is away")) == "The sync waits for PostgreSQL: PostgreSQL is away"
    assert "the first worker, which creates or completes the tables" in why(postgres=PostgresAnswers(None))
    by_hand = a_scale(spec={"sync": {"auto": False, "sources": [{"secretRef": {"name": "keys"}}]}})
    told = _told(scale=by_hand)
    assert told.condition(ConditionType.DEFINITIONS_SYNCED) == ("Unknown", "SyncNotAsked")
    assert "set the annotation scale.synapseorch.com/sync-now" in told.message(ConditionType.DEFINITIONS_SYNCED)
    assert READY.condition(ConditionType.DEFINITIONS_SYNCED) == ("True", "NoSources")


def test_figures_of_a_sync() -> None:
    assert SYNCED.status["sync"] == {"lastSyncTime": "2026-11-24T12:00:00Z", "totalSynced": 3}
    told = _told(scale=SYNCING, sync=_outcome(problems=(GONE, *[BAD] * 30), asked="7"))
    sync = told.status["sync"]
    assert sync["syncNow"] == "7"
    assert sync["errors"][:2] == [
        {"source": "Secret keys", "message": "It does not exist."},
        {"source": "ConfigMap defs", "key": "a.yaml", "line": 7, "message": "It is bad."},
    ]
    assert len(sync["errors"]) == 20
    assert "31 errors" in told.message(ConditionType.DEFINITIONS_SYNCED)


def test_a_sync_without_news_writes_nothing() -> None:
    again = _outcome(at=LATER, written=0)
    assert _next(scale=SYNCING, sync=again, previous=SYNCED.status, now=LATER) is None
    changed = _next(scale=SYNCING, sync=_outcome(at=LATER, written=1), previous=SYNCED.status, now=LATER)
    assert changed is not None
    assert changed["sync"]["lastSyncTime"] == "2026-11-24T12:05:00Z"
    asked = _next(scale=SYNCING, sync=_outcome(at=LATER, written=0, asked="1"), previous=SYNCED.status, now=LATER)
    assert asked is not None
    assert asked["sync"] == {"lastSyncTime": "2026-11-24T12:05:00Z", "totalSynced": 3, "syncNow": "1"}


def test_what_was_told_holds_until_something_else_is_known() -> None:
    assert _next(scale=SYNCING, sync=None, previous=SYNCED.status, now=LATER) is None, "after a restart"
    failed = _next(scale=SYNCING, sync=_outcome(failure="x", total=0), previous=SYNCED.status, now=LATER)
    assert failed is not None
    assert failed["sync"] == SYNCED.status["sync"]
    other = a_scale(
        spec={"workers": {"replicas": 2}, "sync": {"sources": [{"secretRef": {"name": "s"}}]}}, generation=4
    )
    told = _told(scale=other, sync=None, previous=SYNCED.status)
    assert told.condition(ConditionType.DEFINITIONS_SYNCED) == ("Unknown", "SyncPending")
    strange = copy.deepcopy(SYNCED.status)
    for condition in strange["conditions"]:
        condition["reason"] = "OfANewerRelease"
    told = _told(scale=SYNCING, sync=None, previous=strange)
    assert told.condition(ConditionType.DEFINITIONS_SYNCED) == ("Unknown", "SyncPending")


def test_figures_go_with_the_last_source() -> None:
    told = _told(sync=_outcome(total=0), previous=SYNCED.status)
    assert "sync" not in told.status
    assert told.condition(ConditionType.DEFINITIONS_SYNCED) == ("True", "NoSources")
    failed = _told(sync=_outcome(failure="x"), previous=SYNCED.status)
    assert failed.status["sync"] == SYNCED.status["sync"], "what it wrote is to be taken back still"
    assert failed.condition(ConditionType.DEFINITIONS_SYNCED) == ("False", "SyncFailed")


def test_errors_of_a_sync_are_told_once_and_without_the_passwords_of_the_stores() -> None:
    long = f"It says \ud800 postgres-password and {POSTGRES_URL}." + "x" * 40_000
    problem = Problem("ConfigMap defs", "a.yaml", 1, long)
    bad = _told(scale=SYNCING, sync=_outcome(problems=(problem,)), previous=SYNCED.status)
    (event,) = transition_events(SYNCED.status, bad.status)
    assert (event.type, event.reason) == ("Warning", EventReason.NOT_SYNCED)
    assert transition_events(bad.status, bad.status) == ()
    assert "postgres-password" not in json.dumps(bad.status)
    assert len(bad.status["sync"]["errors"][0]["message"]) <= MAX_SYNC_MESSAGE
    assert len(bad.message(ConditionType.DEFINITIONS_SYNCED)) < 2 * MAX_SYNC_MESSAGE
    assert "\\ud800" not in json.dumps(bad.status)


# ---- the schema


def _properties(schema: JsonObject) -> JsonObject:
    found: JsonObject = schema["properties"]
    return found


def test_every_field_that_is_written_is_in_the_schema() -> None:
    """The API server would drop another one in silence, and the status would be written again and again."""
    version = crd(SCALE_RESOURCE)["spec"]["versions"][0]
    schema = _properties(_properties(version["schema"]["openAPIV3Schema"])["status"])
    scale = a_scale(
        spec={
            "workers": {"replicas": 0},
            "sync": {"sources": [{"configMapRef": {"name": "defs"}}]},
            "api": {"enabled": True, "keysSecretRef": {"name": "keys"}},
        }
    )
    status = _told(
        scale=scale, sync=_outcome(problems=(BAD,), asked="1"), api_keys=KeyEntries((), ("entry a",)), **WORK
    ).status
    assert status.keys() == schema.keys()
    assert status["api"].keys() == _properties(schema["api"]).keys()
    assert status["sync"].keys() == _properties(schema["sync"]).keys()
    errors = _properties(_properties(schema["sync"])["errors"]["items"])
    assert status["sync"]["errors"][0].keys() == errors.keys()
    assert status["workers"].keys() == _properties(schema["workers"]).keys()
    assert status["queue"].keys() == _properties(schema["queue"]).keys()
    assert status["conditions"][0].keys() == _properties(schema["conditions"]["items"]).keys()
    assert yaml.safe_load(yaml.safe_dump(status)) == status


def test_a_status_is_plain_json() -> None:
    assert json.loads(json.dumps(READY.status)) == READY.status
    assert type(READY.status["conditions"][0]["reason"]) is str


def test_observed_values_cannot_be_changed() -> None:
    observed: Observed = an_observed()
    with pytest.raises(AttributeError):
        observed.pods = ()  # type: ignore[misc]
