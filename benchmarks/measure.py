"""How every figure is taken: sides measured in turn, in changing order, and medians of what came out.

The machine may be busy with other things. Two sides measured right after each other share that, so it is the
ratio of one round that is kept, and the median over the rounds that is written down.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import Servers

ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of RESULTS.md: values per round; `ours` and `reference` share a unit, ratio is ours / reference."""

    name: str
    unit: str
    ours: Sequence[float]
    reference: Sequence[float]
    against: str
    goal: str

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round."""
        return [mine / theirs for mine, theirs in zip(self.ours, self.reference, strict=True)]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a module of this package offers: `measure` returns its rows, `profiled` runs our side once."""

    title: str
    method: str
    limits: str
    """What limits it, in two sentences, as the profile said when they were written."""
    measure: Callable[[Servers, int], Coroutine[None, None, list[Row]]]
    profiled: Callable[[Servers], Coroutine[None, None, None]] | None = None


async def alternate(sides: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> dict[str, list[float]]:
    """Measure all sides in each round; every other round goes backwards, so that none is always first."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, measure in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            values[name].append(await measure())
    return values


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process so far, all its threads together: other load changes it less."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of all values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def middle(values: Sequence[float]) -> str:
    """Return the median as text, with as many digits as mean something."""
    return shown(statistics.median(values))


def spread(values: Sequence[float]) -> str:
    """Return the lowest and the highest value as text."""
    return f"{shown(min(values))} to {shown(max(values))}"


def shown(value: float) -> str:
    """Return a number with three significant digits, without exponents."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):,.{digits}f}"
