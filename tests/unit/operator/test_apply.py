"""What the API server answers becomes a report: order, refusals, and what counts as done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.api.reasons import ConditionType, EventReason, Reason
from synapse_operator.cluster import apply
from synapse_operator.cluster.client import Client, path
from synapse_operator.cluster.report import (
    TENANT_WRITES_AT_ONCE,
    TENANT_WRITES_PER_SECOND,
    Reporter,
    TenantReporter,
)
from synapse_operator.desired.manifest import Manifest
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from synapse_operator.naming import TENANT_LABEL, Kind, Ref
from synapse_operator.observed import Child
from synapse_operator.plan import Apply, ApplyReport, Cause, Delete, Event, Failure, Plan, Resize
from tests.builders import a_child, a_scale, manifest_of, what_is_desired
from tests.unit.operator import virtual_time

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
STATUS: JsonObject = {
    "conditions": [
        {"type": str(each), "status": "True", "reason": "Fine", "message": "", "lastTransitionTime": ""}
        for each in ConditionType
    ]
}
SCALE = ObjectMeta(name="main", namespace="ns", uid="uid-1", generation=2)


class Server:
    """Records requests; `answer` may raise for some of them."""

    def __init__(self, answer: Callable[[str, str], None] = lambda method, path: None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[JsonObject] = []
        self._answer = answer

    @property
    def client(self) -> Client:
        return cast("Client", self)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "",
    ) -> JsonObject:
        self.requests.append((method, path.rsplit("/", 1)[-1]))
        self.bodies.append(body or {})
        self._answer(method, path)
        return {}


def step(name: str, kind: Kind = Kind.SERVICE, *, exists: bool = True, **spec: int) -> Apply:
    body = {"kind": kind.kind, "metadata": {"name": name}, "spec": spec}
    metadata = {"name": name, "namespace": "ns", "uid": "uid", "resourceVersion": "7"}
    live = Child.read(kind, {"metadata": metadata, "spec": {"replicas": 5}})
    return Apply(Manifest(Ref(kind, "ns", name), "hash", body), Cause.DRIFTED, None, live if exists else None)


def carry_out(server: Server, plan: Plan) -> ApplyReport:
    return asyncio.run(apply.carry_out(server.client, plan))


def refuse(*names: str, error: Exception) -> Callable[[str, str], None]:
    def answer(_: str, path: str) -> None:
        if path.endswith(names):
            raise error

    return answer


def test_deletions_come_first_and_everything_stops_at_the_first_failure() -> None:
    server = Server(refuse("b", error=ApiRefused(403, "Forbidden", "no")))
    plan = Plan(delete=(Delete(Ref(Kind.CONFIG_MAP, "ns", "old"), "uid"),), apply=(step("a"), step("b"), step("c")))
    report = carry_out(server, plan)
    assert server.requests == [("DELETE", "old"), ("PATCH", "a"), ("PATCH", "b")]
    assert server.bodies[0]["preconditions"] == {"uid": "uid"}
    assert [ref.name for ref in report.applied] == ["a"]
    assert [(failure.ref.name, failure.reason) for failure in report.failures] == [("b", Reason.REFUSED)]


def test_what_exists_is_applied_to_that_object_alone() -> None:
    server = Server()
    carry_out(server, Plan(apply=(step("there"), step("new", exists=False))))
    assert [body["metadata"].get("uid") for body in server.bodies] == ["uid", None]


def shards(count: int) -> tuple[Apply, ...]:
    """What all shards share, and a ConfigMap and a Deployment for each."""
    pairs = ((step(f"c{each}", Kind.CONFIG_MAP), step(f"d{each}", Kind.DEPLOYMENT)) for each in range(count))
    return (step("shared"), *(made for pair in pairs for made in pair))


def test_many_shards_are_all_applied_each_in_its_order() -> None:
    server = Server()
    report = carry_out(server, Plan(apply=shards(20)))
    names = [name for _, name in server.requests]
    assert names[:3] == ["shared", "c0", "d0"]
    assert sorted(names) == sorted(["shared", *(f"{kind}{each}" for kind in "cd" for each in range(20))])
    assert all(names.index(f"c{each}") < names.index(f"d{each}") for each in range(20))
    assert len(report.applied) == 41


def test_what_is_refused_of_the_first_shard_is_asked_of_no_other() -> None:
    server = Server(refuse(*(f"d{each}" for each in range(20)), error=ApiRefused(403, "Forbidden", "no")))
    report = carry_out(server, Plan(apply=shards(20)))
    assert [name for _, name in server.requests] == ["shared", "c0", "d0"]
    assert [failure.ref.name for failure in report.failures] == ["d0"]


def test_after_a_failure_no_shard_is_begun() -> None:
    server = Server(refuse("d3", error=ApiUnavailable("The API server did not answer within 5 s.")))
    report = carry_out(server, Plan(apply=shards(40)))
    assert [failure.ref.name for failure in report.failures] == ["d3"]
    assert len(report.applied) < 1 + 2 * (1 + 2 * apply.SHARDS_AT_ONCE)


def test_a_refused_deployment_of_one_tenant_holds_up_nobody_else() -> None:
    def of_a_tenant(name: str) -> Apply:
        made = step(name, Kind.DEPLOYMENT, exists=False)
        made.manifest.body["metadata"] = {"name": name, "labels": {TENANT_LABEL: name}}
        return made

    plan = Plan(apply=(step("a"), of_a_tenant("b"), of_a_tenant("c")))
    report = carry_out(Server(refuse("b", error=ApiRefused(422, "Invalid", "no such volume"))), plan)
    assert [ref.name for ref in report.applied] == ["a", "c"]
    assert [failure.ref.name for failure in report.failures] == ["b"]
    away = Server(refuse("b", error=ApiUnavailable("The API server did not answer within 5 s.")))
    assert [ref.name for ref in carry_out(away, plan).applied] == ["a"]


def test_a_resize_changes_the_number_alone_and_only_of_the_version_that_was_seen() -> None:
    child = a_child(manifest_of(what_is_desired(a_scale()), Kind.DEPLOYMENT))
    event = Event("Normal", EventReason.SCALED, "Scaled")
    server = Server()
    report = carry_out(server, Plan(resize=(Resize(child, 7, event),), apply=(step("a"),)))
    assert server.requests == [("PATCH", child.ref.name), ("PATCH", "a")]
    assert server.bodies[0] == {"metadata": {"resourceVersion": "7"}, "spec": {"replicas": 7}}
    assert report.applied[0] == child.ref


def test_the_failures_of_the_plan_are_part_of_the_report() -> None:
    known = Failure(Ref(Kind.SERVICE, "ns", "x"), Reason.NAME_TAKEN, "taken")
    assert carry_out(Server(), Plan(failures=(known,))).failures == (known,)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ApiRefused(403, "Forbidden", 'services "a" is forbidden: exceeded quota: q'), Reason.QUOTA_EXCEEDED),
        (ApiRefused(403, "Forbidden", "violates PodSecurity"), Reason.REFUSED),
        (ApiRefused(422, "Invalid", "spec.x: Invalid value"), Reason.REFUSED),
        (ApiNotFound(404, "NotFound", "the server could not find the requested resource"), Reason.KIND_ABSENT),
        (ApiNotFound(404, "", "404 page not found"), Reason.KIND_ABSENT),
        (ApiNotFound(404, "NotFound", 'namespaces "ns" not found'), Reason.REFUSED),
        (ApiRefused(409, "Conflict", "the object has been modified"), Reason.CLUSTER_UNAVAILABLE),
        (ApiUnavailable("The API server did not answer within 5 s."), Reason.CLUSTER_UNAVAILABLE),
    ],
)
def test_a_refusal_has_a_reason_and_the_servers_sentence(error: Exception, reason: Reason) -> None:
    (failure,) = carry_out(Server(refuse("a", error=error)), Plan(apply=(step("a"),))).failures
    assert (failure.reason, failure.sentence) == (reason, str(error))


@pytest.mark.parametrize("error", [ApiNotFound(404, "NotFound", "gone"), ApiRefused(409, "Conflict", "another UID")])
def test_what_is_gone_already_is_deleted(error: Exception) -> None:
    plan = Plan(delete=(Delete(Ref(Kind.CONFIG_MAP, "ns", "old"), "uid"),), apply=(step("a"),))
    report = carry_out(Server(refuse("old", error=error)), plan)
    assert report.failures == ()
    assert [ref.name for ref in report.applied] == ["a"]


def invalid_once() -> Callable[[str, str], None]:
    left = [ApiRefused(422, "Invalid", "duplicate port name")]

    def answer(method: str, _: str) -> None:
        if method == "PATCH" and left:
            raise left.pop()

    return answer


@pytest.mark.parametrize("kind", [Kind.SERVICE, Kind.DEPLOYMENT, Kind.POD_DISRUPTION_BUDGET])
def test_what_an_addition_made_invalid_is_replaced_and_applied_again(kind: Kind) -> None:
    server = Server(invalid_once())
    assert carry_out(server, Plan(apply=(step("a", kind),))).failures == ()
    assert server.requests == [("PATCH", "a"), ("PUT", "a"), ("PATCH", "a")]
    assert server.bodies[1]["metadata"] == {"name": "a", "resourceVersion": "7"}


@pytest.mark.parametrize(("spec", "replicas"), [({}, 5), ({"replicas": 3}, 3)], ids=["handed over", "ours"])
def test_a_replacement_never_resets_the_number_of_workers(spec: dict[str, int], replicas: int) -> None:
    server = Server(invalid_once())
    carry_out(server, Plan(apply=(step("a", Kind.DEPLOYMENT, **spec),)))
    assert [body["spec"] for body in server.bodies] == [spec, {"replicas": replicas}, spec]


@pytest.mark.parametrize(
    "refused", [step("a", exists=False), step("a", Kind.SERVICE_ACCOUNT), step("a", Kind.CONFIG_MAP)]
)
def test_what_is_invalid_by_itself_is_reported(refused: Apply) -> None:
    server = Server(invalid_once())
    assert carry_out(server, Plan(apply=(refused,))).failures[0].reason is Reason.REFUSED
    assert server.requests == [("PATCH", "a")]


def test_only_what_passes_by_itself_makes_the_caller_back_off() -> None:
    ref = Ref(Kind.SERVICE, "ns", "a")
    apply.raise_if_unavailable(ApplyReport((), (Failure(ref, Reason.QUOTA_EXCEEDED, "no room"),)))
    with pytest.raises(ApiUnavailable, match="Service a: not now"):
        apply.raise_if_unavailable(ApplyReport((), (Failure(ref, Reason.CLUSTER_UNAVAILABLE, "not now"),)))


@pytest.mark.parametrize("error", [ApiNotFound(404, "NotFound", "gone"), ApiRefused(409, "Conflict", "another UID")])
def test_the_status_of_a_scale_that_is_gone_is_written_nowhere(error: Exception) -> None:
    server = Server(refuse("status", error=error))
    tell(server, STATUS, ())
    assert server.bodies[0]["metadata"]["uid"] == "uid-1"


def test_paths() -> None:
    assert path("v1", "ns", "services", "a") == "/api/v1/namespaces/ns/services/a"
    assert path("apps/v1", "ns", "deployments") == "/apis/apps/v1/namespaces/ns/deployments"
    assert path("g/v1", "", "things") == "/apis/g/v1/things"
    assert path("g/v1", "ns", "things", "a", "status") == "/apis/g/v1/namespaces/ns/things/a/status"


def tell(
    server: Server,
    status: JsonObject | None,
    done: tuple[Event, ...],
    *,
    scale: ObjectMeta = SCALE,
    now: datetime = NOW,
) -> None:
    asyncio.run(Reporter(server.client, "operator-1").report(scale, STATUS, status, done, now))


def posted(scale: ObjectMeta, event: Event, now: datetime) -> JsonObject:
    server = Server()
    tell(server, None, (event,), scale=scale, now=now)
    return server.bodies[0]


def test_an_event_that_is_reported_twice_is_one_event() -> None:
    now = NOW
    event = Event("Warning", EventReason.NOT_READY, "why")
    name = posted(SCALE, event, now)["metadata"]["name"]
    assert posted(SCALE, event, now + timedelta(seconds=30))["metadata"]["name"] == name
    others = [
        posted(SCALE, event, now + timedelta(hours=1)),
        posted(SCALE.model_copy(update={"generation": 3}), event, now),
        posted(SCALE, Event("Warning", EventReason.NOT_READY, "why not"), now),
    ]
    assert len({name, *(each["metadata"]["name"] for each in others)}) == 4


def test_an_event_fits_the_api() -> None:
    scale = SCALE.model_copy(update={"name": "a" * 253})
    body = posted(scale, Event("Normal", EventReason.CREATED, "x" * 5000), datetime(2026, 1, 1, tzinfo=UTC))
    assert len(body["metadata"]["name"]) <= 253
    assert len(body["note"]) == 1024
    assert body["eventTime"] == "2026-01-01T00:00:00.000000Z"


@pytest.mark.parametrize("error", [ApiRefused(409, "AlreadyExists", "x"), ApiUnavailable("away")])
def test_an_event_that_cannot_be_posted_is_no_error(error: Exception) -> None:
    server = Server(refuse("events", error=error))
    event = Event("Normal", EventReason.CREATED, "made")
    tell(server, None, (event,))


# ---- statuses of tenants


def tenants(count: int) -> list[tuple[ObjectMeta, JsonObject]]:
    return [(ObjectMeta(name=f"t{number}", namespace="ns", uid=f"u{number}"), STATUS) for number in range(count)]


def tell_tenants(server: Server, count: int) -> float:
    """Report that many statuses and return the (virtual) seconds that it took."""

    async def scene() -> float:
        await TenantReporter(server.client).report(tenants(count))
        return asyncio.get_running_loop().time()

    return virtual_time.run(scene())


def test_statuses_of_tenants_are_written_at_a_bounded_rate() -> None:
    server = Server()
    seconds = tell_tenants(server, 1000)
    assert len({body["metadata"]["name"] for body in server.bodies}) == len(server.bodies) == 1000
    assert all(body["kind"] == "SynapseTenant" and body["metadata"]["uid"] for body in server.bodies)
    assert seconds == pytest.approx(1000 / TENANT_WRITES_PER_SECOND, rel=0.02)


def test_the_rate_holds_over_all_scales() -> None:
    server = Server()

    async def scene() -> float:
        reporter = TenantReporter(server.client)
        await asyncio.gather(*(reporter.report(tenants(50)) for _ in range(4)))
        return asyncio.get_running_loop().time()

    assert virtual_time.run(scene()) == pytest.approx(200 / TENANT_WRITES_PER_SECOND, rel=0.02)


def test_a_refused_status_keeps_no_other_from_being_written() -> None:
    def answer(_: str, path: str) -> None:
        if path.endswith("t3/status"):
            raise ApiRefused(422, "Invalid", "t3 is not accepted")

    server = Server(answer)
    with pytest.raises(ApiRefused, match="t3 is not accepted"):
        tell_tenants(server, 30)
    assert len(server.bodies) == 30


def test_an_api_server_that_is_away_is_not_asked_a_thousand_times() -> None:
    server = Server(refuse("status", error=ApiUnavailable("away")))
    with pytest.raises(ApiUnavailable):
        tell_tenants(server, 1000)
    assert len(server.bodies) <= TENANT_WRITES_AT_ONCE
