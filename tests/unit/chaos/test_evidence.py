"""The judge of the fault scenarios: it must find each kind of loss and doubling, and call nothing else by that name."""

from __future__ import annotations

import pytest

from tests.chaos import evidence
from tests.chaos.evidence import Event, Execution, Expected, Row, Write


def did(claim: int, mono: float, *, step: str = "s", visit: int = 1) -> Execution:
    return Execution("r", step, visit, claim, 1, mono, mono)


def checkpoint(claim: int, at: float, *, step: str = "s", visit: int = 1, run_claim: int | None = None) -> Write:
    return Write("r", at, claim, run_claim or claim, step, visit)


def became(status: str, claim: int, at: float, *, was: str = "running") -> Write:
    return Write("r", at, claim, claim, status=status, was=was)


def picked_up(claim: int) -> Event:
    return Event(f"r:worker:{claim}:0", claim, None)


def completes(step: str, number: int = 1) -> Event:
    return Event(f"r:{step}:1:{number}", 0, (step, 1))


ORDERLY = [became("running", 1, 0.0), checkpoint(1, 2.0), became("completed", 1, 3.0)]


def test_an_orderly_run_is_not_doubled() -> None:
    assert evidence.doubled([did(1, 1.0)], ORDERLY, {"r": [picked_up(1), completes("s")]}) == {}


def test_a_step_that_a_killed_owner_did_not_finish_is_not_doubled() -> None:
    writes = [became("running", 1, 0.0), became("running", 2, 4.0), checkpoint(2, 6.0), became("completed", 2, 7.0)]
    assert evidence.doubled([did(1, 1.0), did(2, 5.0)], writes, {}) == {}


@pytest.mark.parametrize(
    ("executions", "writes", "word"),
    [
        ([did(1, 1.0), did(2, 2.5)], ORDERLY, "was done again by claim 2"),
        ([did(1, 1.0), did(1, 1.5)], ORDERLY, "more than once"),
        ([did(1, 1.0)], [*ORDERLY, became("failed", 2, 4.0, was="completed")], "ended twice"),
        ([did(1, 1.0)], [became("running", 2, 0.0), checkpoint(1, 2.0)], "claim 1 wrote after claim 2"),
        ([did(1, 1.0)], [checkpoint(1, 2.0, run_claim=2)], "claim 1 wrote after claim 2"),
    ],
)
def test_every_kind_of_doubling_is_found(executions: list[Execution], writes: list[Write], word: str) -> None:
    assert word in evidence.doubled(executions, writes, {})["r"]


def test_an_event_of_an_older_owner_behind_a_newer_one_is_found() -> None:
    writes = [checkpoint(1, 2.0)]
    late = {"r": [picked_up(1), picked_up(2), completes("s")]}
    assert "to the stream after claim 2" in evidence.doubled([], writes, late)["r"]
    assert "to the stream after claim 2" in evidence.doubled([], [], {"r": [picked_up(2), picked_up(1)]})["r"]
    said_again = {"r": [picked_up(1), completes("s"), picked_up(2), completes("s")]}
    assert evidence.doubled([], writes, said_again) == {}


def test_every_kind_of_loss_is_found() -> None:
    expected = {"r": Expected("completed", 5, 1)}
    assert evidence.lost(expected, {"r": Row("completed", "", 5, 1)}) == []
    for rows in (
        {},
        {"r": Row("running", "", 5, 1)},
        {"r": Row("failed", "why", 5, 1)},
        {"r": Row("completed", "", 4, 1)},
        {"r": Row("completed", "", 5, 2)},
    ):
        assert len(evidence.lost(expected, rows)) == 1
    poisoned = {"r": Expected("failed", error="CrashLoop")}
    assert evidence.lost(poisoned, {"r": Row("failed", "CrashLoop: it ended its worker", 1, 0)}) == []
    assert len(evidence.lost(poisoned, {"r": Row("failed", "another reason", 1, 0)})) == 1


def test_recovery_is_the_longest_stand_still_of_a_run_from_a_fault_on() -> None:
    steps = [did(1, 1.0), did(2, 14.5, visit=2)]
    ends = [became("completed", 2, 20.0)]
    assert evidence.slowest_recovery([], steps, ends) == 0.0
    assert evidence.slowest_recovery([10.0], steps, ends) == 5.5  # the last step is the longer pause then
    assert evidence.slowest_recovery([8.0, 12.0], steps, ends) == 6.5
    assert evidence.slowest_recovery([0.5], steps, ends) == 13.5  # felt later than it happened
    assert evidence.slowest_recovery([19.0], steps, ends) == 1.0
    assert evidence.slowest_recovery([30.0], steps, ends) == 0.0  # all had ended
