"""A Redis Cluster behind the interface of a single Redis: who holds a `Redis` need not know how many nodes answer.

redis-py's own asyncio client of a cluster closes all connections of all calls when one connection fails, forgets
its start nodes one by one, sends scripts again by itself, and refuses them in pipelines. This one has a plain
`Redis` for each node and sends every command to the node that its key names. It sends again only what a node has
refused to run (MOVED, ASK, TRYAGAIN); a connection that fails is the caller's to judge, and makes the next call
read the layout anew. Forms of URLs and sentences about failures are `connections`'s.

Keys of one call must share a slot, as the server demands; pipelines may hold commands for any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis.exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from synapse_worker.errors import StoreRefused, StoreUnavailable

Address = tuple[str, int]
"""Host and port of a node."""

_MOST_REDIRECTIONS = 8
_TRY_AGAIN_SECONDS = 0.05
_LAYOUT_SECONDS = 2.0
"""Longest wait for one node's view of the layout; the next one is asked then."""

_KEYLESS = frozenset({"INFO", "PING", "PUBLISH", "TIME"})
"""Commands of ours without a key: any node answers them."""

_EVERYWHERE = "SCRIPT LOAD"
"""The command that every master has to run."""

_UNREACHABLE = (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError)


class ClusterClient(Redis):
    """A client of a Redis Cluster; nothing is connected until the first call.

    What it raises is what a single node's client raises, and `StoreRefused` or `StoreUnavailable` for what only a
    cluster can be: no cluster at all, or one that does not serve a slot.
    """

    def __init__(self, seeds: Sequence[Address], connect: Callable[[Address], Redis]) -> None:
        """Make a client that learns the cluster's layout from the first of `seeds` that answers.

        Args:
            seeds: nodes to begin with, at least one.
            connect: returns a client of one node, not yet connected.
        """
        self._seeds = tuple(seeds)
        self._connect = connect
        self.nodes = {address: connect(address) for address in self._seeds}
        """A client of each node known so far."""
        self._masters: tuple[Address, ...] = ()
        self._slots: list[Address | None] = []
        self._known = False
        self._failed: set[Address] = set()
        """Nodes that failed since the layout was read: they are asked for it last."""
        self._reading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        super().__init__(connection_pool=self.nodes[self._seeds[0]].connection_pool)
        # As keys are sent: a job's id may be bytes that are no text.
        self._encode = self.get_encoder().encode  # type: ignore[no-untyped-call]

    async def masters(self) -> list[Redis]:
        """Return a client of each node that serves slots."""
        await self._know_layout()
        return [self._node(address) for address in self._masters]

    def forget_layout(self) -> None:
        """Let the next call read the layout anew."""
        self._known = False

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes; one that cannot be closed properly is dropped."""
        await asyncio.gather(*(_close(node) for node in self.nodes.values()), *self._closing)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline whose commands may go to different nodes; one round trip for each node, at once.

        Raises:
            ValueError: a transaction is asked for; there is none over several nodes.
        """
        if transaction:
            raise ValueError("a Redis Cluster has no transactions over several slots; use transaction=False")
        return _ClusterPipeline(self)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command where its key lives; follows redirections."""
        if args[0] == _EVERYWHERE:
            return await self._execute_everywhere(*args, **options)
        await self._know_layout()
        address, asking = self._address_of(args), False
        for _ in range(_MOST_REDIRECTIONS):
            node = self._node(address)
            try:
                if not asking:
                    return await node.execute_command(*args, **options)  # type: ignore[no-untyped-call]
                pipeline = node.pipeline(transaction=False)
                pipeline.execute_command("ASKING")
                pipeline.execute_command(*args, **options)
                _, answer = await pipeline.execute(raise_on_error=False)
                if not isinstance(answer, Exception):
                    return answer
                raise answer
            except (*_UNREACHABLE, asyncio.CancelledError):
                self._doubt(address)
                raise
            except redis_errors.ResponseError as error:
                kind, _, rest = str(error).partition(" ")
                if kind in ("MOVED", "ASK"):
                    asking = kind == "ASK"
                    address = self._redirected(rest, address, moved=not asking)
                elif kind == "TRYAGAIN":
                    await asyncio.sleep(_TRY_AGAIN_SECONDS)
                else:
                    if kind == "CLUSTERDOWN":
                        self._doubt(address)
                    raise
            await self._know_layout()
        raise StoreUnavailable("Redis", "is moving keys of ours to another node; it is tried again")

    async def execute_each(self, commands: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> list[Any]:
        """Run commands wherever their keys live, one round trip for each node.

        Returns:
            Their answers in order; an error (of a command, or of the connection to its node) is an answer too.
        """
        await self._know_layout()
        by_node: dict[Address, list[int]] = {}
        for number, (args, _) in enumerate(commands):
            by_node.setdefault(self._address_of(args), []).append(number)
        answers: list[Any] = [None] * len(commands)

        async def ask(address: Address, numbers: Sequence[int]) -> None:
            pipeline = self._node(address).pipeline(transaction=False)
            for number in numbers:
                args, options = commands[number]
                pipeline.execute_command(*args, **options)
            got: Iterable[Any]
            try:
                got = await pipeline.execute(raise_on_error=False)
            except asyncio.CancelledError:
                self._doubt(address)
                raise
            except _UNREACHABLE as error:
                self._doubt(address)
                got = [error] * len(numbers)
            for number, answer in zip(numbers, got, strict=True):
                answers[number] = answer
                if isinstance(answer, redis_errors.ResponseError) and str(answer).startswith("CLUSTERDOWN"):
                    self._doubt(address)

        await asyncio.gather(*(ask(address, numbers) for address, numbers in by_node.items()))
        for number, answer in enumerate(answers):
            if isinstance(answer, redis_errors.ResponseError) and str(answer).startswith(("MOVED", "ASK", "TRYAGAIN")):
                args, options = commands[number]
                try:
                    answers[number] = await self.execute_command(*args, **options)
                except (redis_errors.RedisError, OSError, StoreUnavailable, StoreRefused) as error:
                    answers[number] = error
        return answers

    async def _execute_everywhere(self, *args: Any, **options: Any) -> Any:
        """Run a command on every master; fails only if all fail, since one that is away has to be passed over."""
        masters = await self.masters()
        answers = await asyncio.gather(
            *(node.execute_command(*args, **options) for node in masters),  # type: ignore[no-untyped-call]
            return_exceptions=True,
        )
        for address, answer in zip(self._masters, answers, strict=False):
            if isinstance(answer, _UNREACHABLE):
                self._doubt(address)
        done = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not done:
            raise answers[0]
        return done[0]

    def _address_of(self, args: Sequence[Any]) -> Address:
        if args[0] in _KEYLESS:
            return self._masters[0]
        key = args[3] if args[0] in ("EVALSHA", "EVAL") else args[1]
        slot = key_slot(self._encode(key))
        address = self._slots[slot]
        if address is None:
            self.forget_layout()
            raise StoreUnavailable("Redis", f"has no node for hash slot {slot} now: its cluster is incomplete")
        return address

    def _node(self, address: Address) -> Redis:
        node = self.nodes.get(address)
        if node is None:
            node = self.nodes[address] = self._connect(address)
        return node

    def _doubt(self, address: Address) -> None:
        """Note that a node failed, or that whoever called it has given up: another one is asked for the layout."""
        self._failed.add(address)
        self._known = False

    def _redirected(self, text: str, asked: Address, *, moved: bool) -> Address:
        """Return where a redirection leads: "<slot> <host>:<port>", the host empty or ? where it is the one asked."""
        slot, _, place = text.partition(" ")
        host, _, port = place.rpartition(":")
        address = (host if host not in ("", "?") else asked[0], int(port))
        if moved:
            self._slots[int(slot)] = address
            self._failed.discard(address)
            self._known = False  # where one slot has gone, others have
        return address

    async def _know_layout(self) -> None:
        if self._known:
            return
        async with self._reading:
            if not self._known:
                await self._read_layout()

    async def _read_layout(self) -> None:
        """Ask one node after the other, those that failed last, until one tells the layout."""
        everyone = dict.fromkeys((*self._seeds, *self._masters, *self.nodes))
        asked = sorted(everyone, key=lambda address: address in self._failed)
        problems: list[Exception] = []
        for address in asked:
            try:
                async with asyncio.timeout(_LAYOUT_SECONDS):
                    ranges = await self._node(address).execute_command(  # type: ignore[no-untyped-call]
                        "CLUSTER", "SLOTS"
                    )
            except redis_errors.NoPermissionError:
                raise
            except redis_errors.ResponseError as error:
                if "cluster support disabled" in str(error):
                    raise StoreRefused(
                        f"REDIS_URL has the scheme of a Redis Cluster, but {address[0]}:{address[1]} is a single"
                        " Redis; use redis:// (rediss:// with TLS)"
                    ) from None
                problems.append(error)
            except TimeoutError:
                problems.append(redis_errors.TimeoutError(f"no answer within {_LAYOUT_SECONDS:g} s"))
            except _UNREACHABLE as error:
                problems.append(error)
            else:
                if ranges:
                    await self._take_layout(ranges, address)
                    return
                problems.append(redis_errors.ConnectionError("it serves no hash slots"))
            self._failed.add(address)
        for problem in problems:
            # Says more than that a node is away; and whoever waits for the cluster has to change it.
            if isinstance(problem, redis_errors.AuthenticationError):
                raise problem
        raise redis_errors.ConnectionError(f"none of the cluster's nodes answers ({len(asked)} asked): {problems[0]}")

    async def _take_layout(self, ranges: Sequence[Any], asked: Address) -> None:
        """Take what CLUSTER SLOTS said: [first, last, [host, port, ...] of the master, then of each replica]."""
        slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        masters: dict[Address, None] = {}
        everyone: set[Address] = set()
        for first, last, *nodes in ranges:
            addresses = [_address(node, asked) for node in nodes]
            slots[first : last + 1] = [addresses[0]] * (last + 1 - first)
            masters[addresses[0]] = None
            everyone.update(addresses)
        self._slots, self._masters = slots, tuple(masters)
        self._known = True
        self._failed.clear()
        for address in [address for address in self.nodes if address not in everyone and address not in self._seeds]:
            # Not here: a node that is gone may take its time, and every call waits for the layout.
            closing = asyncio.create_task(_close(self.nodes.pop(address)))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


class _ClusterPipeline(Pipeline):
    """Commands that are sent together, each to the node of its key."""

    def __init__(self, cluster: ClusterClient) -> None:
        super().__init__(cluster.connection_pool, cluster.response_callbacks, False, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send them; returns the answers in order.

        With `raise_on_error` False, errors are among the answers, also those of a connection: what went to other
        nodes was done.
        """
        commands, self.command_stack = self.command_stack, []
        answers = await self._cluster.execute_each(commands) if commands else []
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


async def _close(node: Redis) -> None:
    with suppress(redis_errors.RedisError, OSError):
        await node.aclose(close_connection_pool=True)


def _address(node: Sequence[Any], asked: Address) -> Address:
    host = node[0].decode() if isinstance(node[0], bytes) else str(node[0] or "")
    return (host if host not in ("", "?") else asked[0], int(node[1]))
