"""Leading operators are killed while scales and tenants come, change and go; `make soak` kills more of them."""

from __future__ import annotations

import statistics

from tests.controlplane.churn import TAKEOVER_SECONDS, Churn, check, kill_leaders
from tests.controlplane.harness import ControlPlane

KILLS = 3


def test_nothing_is_twice_and_nothing_orphaned_when_leaders_are_killed(plane: ControlPlane, ns: str) -> None:
    killed(plane, ns, KILLS)


def killed(plane: ControlPlane, ns: str, kills: int) -> None:
    """Kill so many leaders and check what they leave."""
    mark = plane.audit_mark()
    with Churn(plane, ns) as churn:
        takeovers, leader = kill_leaders(plane, kills)
    try:
        assert len(takeovers) == kills
        assert max(takeovers) <= TAKEOVER_SECONDS
        twice = check(plane, churn, mark)
        print(
            f"{kills} leaders killed over {churn.made} scales and as many tenants; takeovers {min(takeovers):.1f} to"
            f" {max(takeovers):.1f} s, median {statistics.median(takeovers):.1f} s; created twice: {len(twice)}"
        )
        assert twice == []
        leader.terminate()
    finally:
        leader.kill()
