"""The operator as a process: who leads, how it ends, and what is left when it does not end well."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.controlplane.proxy import Proxy

SEED = random.randrange(1 << 30)


def lease(plane: ControlPlane) -> harness.Json:
    spec: harness.Json = plane.get(harness.OPERATOR_NAMESPACE, "lease", harness.LEASE).get("spec") or {}
    return spec


def drop_lease(plane: ControlPlane) -> None:
    """Spare a test the ten seconds that a Lease outlives its holder."""
    plane.kubectl("delete", "lease", harness.LEASE, "-n", harness.OPERATOR_NAMESPACE, "--ignore-not-found")


def test_of_two_one_leads_and_the_other_takes_over_within_fifteen_seconds(plane: ControlPlane, ns: str) -> None:
    with Operator(plane) as first, Operator(plane) as second:
        first.lead()
        second.start()
        eventually("the standby is ready", lambda: second.probe("/readyz") == (200, "ok"))
        mark = plane.audit_mark()
        plane.apply(harness.scale(ns))
        plane.await_children(ns)
        assert not second.leads()
        standby_calls = second.metric('synapse_operator_api_calls_total{outcome="ok",verb="patch"}')
        assert standby_calls is None, "a standby acts on nothing"
        assert not [call for call in plane.audit(mark) if call.code >= 500]

        first.kill()
        killed = time.monotonic()
        eventually("the standby leads", second.leads, seconds=15)
        print(f"takeover after kill -9: {time.monotonic() - killed:.1f} s")
        plane.kubectl("scale", "sscale/main", "-n", ns, "--replicas=3")
        eventually("it acts", lambda: plane.child(ns, "Deployment")["spec"]["replicas"] == 3)

        third = Operator(plane).start()
        try:
            eventually("the next standby is ready", lambda: third.probe("/readyz")[0] == 200)
            code, seconds = second.terminate()
            ended = time.monotonic()
            assert code == 0, second.log[-2000:]
            assert seconds < 1.0
            eventually("the next standby leads", third.leads, seconds=4)
            print(f"SIGTERM: ended in {seconds:.2f} s, the next one led {time.monotonic() - ended:.1f} s later")
            assert third.terminate()[0] == 0
        finally:
            third.kill()
        assert lease(plane)["holderIdentity"] == ""


def test_sigterm_of_a_standby_ends_it_in_a_second_and_leaves_the_lease(plane: ControlPlane) -> None:
    with Operator(plane) as first, Operator(plane) as second:
        first.lead()
        second.start()
        eventually("the standby is ready", lambda: second.probe("/readyz")[0] == 200)
        holder = lease(plane)["holderIdentity"]
        code, seconds = second.terminate()
        assert (code, seconds < 1.0) == (0, True)
        assert lease(plane)["holderIdentity"] == holder
        first.terminate()


def test_a_leader_whose_lease_is_taken_ends_with_an_error(plane: ControlPlane) -> None:
    with Operator(plane) as operator:
        operator.lead()
        plane.kubectl(
            *("patch", "lease", harness.LEASE, "-n", harness.OPERATOR_NAMESPACE, "--type=merge"),
            *("-p", '{"spec":{"holderIdentity":"somebody-else"}}'),
        )
        assert operator.await_end(10) == 1
        assert lease(plane)["holderIdentity"] == "somebody-else"
        assert "Another process holds the Lease" in operator.log
    drop_lease(plane)


@pytest.fixture
def proxy(plane: ControlPlane) -> Iterator[Proxy]:
    proxy = Proxy(plane.server())
    yield proxy
    proxy.close()


def test_a_leader_whose_api_server_hangs_ends_before_another_may_lead(plane: ControlPlane, proxy: Proxy) -> None:
    with Operator(plane, server=proxy.url) as operator, Operator(plane) as other:
        operator.lead()
        other.start()
        eventually("the standby is ready", lambda: other.probe("/readyz")[0] == 200)
        proxy.swallow.set()
        cut = time.monotonic()
        ended = threading.Event()
        codes: list[int] = []

        def wait() -> None:
            codes.append(operator.await_end(20))
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        eventually("the standby leads", other.leads, seconds=15)
        assert ended.is_set(), "both led"
        assert codes == [1]
        print(f"API server hangs: the next one led {time.monotonic() - cut:.1f} s later")
        assert "could not be renewed" in operator.log
        other.terminate()


def test_settings_that_cannot_be_used_end_the_process_with_one_sentence(plane: ControlPlane) -> None:
    with Operator(plane, WATCH_NAMESPACES="Not_a_name") as operator:
        operator.start()
        assert operator.await_end(10) == 2
        assert operator.log.strip().splitlines() == [
            "synapse-operator: WATCH_NAMESPACES is 'Not_a_name', which is not accepted: 'Not_a_name' is not the name "
            "of a namespace; accepted: names separated by commas."
        ]


def test_an_operator_without_rights_is_not_ready_and_says_why(plane: ControlPlane) -> None:
    with Operator(plane, POD_NAMESPACE="default") as operator:
        operator.start()
        eventually("it says why", lambda: "cannot read or take the Lease" in operator.log)
        assert operator.probe("/readyz")[0] == 503
        assert operator.probe("/livez") == (200, "ok")


def test_only_the_named_namespaces_are_served_and_rights_in_them_are_enough(plane: ControlPlane, ns: str) -> None:
    outside = f"{ns}-outside"
    plane.apply(
        harness.namespace(outside), harness.secret(outside, "redis://127.0.0.1:1", "postgresql://127.0.0.1:1/d")
    )
    account = f"--serviceaccount={harness.OPERATOR_NAMESPACE}:synapse-operator"
    # As overlays/namespaced: the ClusterRole, bound in one namespace and nowhere else.
    plane.kubectl("create", "rolebinding", "synapse-operator", "--clusterrole=synapse-operator", account, "-n", ns)
    plane.kubectl("delete", "clusterrolebinding", "synapse-operator")
    mark = plane.audit_mark()
    try:
        with Operator(plane, WATCH_NAMESPACES=ns) as operator:
            operator.lead()
            plane.apply(harness.scale(outside), harness.scale(ns))
            plane.await_children(ns)
            plane.await_condition(ns, "ChildrenApplied", "True")
            service = plane.child(ns, "Service")["metadata"]["name"]
            plane.kubectl("delete", "service", service, "-n", ns)
            eventually("the Service is back", lambda: plane.child(ns, "Service"))
            assert plane.children(outside) == []
            assert [call for call in plane.audit(mark) if call.code == 403] == []
            operator.terminate()
    finally:
        plane.kubectl("apply", "--server-side", "-f", str(harness.ROOT / "manifests" / "install.yaml"))
        plane.kubectl("delete", "namespace", outside, "--wait=false")


def test_deleting_a_namespace_while_the_operator_is_down_does_not_hang(plane: ControlPlane, ns: str) -> None:
    with Operator(plane) as operator:
        operator.lead()
        plane.apply(harness.scale(ns))
        plane.await_children(ns)
        operator.terminate()
    plane.kubectl("delete", "namespace", ns, "--timeout=60s")
    assert plane.get("", "namespace", ns) == {}


def test_killed_at_ten_random_moments_of_a_creation_nothing_is_twice_and_nothing_orphaned(plane: ControlPlane) -> None:
    moments = random.Random(SEED)
    print(f"seed {SEED}")
    spaces = [f"k{index}-{uuid.uuid4().hex[:6]}" for index in range(10)]
    written = []
    drop_lease(plane)
    for space in spaces:
        plane.apply(
            harness.namespace(space), harness.secret(space, "redis://127.0.0.1:1", "postgresql://127.0.0.1:1/d")
        )
        with Operator(plane) as operator:
            operator.lead()
            mark = plane.audit_mark()
            plane.apply(harness.scale(space))
            # The whole creation takes about as long; some moments lie before its first write, some after its last.
            time.sleep(moments.uniform(0.0, 0.6))  # not a wait for something: the random moment
            operator.kill()
            written.append(len(plane.writes(mark)))
        drop_lease(plane)
    print(f"writes before each kill: {written}")
    with Operator(plane) as operator:
        operator.lead()
        for space in spaces:
            children = plane.await_children(space)
            assert len(children) == len(harness.CHILD_KINDS), [child["metadata"]["name"] for child in children]
            uid = plane.get(space, "sscale", "main")["metadata"]["uid"]
            for child in children:
                assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [uid]
            plane.await_condition(space, "ChildrenApplied", "True")
            events = plane.find(space, ["events.v1.events.k8s.io"])
            told = [
                (event["reason"], event["note"]) for event in events if event["regarding"]["kind"] == "SynapseScale"
            ]
            assert len(told) == len(set(told)), told
            everything = plane.find(space, [*harness.CHILD_KINDS, "replicasets"])
            ours = [each for each in everything if each["metadata"]["name"] not in ("kube-root-ca.crt", "default")]
            assert len(ours) == len(harness.CHILD_KINDS) + 1, "one ReplicaSet and no second child of any kind"
        operator.terminate()
    plane.kubectl("delete", "namespace", *spaces, "--wait=false")
