"""Scales and tenants that come, change and go while leading operators are killed, and what must hold then."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually

TAKEOVER_SECONDS = 15.0
SETTLED_SECONDS = 90.0
_KINDS = (*harness.CHILD_KINDS, "replicasets")
_EVERYONES = ("kube-root-ca.crt", "default")


@dataclass
class Churn:
    """Makes a scale and a tenant, changes an older one and deletes one older still, again and again.

    Names are never used twice, so that whatever was created twice shows.
    """

    plane: ControlPlane
    namespace: str
    living: dict[str, int] = field(default_factory=dict)
    made: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _failure: list[BaseException] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Churn:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and raise what it met."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=60)
        if self._failure:
            raise self._failure[0]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._turn()
        except BaseException as error:
            self._failure.append(error)

    def _turn(self) -> None:
        name = f"s{self.made}"
        self.made += 1
        self.plane.apply(harness.scale(self.namespace, name), harness.tenant(self.namespace, f"t-{name}", name))
        self.living[name] = 1
        names = list(self.living)
        if len(names) > 3:
            changed = names[-3]
            self.plane.kubectl("scale", f"sscale/{changed}", "-n", self.namespace, "--replicas=2")
            self.living[changed] = 2
        if len(names) > 6:
            gone = names[0]
            self.plane.kubectl("delete", f"sscale/{gone}", f"stenant/t-{gone}", "-n", self.namespace, "--wait=false")
            del self.living[gone]


def kill_leaders(plane: ControlPlane, kills: int) -> tuple[list[float], Operator]:
    """Kill the leader of two operators so many times, with kill -9.

    Returns:
        The seconds until the other one led, each time, and who leads in the end; the caller ends it.
    """
    takeovers = []
    leader, standby = Operator(plane), Operator(plane)
    try:
        leader.lead()
        standby.start()
        for _ in range(kills):
            eventually("the standby is ready", lambda: standby.probe("/readyz")[0] == 200, seconds=30)  # noqa: B023
            before = leader.reconciles()
            eventually("the leader acts", lambda: leader.reconciles() > before, seconds=30)  # noqa: B023
            leader.kill()
            killed = time.monotonic()
            eventually("the standby leads", standby.leads, seconds=TAKEOVER_SECONDS)
            takeovers.append(time.monotonic() - killed)
            leader, standby = standby, Operator(plane).start()
    except BaseException:
        leader.kill()
        standby.kill()
        raise
    standby.kill()
    return takeovers, leader


def check(plane: ControlPlane, churn: Churn, mark: int) -> list[tuple[str, str]]:
    """Wait until all is as the living scales say and nothing is left behind; returns what was made twice since a mark.

    Returns:
        Kind and name of each, Events aside.
    """
    for name, replicas in churn.living.items():
        eventually(
            f"{name} is as it should be",
            lambda n=name, r=replicas: _is_right(plane, churn.namespace, n, r),
            seconds=SETTLED_SECONDS,
        )
    uids = {name: plane.get(churn.namespace, "sscale", name)["metadata"]["uid"] for name in churn.living}

    def orphans() -> list[str]:
        found = plane.find(churn.namespace, _KINDS, naming.MANAGED_SELECTOR)
        return [each["metadata"]["name"] for each in found if not _belongs(each, uids)]

    eventually("nothing is left of scales that are gone", lambda: not orphans(), seconds=SETTLED_SECONDS)
    everything = plane.find(churn.namespace, _KINDS)
    ours = Counter(each["kind"] for each in everything if each["metadata"]["name"] not in _EVERYONES)
    assert set(ours.values()) == {len(churn.living)}, ours
    created = Counter(
        (call.resource, call.name)
        for call in plane.audit(mark)
        if call.namespace == churn.namespace and call.code == 201
    )
    for name in churn.living:
        status = plane.get(churn.namespace, "stenant", f"t-{name}").get("status") or {}
        assert status.get("conditions"), f"tenant t-{name} was never told how it stands"
    return [key for key, times in created.items() if times > 1 and key[0] != "events"]


def _is_right(plane: ControlPlane, namespace: str, name: str, replicas: int) -> bool:
    children = plane.children(namespace, name)
    kinds = Counter(child["kind"] for child in children)
    if set(kinds.values()) != {1} or len(kinds) != len(harness.CHILD_KINDS):
        return False
    (deployment,) = [child for child in children if child["kind"] == "Deployment"]
    return bool(deployment["spec"]["replicas"] == replicas)


def _belongs(child: Json, uids: dict[str, str]) -> bool:
    owners = child["metadata"].get("ownerReferences") or []
    # A ReplicaSet's is its Deployment, which is looked at itself.
    return any(owner["kind"] != naming.SCALE_KIND or owner["uid"] in uids.values() for owner in owners)
