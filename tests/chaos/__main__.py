"""`make chaos`, or `python -m tests.chaos [NAME ...]`: break things for real and count what it cost.

One line for each scenario as it ends; exit code 1 when a run was lost or doubled, or something else was not as
promised. What the columns mean is in docs/operations.md.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Sequence

from tests.chaos.scenarios import SCENARIOS, Play
from tests.chaos.stage import Stage, Verdict
from tests.support.run_layers import servers
from tests.support.servers import PostgresServer

_COLUMNS = ("started", "finished", "lost", "doubled", "slowest recovery (s)")
_WIDTH = max(map(len, SCENARIOS))
_MOST_PROBLEMS = 10


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


async def play(postgres: PostgresServer, scenario: Play, *, step_seconds: float) -> Verdict:
    """Play a scenario on a stage of its own."""
    async with Stage(postgres, lambda text: say(f"    {text}"), step_seconds=step_seconds) as stage:
        await scenario(stage)
        return await stage.verdict()


def line(name: str, cells: Sequence[object]) -> str:
    """Return a line of the table."""
    return "  ".join(
        [name.ljust(_WIDTH), *(str(cell).rjust(len(of)) for cell, of in zip(cells, _COLUMNS, strict=True))]
    )


def cells(verdict: Verdict) -> list[object]:
    """Return what stands in a scenario's line."""
    return [verdict.started, verdict.finished, verdict.lost, verdict.doubled, f"{verdict.slowest:.1f}"]


def main(names: Sequence[str]) -> int:
    """Play the named scenarios, or all; returns the exit code."""
    if unknown := set(names) - set(SCENARIOS):
        say(f"unknown scenario {', '.join(sorted(unknown))}; there are: {', '.join(SCENARIOS)}")
        return 2
    if reason := servers():
        say(f"the scenarios cannot be played: {reason}")
        return 1
    chosen = list(names) or list(SCENARIOS)
    table: list[str] = []
    good = True
    postgres = PostgresServer()
    try:
        postgres.start()
        for number, name in enumerate(chosen, start=1):
            say(f"[{number}/{len(chosen)}] {name}: {SCENARIOS[name].title}")
            began = time.monotonic()
            try:
                verdict = asyncio.run(play(postgres, SCENARIOS[name].long, step_seconds=0.2))
            except Exception:
                traceback.print_exc()
                table.append(line(name, ["-", "-", "-", "-", "broken off"]))
                good = False
            else:
                table.append(line(name, cells(verdict)))
                for problem in verdict.problems[:_MOST_PROBLEMS]:
                    say(f"    {problem}")
                good = good and verdict.good
            say(f"{table[-1]}   (took {time.monotonic() - began:.0f} s)")
    finally:
        postgres.remove()
    say("\n" + "\n".join([line("scenario", _COLUMNS), *table]))
    say("nothing lost, nothing doubled" if good else "NOT as promised: see the lines above")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
