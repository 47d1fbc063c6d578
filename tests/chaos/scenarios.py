"""The scenarios by name, each in a long form (`make chaos`) and, where it can be short, in one for `make test`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from tests.chaos import jobs, processes, stores
from tests.chaos.stage import Stage

Play = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What breaks, in words, and the two forms of it; `short` is None where the length is the point."""

    title: str
    long: Play
    short: Play | None


SCENARIOS: Mapping[str, Scenario] = {
    "kills": Scenario(
        "100 kills of workers, one every 2 s over four processes, lease 3 s",
        partial(processes.kills, kills=100, every=2.0, processes=4),
        partial(processes.kills, kills=2, every=1.0, processes=2, load_every=0.5),
    ),
    "kills-default-lease": Scenario(
        "two kills at the default lease of 30 s",
        partial(processes.kills, kills=2, every=40.0, processes=2, lease=30, load_every=2.0),
        None,
    ),
    "rollouts": Scenario(
        "all workers replaced one after another, eight times, under load",
        partial(processes.rollouts, rounds=8, processes=3),
        partial(processes.rollouts, rounds=1, processes=1),
    ),
    "frozen": Scenario("a worker frozen past its lease, then thawed", processes.frozen, processes.frozen),
    "clocks": Scenario(
        "workers' clocks 31 s ahead and behind, with kills",
        partial(processes.clocks, kills=9),
        partial(processes.clocks, kills=1),
    ),
    "poison": Scenario(
        "a job that kills its process, beside nine long ones in it",
        partial(processes.poison, neighbours=9, rounds=25),
        None,
    ),
    "redis-restarts": Scenario(
        "Redis restarted with its append-only file, stopped and killed, up to 8 s away",
        partial(stores.redis_restarted, outages=(1.0, 1.0, 4.0, 8.0), sweep=None),
        partial(stores.redis_restarted, outages=(0.5, 0.5), sweep=2.0),
    ),
    "redis-failover": Scenario(
        "the primary killed, a replica 1 s behind promoted after 3 s of being read-only",
        partial(stores.redis_failed_over, behind=1.0, read_only=3.0, sweep=None),
        partial(stores.redis_failed_over, behind=0.5, read_only=0.5, sweep=2.0),
    ),
    "redis-emptied": Scenario(
        "FLUSHALL in the middle; the sweep rebuilds the queue",
        partial(stores.redis_emptied, sweep=None),
        partial(stores.redis_emptied, sweep=2.0),
    ),
    "redis-cut-off": Scenario("a worker cut off from Redis for longer than its lease", stores.cut_off, stores.cut_off),
    "postgres-stopped": Scenario(
        "PostgreSQL stopped for 60 s",
        partial(stores.postgres_stopped, seconds=60.0),
        partial(stores.postgres_stopped, seconds=2.0),
    ),
    "pgbouncer-restarts": Scenario(
        "PgBouncer killed and started again, three times",
        partial(stores.pgbouncer_restarted, outages=(1.0, 5.0, 15.0)),
        partial(stores.pgbouncer_restarted, outages=(0.5,)),
    ),
    "stock-peer": Scenario(
        "a stock arq worker on the same queue, ours killed",
        partial(jobs.stock_peer, jobs=300, kills=6),
        partial(jobs.stock_peer, jobs=30, kills=1),
    ),
    "malformed": Scenario(
        "10,000 payloads that nobody can run, beside good runs",
        partial(jobs.malformed_payloads, count=10_000, good=40),
        partial(jobs.malformed_payloads, count=230, good=10),
    ),
}
