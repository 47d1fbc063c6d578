"""`make soak`: the operator for a long time, with what happens over a long time. Not part of `make test`.

SOAK_SECONDS (1500) and SOAK_KILLS (20) make it shorter. Workers that are killed by the hundred are `make chaos`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
from pydantic import SecretStr

from synapse_worker.connections import open_database, open_redis
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, MountedOperator, Operator, eventually
from tests.controlplane.proxy import Proxy
from tests.controlplane.stores import Stores
from tests.controlplane.test_reapply import BEFORE, INSTALL, install
from tests.controlplane.test_takeovers import killed
from tests.support import runs
from tests.support.load import Load
from tests.support.workers import WorkerProcess, chain, slow_steps

SECONDS = int(os.environ.get("SOAK_SECONDS", "1500"))
KILLS = int(os.environ.get("SOAK_KILLS", "20"))

TOKEN_SECONDS = 600
"""The shortest that the API server issues; kubelet replaces one at four fifths of its life."""

CUT_EVERY_SECONDS = 45.0
DEAF_SECONDS = 200.0
"""Within so long what the watch did not bring is acted on: silence of a stream (70 s), a list (60 s), patience (30 s),
a restart."""


def passed(moment: float) -> bool:
    return time.monotonic() > moment


@pytest.mark.timeout(KILLS * 60 + 300)
def test_leaders_are_killed(plane: ControlPlane, ns: str) -> None:
    killed(plane, ns, KILLS)


@pytest.mark.timeout(SECONDS + 600)
def test_tokens_end_and_watches_are_cut_and_no_zombie_stays(plane: ControlPlane, ns: str) -> None:
    proxy = Proxy(plane.server())
    began = time.monotonic()
    rotated, cuts, restarts, number = began, 0, 0, 0
    slowest = 0.0
    with MountedOperator(plane, server=proxy.url, token_seconds=TOKEN_SECONDS) as operator:
        operator.lead()
        while time.monotonic() - began < SECONDS:
            # By turns the streams are closed, and go silent without an end, as behind a firewall that forgets.
            proxy.cut(silent=cuts % 2 == 1)
            cuts += 1
            name = f"s{number}"
            number += 1
            plane.apply(harness.scale(ns, name))
            asked = time.monotonic()
            while not plane.child(ns, "Deployment", name):
                if not operator.running or operator.probe("/livez")[0] == 503:
                    restarts += 1  # as kubelet does
                    operator.kill()
                    operator.start()
                assert time.monotonic() - asked < DEAF_SECONDS, f"a zombie: {operator.log[-3000:]}"
                time.sleep(0.5)  # the poll's period; the assertion above bounds it
            slowest = max(slowest, time.monotonic() - asked)
            if number > 5:
                plane.kubectl("delete", f"sscale/s{number - 6}", "-n", ns, "--wait=false")
            if time.monotonic() - rotated > TOKEN_SECONDS * 0.8:
                rotated = time.monotonic()
                operator.renew_token()
            due = asked + CUT_EVERY_SECONDS
            eventually("the next cut is due", partial(passed, due), seconds=CUT_EVERY_SECONDS + 10)
        print(
            f"{time.monotonic() - began:.0f} s, tokens of {TOKEN_SECONDS} s, {cuts} cuts of the watch, "
            f"{restarts} restarts; slowest new scale {slowest:.1f} s"
        )
        assert not re.search(r"\b401\b|Unauthorized", operator.log)  # not digits of an Event's name
        operator.terminate()
    proxy.close()


ORCHESTRATION = "upgraded"
STEPS = 6
IN_FLIGHT = 8
BEFORE_VARIABLES = {"WORKER_QUEUE_SHARD": "default,0"}


def as_rendered(plane: ControlPlane, namespace: str, stores: Stores) -> WorkerProcess:
    """Play kubelet: a worker process with the environment that is rendered for the scale's shard 0 now."""
    data: dict[str, str] = plane.child(namespace, "ConfigMap")["data"]
    apart = ("WORKER_HEALTH_PORT", "SYNAPSE_DATA_DIR", "LOG_FORMAT")  # pods have their own, processes here share
    return WorkerProcess(
        stores.redis.url, stores.postgres_url, **{name: value for name, value in data.items() if name not in apart}
    )


@contextmanager
def ended(worker: WorkerProcess) -> Iterator[WorkerProcess]:
    """Have a worker ended with the block, if it still runs."""
    try:
        yield worker
    finally:
        worker.close()


@pytest.fixture
def release_before(plane: ControlPlane) -> Iterator[None]:
    """The CRDs and rights of the release before; afterwards the present ones are there again."""
    install(plane, BEFORE)
    yield
    install(plane, INSTALL)


@pytest.mark.timeout(400)
async def test_an_upgrade_with_runs_in_flight(
    plane: ControlPlane, ns: str, stores: Stores, release_before: None
) -> None:
    """install.yaml of this release over the one before, while a worker is busy with runs that go on being enqueued.

    The programs of the release before are not here: its worker is one of this release with that one's variables, and
    its operator is away, as in every upgrade for a moment. The new operator's worker has the environment that was
    rendered for it; once it is ready, the old one gets its SIGTERM, as in a rollout.
    """
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    made = plane.get(ns, "sscale", "main")["metadata"]
    database, client = open_database(SecretStr(stores.postgres_url)), open_redis(SecretStr(stores.redis.url))
    load = Load(database, client, ORCHESTRATION, steps=STEPS, in_flight=IN_FLIGHT)
    try:
        await runs.store(database, chain(ORCHESTRATION, slow_steps(STEPS, 0.1)))
        with ExitStack() as stack:
            old = stack.enter_context(ended(WorkerProcess(stores.redis.url, stores.postgres_url, **BEFORE_VARIABLES)))
            await asyncio.to_thread(old.start().wait_ready)
            async with load.under_way():
                await asyncio.to_thread(install, plane, INSTALL)
                operator = stack.enter_context(Operator(plane))
                await asyncio.to_thread(operator.lead)
                await asyncio.to_thread(plane.await_children, ns)
                new = stack.enter_context(ended(as_rendered(plane, ns, stores)))
                await asyncio.to_thread(new.start().wait_ready)
                old.signal(signal.SIGTERM)
                assert await asyncio.to_thread(old.wait, 60) == 0
                asked = len(load.run_ids) + IN_FLIGHT
                await runs.eventually("the new worker makes room", lambda: len(load.run_ids) > asked, seconds=90)
            judged = await load.judged(seconds=120)
            await asyncio.to_thread(plane.await_tenant, ns, "acme", "TenantStored")
            now = plane.get(ns, "sscale", "main")["metadata"]
            operator.terminate()
    finally:
        await database.close()
        await client.aclose()
    print(f"upgrade with runs in flight: {judged}")
    assert not judged.lost
    assert not judged.doubled
    assert judged.failures == judged.dead_letters == 0
    assert (now["uid"], now["generation"]) == (made["uid"], made["generation"])
