"""How often run logs are looked after."""

from __future__ import annotations

import pytest

from synapse_worker.run_logs import BATCH, next_pause


@pytest.mark.parametrize(
    ("before", "done", "busy", "late", "after"),
    [
        (0.5, BATCH, False, False, 0.05),
        (0.5, 3, False, False, 0.5),
        (0.5, BATCH, True, False, 2.0),
        (0.5, 3, True, False, 2.0),
        (2.0, BATCH, True, True, 0.05),
        (0.5, 0, True, False, 1.0),
        (12.0, 0, False, False, 15.0),
    ],
)
def test_logs_wait_while_runs_need_the_process_unless_they_are_late(
    before: float, done: int, busy: bool, late: bool, after: float
) -> None:
    assert next_pause(before, done, busy=busy, late=late) == after
