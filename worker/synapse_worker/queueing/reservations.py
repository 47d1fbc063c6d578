"""How many runs of a tenant may go on at once, over all workers and queues: reservations, and parking what is over.

A claimed job of a limited tenant needs a reservation before anything is written for it. One that gets none is
parked, where it is in nobody's way, and comes back with its old place once the tenant has a free one. Reservations
expire by themselves, so a crashed worker's are not missed for long.

A busy worker hands the place of a job that has ended straight to the tenant's next one: the place is counted all the
time, and gets its job's name once a second. It does so only while the tenant has more places than it uses and nothing
of it is parked, so nobody is passed over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.errors import PayloadError, StoreRefused, StoreUnavailable, WrongKeyType
from synapse_worker.gate import StoreGate
from synapse_worker.queueing import keys
from synapse_worker.queueing.lease import load_script
from synapse_worker.queueing.payload import decode
from synapse_worker.queueing.served import Served
from synapse_worker.store.tenants import Tenant

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_TENANTS_SECONDS = 5.0
_PAGE = 500
_TENANTS_AT_ONCE = 20
_SPARE_SECONDS = 0.02
"""How long a place that has come free is kept for the tenant's next job before Redis is told."""
_NAMES_SECONDS = 1.0
"""How long a place may have the name of the job that had it before."""
_LAST_WORD_SECONDS = 1.0

ReadTenants = Callable[[], Awaitable[Mapping[str, Tenant]]]
"""Reads the tenants that have a row, by id."""


class Reservations:
    """The places that jobs of this process take up. Run `keep` as a task."""

    def __init__(
        self,
        client: Redis,
        gate: StoreGate,
        served: Served,
        read_tenants: ReadTenants,
        tenants: Mapping[str, Tenant],
        *,
        worker_id: str,
        lease_seconds: int,
        default_tenant: str,
    ) -> None:
        self._client = client
        self._gate = gate
        self._served = served
        self._read_tenants = read_tenants
        self._worker_id = worker_id
        self._lease_seconds = lease_seconds
        self._default_tenant = default_tenant
        self._reserve = load_script(client, "reserve")
        self._unpark = load_script(client, "unpark")
        self._tenants = tenants
        self._held: dict[str, set[str]] = defaultdict(set)
        self._spare: dict[str, dict[str, float]] = defaultdict(dict)
        """Tenant -> name of a free place that Redis still counts as ours -> since when (monotonic s), oldest first."""
        self._given: dict[str, set[str]] = defaultdict(set)
        """Tenant -> names of places to be given back at once."""
        self._names: dict[str, dict[str, str]] = defaultdict(dict)
        """Tenant -> job -> name of its place, where that is another one than the job's own."""
        self._started: dict[str, list[str]] = defaultdict(list)
        """Tenant -> jobs that have begun, where Redis may still count them as queued."""
        self._room: dict[str, int] = {}
        """Tenant -> places that nobody had when last asked."""
        self._something_changed = asyncio.Event()
        self._somebody_waits = asyncio.Event()
        """Perhaps, for a place that has come free."""
        self._names_places = asyncio.Lock()
        """Held while places get names or are given back: a name that is on its way cannot be taken back yet."""
        self._parked: dict[str, Mapping[str, int]] = {}
        """Queue -> tenant -> parked jobs, when last seen."""
        self._have_parked: frozenset[str] = frozenset()
        """The tenants that have some."""
        self._unreadable: set[str] = set()
        self._walks: dict[str, asyncio.Task[None]] = {}

    async def reserve(self, wanted: Iterable[tuple[str, str]]) -> set[str]:
        """Reserve places for (job id, tenant) pairs, oldest first; returns the ids of jobs that got none.

        Raises:
            StoreUnavailable, StoreRefused: nothing is known; whatever was reserved expires by itself.
        """
        by_tenant: dict[str, list[str]] = defaultdict(list)
        for job_id, tenant in wanted:
            if tenant not in self._tenants:
                continue
            spare = self._spare.get(tenant)
            if spare and self._may_hand_on(tenant):
                if spare.pop(job_id, None) is None:
                    self._names[tenant][job_id], _ = spare.popitem()
                self._started[tenant].append(job_id)
                self._something_changed.set()
            else:
                if spare:
                    spare.pop(job_id, None)
                if tenant in self._given:
                    self._given[tenant].discard(job_id)
                by_tenant[tenant].append(job_id)
        refused: set[str] = set()
        for _, answer in await self._reserve_all(by_tenant):
            refused |= answer
        return refused

    def _may_hand_on(self, tenant: str) -> bool:
        return self._room.get(tenant, 0) > 0 and tenant not in self._have_parked

    def hold(self, job_id: str, tenant: str) -> None:
        """Keep a reserved place until `free`; without this it expires."""
        if tenant in self._tenants:
            self._held[tenant].add(job_id)

    def free(self, job_id: str, tenant: str, *, ended: bool = False) -> None:
        """Give a place back, if the job has one.

        Args:
            ended: it never comes back, to any worker; its place may be handed on under its name.
        """
        held = self._held.get(tenant, set())
        names = self._names.get(tenant, {})
        place = names.pop(job_id, job_id)
        if not names:
            self._names.pop(tenant, None)
        if tenant in self._tenants:
            if job_id in held and (ended or place != job_id):
                self._spare[tenant][place] = time.monotonic()
            else:
                self._given[tenant].add(place)
            self._something_changed.set()
            if not self._may_hand_on(tenant):
                self._somebody_waits.set()
        held.discard(job_id)
        if not held:
            self._held.pop(tenant, None)  # tenants come and go, and users name them

    def park_backlog(self, queue_key: str, tenants: set[str]) -> None:
        """Park, in the background, what else waits in the queue for tenants that are full."""
        walk = self._walks.get(queue_key)
        if walk is None or walk.done():
            self._walks[queue_key] = asyncio.create_task(self._walk(queue_key, tenants))

    def weight(self, queue_key: str) -> int:
        """Return the weight of a queue: more than 1 for a queue of a tenant with a priority."""
        tenant = self._tenants.get(keys.shard_of(queue_key))
        return 1 if tenant is None else 1 + tenant.priority

    async def keep(self) -> None:
        """Prolong our reservations, give freed places on, look after parked jobs; for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat(self._lease_seconds / 3, self._prolong))
                group.create_task(self._repeat(_TENANTS_SECONDS, self._refresh))
                group.create_task(self._repeat(_TICK_SECONDS, self._tick))
                group.create_task(self._repeat(_NAMES_SECONDS, self._rename))
                group.create_task(self._give_on())
        finally:
            with suppress(StoreUnavailable, StoreRefused, TimeoutError):  # else they expire
                async with asyncio.timeout(_LAST_WORD_SECONDS):
                    await self._give_back(0.0)

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            if self._gate.is_open:
                try:
                    await work()
                except (StoreUnavailable, StoreRefused) as error:
                    self._gate.trip(error)
                except Exception:
                    log.exception("places of tenants met an unexpected error; they are looked after on")

    async def _refresh(self) -> None:
        self._tenants = await self._read_tenants()
        self._room = {tenant: room for tenant, room in self._room.items() if tenant in self._tenants}

    async def _prolong(self) -> None:
        await self._rename(prolong=True)

    async def _rename(self, *, prolong: bool = False) -> None:
        """Give places that were handed on their jobs' names, and, to `prolong`, all of ours a new deadline."""
        async with self._names_places:
            held = self._held if prolong else {}
            names, self._names = self._names, defaultdict(dict)
            jobs = {tenant: sorted({*names.get(tenant, ()), *held.get(tenant, ())}) for tenant in {*names, *held}}
            await self._reserve_all(jobs, {tenant: list(names[tenant].values()) for tenant in names})

    async def _give_on(self) -> None:
        """Tell Redis which places are free and which jobs have begun; let the next parked jobs have the places."""
        while True:
            await self._something_changed.wait()
            self._something_changed.clear()
            self._somebody_waits.clear()
            try:
                await self._give_back(_SPARE_SECONDS)
                await self._say_started()
            except (StoreUnavailable, StoreRefused) as error:
                self._gate.trip(error)  # what was not taken out expires
            except Exception:
                log.exception("freed places of tenants met an unexpected error; they are given on later")
            if self._spare:
                self._something_changed.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_SPARE_SECONDS):
                    await self._somebody_waits.wait()

    async def _give_back(self, kept_seconds: float) -> None:
        """Give back the places that are not handed on, or were free for so long without being."""
        async with self._names_places:
            given = self._take_back(time.monotonic() - kept_seconds)
            try:
                await self._reserve_all(dict.fromkeys(given, ()), given)
            except asyncio.CancelledError:
                for tenant, places in given.items():
                    self._given[tenant].update(places)  # for the last word
                raise
        for queue_key, parked in list(self._parked.items()):
            await self._unpark_some(queue_key, {tenant for tenant in given if parked.get(tenant)})

    def _take_back(self, before: float) -> dict[str, list[str]]:
        """Return, by tenant, what is to be given back, and forget it: places free since `before` among them."""
        given = {tenant: list(places) for tenant, places in self._given.items() if places}
        self._given.clear()
        for tenant, spare in list(self._spare.items()):
            keeps = self._may_hand_on(tenant)
            places = [place for place, since in spare.items() if since <= before or not keeps]
            for place in places:
                del spare[place]
            if not spare:
                del self._spare[tenant]
            if places:
                given[tenant] = given.get(tenant, []) + places
        return given

    async def _say_started(self) -> None:
        started, self._started = self._started, defaultdict(list)
        if started:
            pipeline = self._client.pipeline(transaction=False)
            for tenant, ids in started.items():
                pipeline.zrem(keys.queued(tenant), *ids)
            with redis_errors_as_ours():
                await pipeline.execute()

    async def _tick(self) -> None:
        names = self._served.keys
        parked: dict[str, Mapping[str, int]] = {}
        mine: list[str] = []
        for start in range(0, len(names), _PAGE):
            page = names[start : start + _PAGE]
            pipeline = self._client.pipeline(transaction=False)
            for queue_key in page:
                pipeline.set(keys.tick(queue_key), self._worker_id, nx=True, px=int(_TICK_SECONDS * 1000))
                pipeline.hgetall(keys.parked(queue_key))
            with redis_errors_as_ours():
                answers = await pipeline.execute(raise_on_error=False)
            for queue_key, first, counts in zip(page, answers[::2], answers[1::2], strict=True):
                try:
                    with redis_errors_as_ours():
                        for answer in (first, counts):
                            if isinstance(answer, Exception):
                                raise answer
                except WrongKeyType as error:
                    if queue_key not in self._unreadable:
                        log.error("what is parked of queue %s cannot be looked after: %s", queue_key, error)
                    self._unreadable.add(queue_key)
                    continue
                self._unreadable.discard(queue_key)
                parked[queue_key] = {tenant.decode(): int(count) for tenant, count in counts.items()}
                if first:
                    mine.append(queue_key)
        self._parked = parked
        self._have_parked = frozenset(tenant for counts in parked.values() for tenant, count in counts.items() if count)
        for queue_key in mine:
            await self._unpark_some(queue_key, set(parked[queue_key]))

    async def _unpark_some(self, queue_key: str, tenants: set[str]) -> None:
        """Reserve for the oldest parked jobs, and let those that got a place wait for a slot."""
        ordered = sorted(tenants)
        for start in range(0, len(ordered), _TENANTS_AT_ONCE):
            await asyncio.gather(
                *(self._unpark_of(queue_key, tenant) for tenant in ordered[start : start + _TENANTS_AT_ONCE])
            )

    async def _unpark_of(self, queue_key: str, tenant: str) -> None:
        limited = self._tenants.get(tenant)
        most = _PAGE if limited is None else limited.concurrent_runs
        name = keys.parked_of(queue_key, tenant)
        with redis_errors_as_ours():
            ids = [
                job_id.decode(errors="surrogateescape")
                for job_id in await self._client.zrange(name, 0, min(most, _PAGE) - 1)
            ]
            if not ids or most == 0:
                return
            if limited is not None:
                # Reserved from now on, so that not more come back than may run, whoever claims them.
                ((_, refused),) = await self._reserve_all({tenant: ids})
                ids = [job_id for job_id in ids if job_id not in refused]
            if ids:
                await self._unpark(keys=[name, keys.parked(queue_key), keys.again(queue_key)], args=[tenant, *ids])
                self._served[queue_key].drained = False

    async def _reserve_all(
        self, by_tenant: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]] = MappingProxyType({})
    ) -> list[tuple[str, set[str]]]:
        """Reserve for each tenant, after what is `given` back; returns (tenant, ids refused) pairs."""
        milliseconds = self._lease_seconds * 2 * 1000

        async def one(tenant: str, ids: Sequence[str]) -> tuple[str, set[str]]:
            limit = self._tenants[tenant].concurrent_runs if tenant in self._tenants else 0
            back = given.get(tenant, ())
            room, *refused = await self._reserve(
                keys=[keys.running(tenant), keys.queued(tenant)], args=[limit, milliseconds, len(back), *back, *ids]
            )
            self._room[tenant] = int(room)
            return tenant, {job_id.decode(errors="surrogateescape") for job_id in refused}

        with redis_errors_as_ours():
            return list(await asyncio.gather(*(one(tenant, ids) for tenant, ids in by_tenant.items())))

    async def _walk(self, queue_key: str, tenants: set[str]) -> None:
        """Go through the queue once, parking jobs of the tenants; one worker at a time does it for a queue."""
        name = keys.parking(queue_key)
        try:
            with redis_errors_as_ours():
                if not await self._client.set(name, self._worker_id, nx=True, px=10_000):
                    return
                passed, parked = 0, 0
                while True:
                    ids = [
                        job_id.decode(errors="surrogateescape")
                        for job_id in await self._client.zrange(queue_key, passed, passed + _PAGE - 1)
                    ]
                    moved = await self._park_page(queue_key, ids, tenants)
                    parked += moved
                    passed += len(ids) - moved
                    if len(ids) < _PAGE:
                        break
                    await self._client.pexpire(name, 10_000)
                await self._client.delete(name)
        except (StoreUnavailable, StoreRefused) as error:
            self._gate.trip(error)
            return
        if parked:
            log.info("%d waiting jobs are parked: their tenants run as many as they may", parked)

    async def _park_page(self, queue_key: str, ids: Sequence[str], tenants: set[str]) -> int:
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.getex(keys.job(job_id), px=keys.JOB_TTL_MS)  # it may be parked for days
        over: dict[str, list[str]] = defaultdict(list)
        for job_id, raw in zip(ids, await pipeline.execute(), strict=True):
            tenant = self._tenant_of(raw)
            if tenant in tenants:
                over[tenant].append(job_id)
        moved = 0
        for tenant, parked in over.items():
            moved += await self._served[queue_key].park_waiting(tenant, parked)
        return moved

    def _tenant_of(self, raw: bytes | None) -> str:
        """Return a job's tenant, "" where its payload does not say; a claim will find out why."""
        if raw is None:
            return ""
        try:
            tenant = decode(raw).arguments.get("tenant_id")
        except PayloadError:
            return ""
        return tenant if isinstance(tenant, str) and tenant else self._default_tenant
