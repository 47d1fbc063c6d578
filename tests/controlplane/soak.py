"""`make soak`: the operator for a long time, with what happens over a long time. Not part of `make test`.

SOAK_SECONDS (1500) and SOAK_KILLS (20) make it shorter.
"""

from __future__ import annotations

import os
import time
from functools import partial

import pytest

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, MountedOperator, eventually
from tests.controlplane.proxy import Proxy
from tests.controlplane.test_takeovers import killed

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
        assert "401" not in operator.log
        operator.terminate()
    proxy.close()
