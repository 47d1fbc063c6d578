"""The page's section Enable Scale Mode, as far as it concerns workers; test_v2_api.py has the rest."""

from __future__ import annotations

import pytest

from synapse_operator.desired import Desired
from synapse_operator.observed import Overview, QueueFigures, Unknown
from tests.builders import a_scale, an_observed, children_of, what_is_desired


def desired_when_disabled(*, queued: int, active: int, open_jobs: int) -> Desired:
    """What an operator wants of a scale with three workers after scale mode was switched off."""
    before = what_is_desired(a_scale(spec={"workers": {"replicas": 3}}))
    observed = an_observed(
        children=children_of(before),
        queues={"default": QueueFigures(queued=queued, active=active, oldest_seconds=None)},
        overview=Overview(dead_letters=0, slots=30, active_jobs=active, open_jobs=open_jobs),
    )
    return what_is_desired(a_scale(spec={"enabled": False, "workers": {"replicas": 3}}), observed)


@pytest.mark.parametrize(("queued", "active"), [(0, 1), (5, 0), (5, 30)])
def test_disabling_scale_mode_does_not_cancel_running_jobs(queued: int, active: int) -> None:
    """In-flight jobs on workers continue until they finish: disabling scale mode does not cancel running jobs."""
    assert desired_when_disabled(queued=queued, active=active, open_jobs=queued + active).workers == 3


def test_workers_go_when_nothing_is_left() -> None:
    """When disabled, no worker is needed once the jobs in flight have finished."""
    assert desired_when_disabled(queued=0, active=0, open_jobs=0).workers == 0


def test_what_cannot_be_asked_is_not_taken_for_finished() -> None:
    """In-flight jobs continue until they finish, also when nobody can say whether there are any."""
    before = what_is_desired(a_scale(spec={"workers": {"replicas": 3}}))
    observed = an_observed(children=children_of(before), queues=Unknown("Redis does not answer"))
    assert what_is_desired(a_scale(spec={"enabled": False, "workers": {"replicas": 3}}), observed).workers == 3
