"""`make bench`, or `python -m benchmarks NAME ...`: measure figures and write them into RESULTS.md.

Only the sections of the figures that were measured are replaced. `--profile` runs our side of a figure once under
cProfile instead, which is how the sentences on what limits it came about.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks import (
    api,
    claim,
    idle,
    inflight,
    loops,
    parking,
    recovery,
    runs,
    shards,
    start,
    tenants,
    traces,
)
from benchmarks.measure import ROUNDS, Figure, Row, middle, shown, spread
from benchmarks.servers import Servers, machine
from tests.support.servers import PostgresServer, RedisServer

FIGURES: Mapping[str, Figure] = {
    "claim": claim.FIGURE,
    "inflight": inflight.FIGURE,
    "runs": runs.FIGURE,
    "loops": loops.FIGURE,
    "traces": traces.FIGURE,
    "api": api.FIGURE,
    "start": start.FIGURE,
    "recovery": recovery.FIGURE,
    "parking": parking.FIGURE,
    "shards": shards.FIGURE,
    "tenants": tenants.FIGURE,
    "idle": idle.FIGURE,
}
RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """\
# Results

Each figure is a ratio measured in one run against a named reference on the same servers: the sides take turns, the
ratio is that of one round, and what stands here is the median over the rounds (lowest to highest in brackets).
`make bench` measures all of them; `.venv/bin/python -m benchmarks NAME` one. No test asserts a time. The sentences
under each table say what limits our side; `--profile` shows it.

PostgreSQL is the test suite's, with fsync and synchronous_commit off, so a commit costs no disk here. The machine
does other work at times: its load stands beside each date.
"""
_HEADING = ("figure", "unit", "ours", "reference", "ratio", "goal", "reference is")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(FIGURES)))
@click.option(
    "--rounds", default=ROUNDS, show_default=True, type=click.IntRange(1, 20), help="How often each side runs."
)
@click.option("--profile", is_flag=True, help="Run our side once under the profiler; writes nothing.")
def main(names: Sequence[str], rounds: int, profile: bool) -> None:
    """Measure figures (default: all) and write benchmarks/RESULTS.md."""
    chosen = {name: FIGURES[name] for name in names or FIGURES}
    with _servers() as servers:
        if profile:
            for figure in chosen.values():
                _profile(figure, servers)
            return
        about = asyncio.run(machine(servers))
        for name, figure in chosen.items():
            click.echo(f"measuring {name}: {figure.title} ({rounds} rounds)")
            began, load = time.monotonic(), os.getloadavg()[0]
            rows = asyncio.run(figure.measure(servers, rounds))
            for row in rows:
                click.echo(f"  {row.name}: {middle(row.ours)} {row.unit}, {middle(row.ratios)}x {row.against}")
            click.echo(f"  took {time.monotonic() - began:.0f} s")
            where = f"{about}; load {load:.1f} before and {os.getloadavg()[0]:.1f} after"
            text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
            RESULTS.write_text(with_section(text, name, section(name, figure, rows, where)), encoding="utf-8")


@contextmanager
def _servers() -> Iterator[Servers]:
    servers = Servers(RedisServer(), PostgresServer())
    try:
        servers.redis.start()
        servers.postgres.start()
        yield servers
    finally:
        servers.redis.remove()
        servers.postgres.remove()


def _profile(figure: Figure, servers: Servers) -> None:
    if figure.profiled is None:
        click.echo(f"{figure.title}: it waits more than it works, so there is nothing to profile")
        return
    profiler = cProfile.Profile()
    profiler.enable()
    asyncio.run(figure.profiled(servers))
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def section(name: str, figure: Figure, rows: Sequence[Row], about: str) -> str:
    """Return a figure's section of RESULTS.md."""
    lines = [
        f"## {figure.title}",
        "",
        f"`python -m benchmarks {name}`, {datetime.now(UTC):%Y-%m-%d}, {len(rows[0].ours)} rounds; {about}.",
        "",
        figure.method,
        "",
        f"| {' | '.join(_HEADING)} |",
        f"|{' --- |' * len(_HEADING)}",
    ]
    for row in rows:
        ratio = f"{shown(statistics.median(row.ratios))} ({spread(row.ratios)})"
        cells = (row.name, row.unit, f"{middle(row.ours)} ({spread(row.ours)})", middle(row.reference), ratio)
        lines.append(f"| {' | '.join((*cells, row.goal, row.against))} |")
    return "\n".join([*lines, "", figure.limits, ""])


def with_section(text: str, name: str, new: str) -> str:
    """Return RESULTS.md with the section of one figure replaced, or added; what is no figure stays, and comes last."""
    _, *sections = re.split(r"(?m)^(?=## )", text)
    marker = f"`python -m benchmarks {name}`"
    kept = [each for each in sections if marker not in each]
    by_name = {**{_name(each): each for each in kept}, name: new}
    ordered = [by_name[each] for each in FIGURES if each in by_name]
    ordered += [each for each in kept if _name(each) not in FIGURES]
    return "\n".join([_HEAD, *(each.rstrip() + "\n" for each in ordered)])


def _name(text: str) -> str:
    found = re.search(r"`python -m benchmarks (\w+)`", text)
    return found.group(1) if found else ""


if __name__ == "__main__":
    main()
