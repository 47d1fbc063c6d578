"""What the traces of a scenario prove: how many runs were lost, how many doubled, how long one stood still.

Pure: it is handed the journal of the steps (kept by the worker processes), the writes (noted by triggers inside
PostgreSQL, in the order of their commits), the streams and the runs' rows, and believes none of them alone.
A run is doubled when a checkpointed step is done again, when it ends twice, or when a claim writes after a newer one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

ENDED = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Execution:
    """A started step: by which claim, and when (monotonic seconds; `wall` is what its process took for the time)."""

    run_id: str
    step_id: str
    visit: int
    claim: int
    pid: int
    mono: float
    wall: float


@dataclass(frozen=True, slots=True)
class Write:
    """A committed write, in the order of commits within a run.

    A checkpoint has a `step_id`, the claim of its writer and `run_claim`, the claim that owned the run then; a change
    of status has "" there, the new `status` and the one before it ("" for a new row). `at` is monotonic seconds.
    """

    run_id: str
    at: float
    claim: int
    run_claim: int
    step_id: str = ""
    visit: int = 0
    status: str = ""
    was: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a run's stream: its id, and for `worker_picked_up` the claim (else 0)."""

    event_id: str
    picked_up_by: int
    completes: tuple[str, int] | None


@dataclass(frozen=True, slots=True)
class Row:
    """How a run stands in the end: status, error, finished steps and its counter."""

    status: str
    error: str
    steps: int
    count: object


@dataclass(frozen=True, slots=True)
class Expected:
    """How a run has to end; `steps` and `count` only where it is to complete."""

    status: str
    steps: int = 0
    count: int = 0
    error: str = ""
    """What its error has to hold."""


def lost(expected: Mapping[str, Expected], rows: Mapping[str, Row]) -> list[str]:
    """Return a sentence for each run that did not end as it had to."""
    found: list[str] = []
    for run_id, wanted in expected.items():
        row = rows.get(run_id)
        if row is None:
            found.append(f"{run_id} has no row")
        elif row.status != wanted.status or wanted.error not in row.error:
            found.append(f"{run_id} is {row.status} after {row.steps} steps ({row.error or 'no error'})")
        elif wanted.status == "completed" and (row.steps, row.count) != (wanted.steps, wanted.count):
            found.append(f"{run_id} completed with {row.steps} of {wanted.steps} steps and counted to {row.count}")
    return found


def doubled(
    executions: Sequence[Execution], writes: Sequence[Write], streams: Mapping[str, Sequence[Event]]
) -> dict[str, str]:
    """Return run id -> one sentence for each run that was doubled."""
    found: dict[str, str] = {}
    checkpoints = {(write.run_id, write.step_id, write.visit): write for write in writes if write.step_id}
    times: dict[tuple[str, str, int, int], int] = defaultdict(int)
    for execution in executions:
        step = (execution.run_id, execution.step_id, execution.visit)
        times[(*step, execution.claim)] += 1
        if times[(*step, execution.claim)] > 1:
            found[execution.run_id] = f"claim {execution.claim} did step {step[1]}:{step[2]} more than once"
        checkpoint = checkpoints.get(step)
        # Either shows it: a later claim, or a later start.
        if checkpoint and (execution.claim > checkpoint.claim or execution.mono > checkpoint.at):
            found[execution.run_id] = (
                f"step {step[1]}:{step[2]} of claim {checkpoint.claim} was done again by claim {execution.claim}"
            )
    ends: dict[str, int] = defaultdict(int)
    newest: dict[str, int] = defaultdict(int)
    for write in writes:
        if write.status in ENDED and write.was != write.status:
            ends[write.run_id] += 1
            if ends[write.run_id] > 1:
                found[write.run_id] = f"it ended twice, the last time as {write.status}"
        if write.claim < newest[write.run_id] or write.claim != write.run_claim:
            found[write.run_id] = f"claim {write.claim} wrote after claim {max(newest[write.run_id], write.run_claim)}"
        newest[write.run_id] = max(newest[write.run_id], write.claim)
    for run_id, events in streams.items():
        if sentence := _outdated_event(run_id, events, checkpoints):
            found[run_id] = sentence
    return found


def _outdated_event(
    run_id: str, events: Sequence[Event], checkpoints: Mapping[tuple[str, str, int], Write]
) -> str | None:
    """Return a sentence when an older owner's event stands behind the one by which a newer owner began.

    An event may come twice with the same id, so only the first of each counts.
    """
    seen: set[str] = set()
    owner = 0
    for event in events:
        if event.event_id in seen:
            continue
        seen.add(event.event_id)
        if event.picked_up_by:
            if event.picked_up_by < owner:
                return f"claim {event.picked_up_by} wrote to the stream after claim {owner}"
            owner = event.picked_up_by
        checkpoint = checkpoints.get((run_id, *event.completes)) if event.completes else None
        if checkpoint and checkpoint.claim < owner:
            return f"claim {checkpoint.claim} wrote {event.event_id} to the stream after claim {owner}"
    return None


def slowest_recovery(faults: Sequence[float], executions: Iterable[Execution], writes: Iterable[Write]) -> float:
    """Return the longest time (s) that a run stood still from a fault on, until it began its next step or ended.

    A fault may be felt later than it happens (a lease that is gone is noticed at the next heartbeat), so after the
    first one every pause between two steps counts: from the first fault in it, else all of it.
    """
    if not faults:
        return 0.0
    faults = sorted(faults)
    signs: dict[str, list[float]] = defaultdict(list)
    for execution in executions:
        signs[execution.run_id].append(execution.mono)
    for write in writes:
        if write.status in ENDED:
            signs[write.run_id].append(write.at)
    slowest = 0.0
    for moments in signs.values():
        for before, after in pairwise(sorted(moments)):
            if after > faults[0]:
                place = bisect_right(faults, before)
                began = faults[place] if place < len(faults) and faults[place] < after else before
                slowest = max(slowest, after - began)
    return slowest
