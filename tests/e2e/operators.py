"""`make chaos-cluster`, eighth part: two operator pods, the one that leads is killed while runs and changes go on.

That no leader ever leaves anything half done is shown by `make soak`, with processes and a control plane without pods;
here it is pods of install.yaml, and workers that must not notice. Kept out of `make test` by its name. Each test prints
one line of figures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_operator.__main__ import LEASE_NAME
from synapse_worker.store.database import Database
from tests.e2e.conftest import SCALE, Place
from tests.support.kube import Object, a_scale, apply, eventually, get, items, kubectl, localcluster
from tests.support.load import Load
from tests.support.runs import store
from tests.support.workers import chain, slow_steps

HOME = ("-n", "synapse-system")
KILLS = 20
DELETIONS = 3
STEPS = 8
TAKEOVER_SECONDS = 30
"""At most from a leader's death until the next one has changed a Deployment: a Lease of 10 s, and its first looks."""


@pytest.fixture
def two_operators(place: Place) -> Iterator[None]:
    """Two pods of the operator; one afterwards."""
    kubectl("scale", "deploy/synapse-operator", *HOME, "--replicas=2")
    kubectl("rollout", "status", "deploy/synapse-operator", *HOME, "--timeout=120s")
    yield
    kubectl("scale", "deploy/synapse-operator", *HOME, "--replicas=1")
    apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=place.namespace)
    place.settled()


def holder() -> str:
    """Who holds the Lease: one process, whose name begins with its pod's."""
    return str(get("lease", LEASE_NAME, *HOME)["spec"].get("holderIdentity") or "")


def leader() -> Object:
    """The pod that leads."""
    (found,) = (pod for pod in items("pods", *HOME) if holder().startswith(pod["metadata"]["name"]))
    return found


def delete_by_force(pod: Object) -> None:
    kubectl("delete", "pod", pod["metadata"]["name"], *HOME, "--force", "--grace-period=0")


def kill_from_the_node(pod: Object) -> None:
    script = (
        f"for pid in $(grep -ls '{pod['metadata']['uid']}' /proc/[0-9]*/cgroup | cut -d/ -f3); do "
        "if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'synapse-operator'; "
        "then kill -9 $pid && echo killed; fi; done"
    )
    assert "killed" in localcluster("exec-node", "sh", "-c", script)


def restarts(place: Place) -> dict[str, int]:
    """How often the worker of each pod was started again."""
    pods = items("pods", "-n", place.namespace, "-l", naming.selector_text(naming.worker_selector(SCALE)))
    return {
        pod["metadata"]["name"]: sum(each["restartCount"] for each in pod["status"].get("containerStatuses", []))
        for pod in pods
    }


def both_ready() -> bool:
    return bool(get("deploy", "synapse-operator", *HOME)["status"].get("readyReplicas") == 2)


def taken_over(place: Place, end: Callable[[Object], None], replicas: int) -> float:
    """Kill the leader and ask for so many workers at once; returns how long until the next leader has obeyed (s).

    The killed one's pod is replaced afterwards, since a container that is killed again and again is started ever later.
    """
    eventually("both operators are ready", both_ready, seconds=120)
    old, pod = holder(), leader()
    began = time.monotonic()
    end(pod)
    apply(a_scale(SCALE, replicas=replicas, drainTimeoutSeconds=60), namespace=place.namespace)

    def obeyed() -> bool:
        wanted = get("deploy", place.deployment(), "-n", place.namespace)["spec"]["replicas"]
        return bool(wanted == replicas and holder() not in ("", old))

    eventually("the next leader acts", obeyed, seconds=TAKEOVER_SECONDS)
    took = time.monotonic() - began
    kubectl("delete", "pod", pod["metadata"]["name"], *HOME, "--force", "--grace-period=0", "--ignore-not-found")
    return took


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("end", "how", "times"),
    [
        (kill_from_the_node, "killed by -9 from the node", KILLS),
        (delete_by_force, "deleted by force", DELETIONS),
    ],
)
async def test_a_leader_is_killed(
    place: Place,
    two_operators: None,
    cluster_database: Database,
    cluster_redis: Redis,
    end: Callable[[Object], None],
    how: str,
    times: int,
) -> None:
    await store(cluster_database, chain("led", slow_steps(STEPS, 0.1)))
    load = Load(cluster_database, cluster_redis, "led", steps=STEPS, in_flight=2)
    before = restarts(place)
    async with load.under_way():
        # A worker more or less, by turns, so that each leader has something to do.
        took = [await asyncio.to_thread(taken_over, place, end, 3 + number % 2) for number in range(times)]
    after = restarts(place)
    judged = await load.judged(seconds=120)
    seconds = ", ".join(f"{each:.1f}" for each in took)
    print(f"\nleader {how} {len(took)} times, the next one acted after {seconds} s: {judged}", flush=True)
    assert after == {name: before.get(name, 0) for name in after}
    assert not judged.lost
    assert not judged.doubled
    assert judged.dead_letters == judged.failures == 0
