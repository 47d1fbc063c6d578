"""One queue's leases: the scripts of the scripts folder as typed calls.

A lease belongs to a token; every script checks it, so an owner that lost its lease can change nothing.
Time is Redis's own. When to claim, extend and give back is left to `loop`.

Stock arq workers are told of our jobs by arq's in-progress keys, and we of theirs. Those keys live in other hash slots
than their queue, so on a Redis Cluster, which no stock worker can use, we leave them alone, and a job's own keys are
removed after the script.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import NamedTuple

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ResponseError

from synapse_worker.connections import read_each, redis_errors_as_ours, refuses_several_slots
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.redis_cluster import ClusterClient

log = logging.getLogger(__name__)

_FRESH, _RETURNED = "1", "2"
"""Where a candidate of a claim waits: in the queue, or where jobs go that were claimed before."""

_PAGE = 100
_AHEAD = 100
_AHEAD_SECONDS = 0.05
"""So many more ids are read than are wanted, and so long they may be claimed without another look."""
_SHARED_SECONDS = 1.0
"""How long nothing is read ahead where another worker has claimed what was."""
_MAX_PAGES = 50
"""Pages of due ids that one claim may pass over because stock workers run them: 5,000 jobs."""


class Lease(NamedTuple):
    """A claimed job: `score` is its original due time in ms, `expires` the local monotonic time of its end (s).

    `payload`, None where Redis has none, and `cancelled`, whether its cancel key was set, are as of the claim.
    """

    queue_key: str
    job_id: str
    token: str
    score: float
    expires: float
    payload: bytes | None = None
    cancelled: bool = False
    alone: bool = False
    """Taken while the process held nothing else, as a suspect; it claims nothing beside it."""


class HandBack(NamedTuple):
    """A lease to give back; `delay_ms` None keeps its place, else it is due that much later."""

    lease: Lease
    delay_ms: int | None
    suspect: bool = False
    """It has to wait for a worker that runs nothing else."""
    parked_for: str = ""
    """The tenant that runs as many as it may: the job waits, with its place kept, until that changes."""


class Release(NamedTuple):
    """A lease to end; `result` is arq's result value, b"" for none."""

    lease: Lease
    result: bytes


def load_script(client: Redis, name: str) -> AsyncScript:
    """Return the script `name` of the scripts folder, ready to be called on `client`."""
    return client.register_script(_script_text(name))


@cache
def _script_text(name: str) -> str:
    return (resources.files(__package__) / "scripts" / f"{name}.lua").read_text(encoding="ascii")


class LeaseQueue:
    """The calls on one queue. All raise `StoreUnavailable` or `StoreRefused`.

    With `arq_peers` False no stock arq worker may serve the queue, as on a Redis Cluster.
    """

    def __init__(
        self, client: Redis, queue_key: str, *, worker_id: str, lease_seconds: int, arq_peers: bool = True
    ) -> None:
        self._client = client
        self.queue_key = queue_key
        self._worker_id = worker_id
        self._lease_ms = lease_seconds * 1000
        self._again = keys.again(queue_key)
        self._leases = keys.leases(queue_key)
        self._claims = keys.claims(queue_key)
        self._arq_peers = arq_peers and not isinstance(client, ClusterClient)
        self._to_remove: list[Release] = []
        self._ahead: list[tuple[float, str, str]] = []
        self._ahead_until = 0.0
        self._shared_until = 0.0
        self._suspects = keys.suspects(queue_key)
        self._isolating = keys.isolating(queue_key)
        self._peek = load_script(client, "peek")
        self._claim = load_script(client, "claim")
        self._extend = load_script(client, "extend")
        self._release = load_script(client, "release")
        self._hand_back = load_script(client, "hand_back")
        self._park = load_script(client, "park")
        self._park_waiting = load_script(client, "park_waiting")
        self._isolate = load_script(client, "isolate")
        self.recovered = 0
        """Leases of dead owners that this process has returned to the queue."""
        self.suspects = 0
        """Suspects that waited when this process last looked."""
        self.drained = False
        """Whether the last claim found less than it wanted, and nothing was given back here since."""

    async def claim(self, want: int, now: float) -> list[Lease]:
        """Take up to `want` due jobs, oldest first.

        Args:
            want: how many, at least 1.
            now: local monotonic time (s) before the call; leases end `lease_seconds` after it.
        """
        taken: list[Lease] = []
        self.drained = True  # and not at the end: what is given back meanwhile is not seen
        try:
            with redis_errors_as_ours():
                await self._claim_into(taken, want, now)
        except (StoreUnavailable, StoreRefused):
            if not taken:  # else they are ours to give back
                raise
        if len(taken) >= want:
            self.drained = False
        return taken

    async def _claim_into(self, taken: list[Lease], want: int, now: float) -> None:
        ahead, self._ahead = self._ahead, []
        if ahead and now < self._ahead_until:
            self._ahead = await self._take_first(taken, ahead, want, now)
            if len(taken) >= want:
                return
            if len(taken) < len(ahead):
                self._shared_until = now + _SHARED_SECONDS
        offset = 0
        for _ in range(_MAX_PAGES):
            limit = _PAGE
            if offset == 0:
                limit = max(want - len(taken), 1) + (_AHEAD if now >= self._shared_until else 0)
            expired, self.suspects, again, fresh = await self._peek(
                keys=[self.queue_key, self._again, self._leases, self._claims, self._suspects],
                args=[limit, offset],
            )
            self.recovered += expired
            # Behind the first `limit` of them, one of the two places may hold older ones that were not read.
            candidates = sorted([*_pairs(again, _RETURNED), *_pairs(fresh, _FRESH)])[:limit]
            before = len(taken)
            left = await self._take_first(taken, candidates, want, now)
            if len(taken) >= want or len(fresh) // 2 < limit:
                self._ahead, self._ahead_until = left, now + _AHEAD_SECONDS
                break
            # Only ids that a stock worker runs are still where they were: pass over them.
            seen = sum(place == _FRESH for _, _, place in candidates)
            offset += max(0, seen - (len(taken) - before))

    async def _take_first(
        self, taken: list[Lease], candidates: list[tuple[float, str, str]], want: int, now: float
    ) -> list[tuple[float, str, str]]:
        """Take as many as are wanted still, the oldest first; returns the candidates behind them.

        Where some of the first are gone or a stock worker's, all others go in a second call, and none is left over,
        since how far that one came is not known.
        """
        missing = want - len(taken)
        first, others = candidates[:missing], candidates[missing:]
        if first:
            taken += await self._take(first, missing, now, self._again)
        if not others or len(taken) >= want:
            return others
        taken += await self._take(others, want - len(taken), now, self._again)
        return []

    async def claim_suspect(self, now: float) -> list[Lease]:
        """Take the oldest suspect, if there is one; only for a process that holds nothing.

        Args:
            now: as for `claim`.
        """
        with redis_errors_as_ours():
            first = await self._client.zrange(self._suspects, 0, 0, withscores=True)
            candidates = [(score, _text(job_id), _RETURNED) for job_id, score in first]
            taken = await self._take(candidates, 1, now, self._suspects) if candidates else []
            await self._client.zrem(self._isolating, self._worker_id)
        self.suspects = max(0, self.suspects - 1)
        return [lease._replace(alone=True) for lease in taken]

    async def shall_isolate(self, seconds: float) -> bool:
        """Whether this worker shall claim nothing for the next `seconds`, to get empty for a suspect.

        As many workers are told so as suspects wait, so the others go on.
        """
        with redis_errors_as_ours():
            return bool(
                await self._isolate(keys=[self._suspects, self._isolating], args=[self._worker_id, int(seconds * 1000)])
            )

    async def extend(self, leases: Sequence[Lease]) -> set[str]:
        """Prolong leases; returns the ids of those that are lost."""
        arguments: list[str | int] = [self._lease_ms]
        for lease in leases:
            arguments += [lease.job_id, lease.token]
        with redis_errors_as_ours():
            in_progress = [keys.in_progress(lease.job_id) for lease in leases]
            return _texts(await self._call(self._extend, [self._leases, self._claims], in_progress, arguments))

    async def release(self, releases: Sequence[Release]) -> set[str]:
        """End leases and delete their jobs; returns the ids that were not ours any more."""
        names: list[str] = []
        arguments: list[str | int | bytes] = [keys.RESULT_TTL_MS]
        for release in releases:
            job_id = release.lease.job_id
            names += [keys.job(job_id), keys.retry(job_id), keys.in_progress(job_id), keys.result(job_id)]
            arguments += [job_id, release.lease.token, release.result]
        with redis_errors_as_ours():
            lost = _texts(await self._call(self._release, [self._leases, self._claims], names, arguments))
            if not self._arq_peers:
                self._to_remove += [release for release in releases if release.lease.job_id not in lost]
                await self._remove_jobs()
        return lost

    async def hand_back(self, items: Sequence[HandBack]) -> set[str]:
        """Give leases back to the queue; returns the ids that were not ours any more."""
        groups: dict[tuple[str, str], list[HandBack]] = defaultdict(list)
        for item in items:
            groups[self._suspects if item.suspect else self._again, item.parked_for].append(item)
        lost: set[str] = set()
        for (place, tenant), group in groups.items():
            lost |= await (self._park_for(tenant, group) if tenant else self._give_to(place, group))
        return lost

    async def _park_for(self, tenant: str, items: Sequence[HandBack]) -> set[str]:
        arguments: list[str | int | bytes] = [tenant]
        for item in items:
            arguments += [item.lease.job_id, item.lease.token]
        with redis_errors_as_ours():
            lost = await self._call(
                self._park,
                [keys.parked_of(self.queue_key, tenant), keys.parked(self.queue_key), self._leases, self._claims],
                [keys.in_progress(item.lease.job_id) for item in items],
                arguments,
            )
        return _texts(lost)

    async def park_waiting(self, tenant: str, job_ids: Sequence[str]) -> int:
        """Park jobs straight from the queue, where nobody has leased them; returns how many."""
        names = [self.queue_key, keys.parked_of(self.queue_key, tenant), keys.parked(self.queue_key)]
        with redis_errors_as_ours():
            moved = await self._call(
                self._park_waiting, names, [keys.in_progress(job_id) for job_id in job_ids], [tenant, *job_ids]
            )
        return len(moved)

    async def _give_to(self, place: str, items: Sequence[HandBack]) -> set[str]:
        arguments: list[str | int | bytes] = []
        for item in items:
            arguments += [item.lease.job_id, item.lease.token, "" if item.delay_ms is None else item.delay_ms]
        with redis_errors_as_ours():
            in_progress = [keys.in_progress(item.lease.job_id) for item in items]
            lost = await self._call(self._hand_back, [place, self._leases, self._claims], in_progress, arguments)
        self.drained = False
        return _texts(lost)

    async def _call(
        self, script: AsyncScript, names: Sequence[str], of_jobs: Sequence[str], arguments: Sequence[str | int | bytes]
    ) -> list[bytes]:
        """Call a script with the queue's keys and, where that can be, those of its jobs."""
        if self._arq_peers:
            try:
                return list(await script(keys=[*names, *of_jobs], args=arguments))
            except ResponseError as error:
                if not refuses_several_slots(error):
                    raise
                self._arq_peers = False
                log.warning(
                    "NoArqPeers: Redis is clustered behind its endpoint; no stock arq worker may serve %s beside ours",
                    self.queue_key,
                )
        return list(await script(keys=names, args=arguments))

    async def _remove_jobs(self) -> None:
        """Do what a release's script does where it may touch the jobs' keys; what fails is left to the next call."""
        pipeline = self._client.pipeline(transaction=False)
        for release in self._to_remove:
            job_id = release.lease.job_id
            pipeline.delete(keys.job(job_id))
            pipeline.delete(keys.retry(job_id))
            if release.result:
                pipeline.set(keys.result(job_id), release.result, px=keys.RESULT_TTL_MS)
        await pipeline.execute()
        self._to_remove = []

    async def _take(
        self, candidates: list[tuple[float, str, str]], want: int, now: float, returned_to: str
    ) -> list[Lease]:
        token = secrets.token_hex(8)  # of one claim: no job is in it twice
        places = "".join(place for _, _, place in candidates)
        ids = [job_id for _, job_id, _ in candidates]
        arguments: list[str | int] = [want, self._lease_ms, self._worker_id, token, places, *ids]
        of_jobs = [*map(keys.in_progress, ids), *map(keys.job, ids), *map(keys.cancel, ids)]
        answer = await self._call(
            self._claim, [self.queue_key, returned_to, self._leases, self._claims], of_jobs, arguments
        )
        expires, values = now + self._lease_ms / 1000, iter(answer)
        taken = [
            Lease(self.queue_key, _text(job_id), token, float(score), expires, payload, cancel is not None)
            for job_id, score, payload, cancel in zip(values, values, values, values, strict=True)
        ]
        return taken if self._arq_peers else await self._read(taken)

    async def _read(self, taken: Sequence[Lease]) -> list[Lease]:
        """Read what the script could not; leases of which nothing is known are given back."""
        names = [name for lease in taken for name in (keys.job(lease.job_id), keys.cancel(lease.job_id))]
        try:
            found = iter(await read_each(self._client, names) if names else ())
        except (StoreUnavailable, StoreRefused):
            with suppress(StoreUnavailable, StoreRefused):  # they expire
                await self.hand_back([HandBack(lease, None) for lease in taken])
            raise
        return [
            lease._replace(payload=payload, cancelled=cancel is not None)
            for lease, payload, cancel in zip(taken, found, found, strict=True)
        ]


def _pairs(flat: Sequence[bytes], place: str) -> list[tuple[float, str, str]]:
    return [(float(flat[i + 1]), _text(flat[i]), place) for i in range(0, len(flat), 2)]


def _text(job_id: bytes) -> str:
    """An id as text; the client writes it back as the bytes that it was, whatever they are."""
    return job_id.decode(errors="surrogateescape")


def _texts(values: Iterable[bytes]) -> set[str]:
    return {_text(value) for value in values}
