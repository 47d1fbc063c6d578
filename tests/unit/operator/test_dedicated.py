"""Tenants with workers of their own: who gets them, what they are, and when they come and go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from synapse_operator import naming
from synapse_operator.api.reasons import Reason
from synapse_operator.api.scale import SynapseScale
from synapse_operator.autoscale import Recommendation
from synapse_operator.desired import Desired
from synapse_operator.desired.shards import ShardState, recommendations, serving
from synapse_operator.naming import Kind, deployment_name, tenant_shard
from synapse_operator.observed import Observed, QueueFigures, TopologyRecord, Unknown
from synapse_operator.plan import LOOK_AGAIN_AT_LOAD, plan
from synapse_operator.tenants import Place, claims, dedicated, judge, rows
from synapse_worker.contract import MAX_SHARDS
from synapse_worker.routing import Topology
from synapse_worker.store.tenants import Standing
from tests.builders import NOW, SCALE_UID, a_scale, a_tenant, an_observed, children_of, what_is_desired

NAME = tenant_shard("acme")
ROW = TopologyRecord(1, Topology(1, isolation=True), enabled=True, owner_uid=SCALE_UID)
EMPTY = QueueFigures(0, 0, None)
BUILT_IN = {"mode": "BuiltIn", "minReplicas": 0, "maxReplicas": 5}


def scale(**spec: Any) -> SynapseScale:
    return a_scale(spec={"tenancy": {"isolation": True}, **spec})


def seen(home: SynapseScale, *, tenant_id: str = "acme", workers: Any = None, **changes: Any) -> Observed:
    """What is seen before there are any children."""
    tenant = a_tenant("acme", tenantId=tenant_id, workers={} if workers is None else workers)
    ordinary = {
        "topology": ROW,
        "queues": {"default": EMPTY, "acme": EMPTY},
        "dedicated": dedicated(home, claims([tenant])),
    }
    return an_observed(**{**ordinary, **changes})


def there(home: SynapseScale, observed: Observed, *, ready: int | None = None) -> Observed:
    """The same once the children are there."""
    return replace(observed, children=children_of(what_is_desired(home, observed), ready=ready))


def deployment(desired: Desired) -> Any:
    name = deployment_name("demo", NAME)
    (found,) = [each.body for each in desired.manifests if each.ref.kind is Kind.DEPLOYMENT and each.ref.name == name]
    return found


# ---- what they are


def test_the_workers_serve_the_tenants_queue_alone_and_are_as_it_says() -> None:
    home = scale(workers={"concurrency": 3, "replicas": 4})
    desired = what_is_desired(home, seen(home, workers={"replicas": 2, "concurrency": 7}))
    shard = desired.shards[-1]
    assert (shard.name, shard.serves, shard.replicas, shard.tenant) == (NAME, ("acme",), 2, "acme")
    environments = [each.body["data"] for each in desired.manifests if each.ref.kind is Kind.CONFIG_MAP]
    assert [each["WORKER_QUEUE_SHARD"] for each in environments] == ["default,0", "tenants", "acme"]
    assert [each["WORKER_CONCURRENCY"] for each in environments] == ["3", "3", "7"]
    body = deployment(desired)
    assert body["spec"]["replicas"] == 2
    assert body["metadata"]["labels"][naming.TENANT_LABEL] == "acme"
    assert body["metadata"]["ownerReferences"][0]["uid"] == SCALE_UID
    assert desired.workers == 4 + 4 + 2


def test_what_the_tenant_leaves_open_is_as_for_all_workers() -> None:
    home = scale(workers={"concurrency": 3, "replicas": 4, "autoscaling": BUILT_IN})
    shard = what_is_desired(home, seen(home, workers={"concurrency": 1})).shards[-1]
    assert (shard.workers.concurrency, shard.workers.autoscaling.mode) == (1, "BuiltIn")


def test_any_string_of_an_id_makes_a_name() -> None:
    home = scale()
    for tenant_id in ("Acme & Söhne", "x" * 255, "Å/..%00", "$(HOME)"):
        shard = what_is_desired(home, seen(home, tenant_id=tenant_id)).shards[-1]
        assert shard.serves == (tenant_id,)
        assert len(deployment_name("a" * 253, shard.name)) <= naming.DEPLOYMENT_NAME_LENGTH
    assert tenant_shard("a") != tenant_shard("b")


# ---- who gets them


@pytest.mark.parametrize(
    ("home", "tenant_id", "reason", "words"),
    [
        (a_scale(), "acme", Reason.ISOLATION_OFF, "tenancy.isolation is false there"),
        (scale(), "default", Reason.WORKERS_UNUSED, "its jobs go to the queue default, which shards serve"),
        (
            scale(queue={"shards": 2, "routes": [{"shard": 1, "tenants": ["acme"]}]}),
            *("acme", Reason.WORKERS_UNUSED, "its jobs go to the queue 1, which shards serve"),
        ),
        (scale(), "a,b", Reason.WORKERS_UNUSED, "WORKER_QUEUE_SHARD cannot name 'a,b'"),
        (scale(), " a", Reason.WORKERS_UNUSED, "WORKER_QUEUE_SHARD cannot name ' a'"),
        (scale(), "tenants", Reason.WORKERS_UNUSED, "WORKER_QUEUE_SHARD cannot name 'tenants'"),
    ],
)
def test_workers_that_would_get_no_job_are_not_made_and_the_tenant_is_told(
    home: SynapseScale, tenant_id: str, reason: Reason, words: str
) -> None:
    tenant = a_tenant("acme", tenantId=tenant_id, workers={})
    made = claims([tenant])
    assert dedicated(home, made) == {}
    assert [row.dedicated for row in rows(home, made, serving={tenant_id})] == [False]
    store = {tenant_id: Standing(True, "uid-of-acme", 0, 0)}
    verdict = judge(tenant, home, made, store, exclusive=True)
    assert (verdict.reason, verdict.ready) == (reason, False)
    assert words in verdict.message


def test_the_younger_of_two_gets_none() -> None:
    older, younger = a_tenant("a", tenantId="acme"), a_tenant("b", tenantId="acme", workers={})
    assert dedicated(scale(), claims([older, younger])) == {}


def test_the_row_says_so_once_they_are_there_and_is_left_as_it_is_until_then() -> None:
    made = claims([a_tenant("acme", workers={}), a_tenant("other")])
    assert [row.dedicated for row in rows(scale(), made, serving=())] == [None, False]
    assert [row.dedicated for row in rows(scale(), made, serving={"acme"})] == [True, False]


def test_the_status_names_who_serves() -> None:
    tenant = a_tenant("acme", workers={})
    verdicts = [
        judge(
            tenant,
            scale(),
            claims([tenant]),
            {"acme": Standing(True, "uid-of-acme", 0, 0, dedicated=taken)},
            exclusive=True,
        )
        for taken in (False, True)
    ]
    assert [each.place for each in verdicts] == [
        Place("acme", "tenants"),
        Place("acme", deployment_name("demo", NAME)),
    ]
    assert "its own workers are not ready yet" in verdicts[0].message
    assert all(each.ready for each in verdicts)


# ---- when they come and go


def test_they_take_over_when_one_is_ready_or_none_is_wanted() -> None:
    home = scale()
    before = seen(home)
    assert serving(home, before) == frozenset()
    assert serving(home, there(home, before, ready=0)) == frozenset()
    assert serving(home, there(home, before)) == {"acme"}
    none = seen(home, workers={"replicas": 0})
    assert serving(home, there(home, none)) == {"acme"}


def test_nobody_waits_for_them_when_isolation_is_turned_on() -> None:
    home = scale()
    row = replace(ROW, topology=Topology(1))
    without = an_observed(topology=ROW)
    observed = seen(home, topology=row, children=children_of(what_is_desired(home, without)))
    desired = what_is_desired(home, observed)
    assert desired.flip is not None
    assert [(shard.name, shard.state) for shard in desired.shards[-2:]] == [
        ("tenants", ShardState.IDLE),
        (NAME, ShardState.IDLE),
    ]


def test_a_tenant_that_is_gone_takes_its_workers_along() -> None:
    home = scale()
    observed = there(home, seen(home))
    gone = replace(observed, dedicated={})
    deleted = [str(each.ref) for each in plan(home, what_is_desired(home, gone), gone, NOW).delete]
    name = deployment_name("demo", NAME)
    assert deleted[-2:] == [f"Deployment {name}", f"PodDisruptionBudget {name}"]
    # While PostgreSQL is away, the pool cannot be told to serve the queue.
    away = replace(gone, topology=Unknown("PostgreSQL does not answer"))
    deleted = [str(each.ref) for each in plan(home, what_is_desired(home, away), away, NOW).delete]
    assert f"Deployment {name}" not in deleted


def test_scale_mode_off_takes_them_to_zero_too() -> None:
    home = scale(enabled=False)
    assert what_is_desired(home, there(scale(), seen(scale()))).shards[-1].replicas == 0


# ---- how many


def test_they_are_counted_by_their_own_jobs_down_to_none() -> None:
    home = scale()
    idle = seen(home, workers={"autoscaling": BUILT_IN, "concurrency": 2})
    busy = replace(idle, queues={"default": EMPTY, "acme": QueueFigures(5, 2, 1.0), "b": QueueFigures(9, 0, 1.0)})
    assert recommendations(home, idle, {}, NOW)[NAME] == (Recommendation(NOW, 0),)
    asked = recommendations(home, busy, {}, NOW)
    assert asked[NAME][-1].replicas == 4
    assert "tenants" not in asked
    busy = replace(busy, recommended={NAME: 4})
    desired = what_is_desired(home, busy)
    assert desired.shards[-1].replicas == 4
    assert plan(home, desired, busy, NOW).wake_at == NOW + LOOK_AGAIN_AT_LOAD


def test_their_jobs_are_not_the_pools() -> None:
    home = a_scale(spec={"tenancy": {"isolation": True, "pool": {"autoscaling": BUILT_IN}}})
    busy = seen(home, queues={"acme": QueueFigures(90, 0, 1.0), "b": QueueFigures(9, 0, 1.0)})
    assert recommendations(home, busy, {}, NOW)["tenants"][-1].replicas == 1
    assert recommendations(home, replace(busy, dedicated={}), {}, NOW)["tenants"][-1].replicas == 5


def test_the_shards_of_tenants_come_last_whatever_their_names() -> None:
    home = scale(queue={"shards": MAX_SHARDS})
    names = [shard.name for shard in what_is_desired(home, seen(home)).shards]
    assert names == [*map(str, range(MAX_SHARDS)), "tenants", NAME]
