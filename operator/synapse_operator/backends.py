"""The operator's own view of each scale's Redis and PostgreSQL; the only store IO of this package.

What is asked and how lives in `synapse_worker` (no key name or statement exists twice); here are the
connections: one small lazy set per scale, closed when the scale goes or a URL changes, and a deadline on
every question, so that a store that is dead or hangs costs its own scale a few seconds and nobody else
anything. Failures are values for `status`, never exceptions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator.api.scale import RUN_DAYS
from synapse_operator.desired.shards import Flip
from synapse_operator.observed import (
    Found,
    NotTried,
    Overview,
    PostgresAnswers,
    PostgresState,
    QueueFigures,
    RedisAnswers,
    RedisState,
    SecretLookup,
    TopologyRecord,
    Unknown,
    Unreachable,
    Unusable,
)
from synapse_operator.tenant_drains import Remains
from synapse_operator.tenants import NotMigrated, TenantStore
from synapse_worker.connections import RedisFacts, open_database, open_redis, ping_redis
from synapse_worker.contract import VARIABLES, Kind, Variable
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import jobs_held, queue_figures, queues_with
from synapse_worker.queueing.emptiness import holding, none_exists
from synapse_worker.queueing.owner import disown, own
from synapse_worker.store import managed_keys, topology
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import stored_settings
from synapse_worker.store.managed_keys import ManagedKey
from synapse_worker.store.overview import Overview as Totals
from synapse_worker.store.overview import overview, pulse, work_due
from synapse_worker.store.schema_version import is_migrated
from synapse_worker.store.tenants import ManagedRow, RowChanges, bring_to, standing

_log = logging.getLogger(__name__)

CALL_SECONDS = 3.0
"""Longest wait for one answer of a store; below the workers' own, since a reconcile waits for it."""

QUESTION_SECONDS = 4.0
"""Longest wait for all that one reconcile asks of one store, name resolution and connecting included."""

_STORED = {variable.stored: variable for variable in VARIABLES if variable.stored is not None}

_NO_URL = "there is no URL to ask with"


@dataclass(frozen=True, slots=True)
class Stores:
    """How the two stores of a scale are reached; equal values share connections.

    `namespace` is the scale's own: a host name without a dot is a Service there, as its pods see it.
    """

    namespace: str
    redis_url: SecretLookup
    postgres_url: SecretLookup
    redis_ca: SecretLookup | None
    postgres_ca: SecretLookup | None
    pgbouncer: bool


@dataclass(frozen=True, slots=True)
class View:
    """What the stores said; fields as in `observed.Observed`."""

    redis: RedisState
    queues: Mapping[str, QueueFigures] | Unknown
    redis_owner: str | Unknown
    postgres: PostgresState
    overview: Overview | Unknown
    stored: Mapping[str, int | str | SecretStr] | Unknown
    topology: TopologyRecord | Unknown | None
    behind: tuple[str, ...] | Unknown


@dataclass(frozen=True, slots=True)
class TenantsView:
    """How the tenants of a scale stand in its stores.

    Attributes:
        exclusive: whether Redis and PostgreSQL are known to be this scale's alone.
        store: what PostgreSQL says, once the rows are as wanted.
        changes: the rows that were written.
    """

    exclusive: bool
    store: TenantStore
    changes: RowChanges


class Backends:
    """Connections to the stores of all scales; a scale is whatever its caller knows it by."""

    def __init__(self) -> None:
        self._open: dict[Hashable, _Connections] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def look(self, scale: Hashable, uid: str, stores: Stores, *, run_days: int | None = None) -> View:
        """Ask both stores at the same time, and mark Redis as the scale's; returns within `QUESTION_SECONDS`.

        Args:
            scale: whose stores they are.
            uid: its UID, which Redis is marked with unless another's mark is there.
            stores: its URLs; when they differ from the last time, the old connections are closed.
            run_days: how long it keeps ended runs; None = as stored, else as the image has it.
        """
        connections = self._open.get(scale)
        if connections is None or (connections.uid, connections.stores) != (uid, stores):
            self._close(scale)
            connections = self._open[scale] = _Connections(uid, stores)
        (redis, queues, owner), said = await asyncio.gather(
            _ask_redis(connections.redis, connections.queues, uid), _ask_postgres(connections.database, uid, run_days)
        )
        if said.tenants is not None and said.tenants != connections.tenants:
            connections.know(said.tenants)
        return View(
            redis=redis,
            queues=queues,
            redis_owner=owner,
            postgres=said.state,
            overview=said.overview,
            stored=said.stored,
            topology=said.topology,
            behind=said.behind,
        )

    async def is_still(self, scale: Hashable, seen: View, *, run_days: int | None) -> bool:
        """Return whether no queue holds a job and PostgreSQL has the figures of a look: one question to each.

        A tenant that was not known at the look may have a queue that the question left out, so nothing is still then.

        Args:
            scale: whose stores they are.
            seen: what a look said; one that found a job, or a store away, is never still.
            run_days: as for `look`.
        """
        connections = self._open.get(scale)
        if connections is None or isinstance(seen.stored, Unknown) or isinstance(seen.overview, Unknown):
            return False
        client, database = connections.redis, connections.database
        if not isinstance(client, Redis) or not isinstance(database, Database) or isinstance(seen.topology, Unknown):
            return False
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                if not await none_exists(client, connections.holding):
                    return False
                said = await pulse(database, _run_days(run_days, seen.stored))
        except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError):
            return False  # a look finds out what it is
        epoch = 0 if seen.topology is None else seen.topology.epoch
        return (
            said is not None
            and said.tenants <= connections.tenants
            and (_figures(said.totals, work_due=said.work_due), said.epoch) == (seen.overview, epoch)
        )

    async def renew(self, scale: Hashable, uid: str, seen: View) -> bool:
        """Renew a scale's marks and return whether they, what Redis is like, and the stored settings are as at a look.

        Args:
            scale, uid: whose stores they are, after a `look`.
            seen: what the look said.
        """
        client, database = self._open[scale].redis, self._open[scale].database
        if not isinstance(client, Redis) or not isinstance(database, Database):
            return False
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                await topology.renew(database, uid)
                found = (_answers(await ping_redis(client)), await own(client, uid), await _stored(database))
                return found == (seen.redis, seen.redis_owner, seen.stored)
        except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError):
            return False

    async def flip(self, scale: Hashable, flip: Flip, owner_uid: str) -> str:
        """Change the row of the topology, unless somebody else has done so meanwhile: the next look tells.

        Args:
            scale: whose stores they are, after a `look`.
            flip: the change.
            owner_uid: UID of the scale, for the row.

        Returns:
            Why it could not be done, as a sentence; "" = it was done, or is out of date.
        """
        database = self._open[scale].database
        if not isinstance(database, Database):
            return database.sentence
        seen = flip.was
        was = None if seen is None else topology.TopologyRow(seen.epoch, seen.topology, seen.enabled, seen.owner_uid)
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                await topology.write(database, was, flip.topology, enabled=flip.enabled, owner_uid=owner_uid)
        except (TimeoutError, StoreUnavailable, StoreRefused) as error:
            return _failed("PostgreSQL", error).sentence
        return ""

    async def jobs_held(self, scale: Hashable, shards: Sequence[str]) -> Mapping[str, int] | Unknown:
        """Return how many jobs each worker holds in these queues, by worker id.

        Args:
            scale: whose stores they are, after a `look`.
            shards: the queues.
        """
        client = self._open[scale].redis
        if not isinstance(client, Redis):
            return Unknown(client.sentence)
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                return await jobs_held(client, [keys.queue(shard) for shard in shards])
        except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
            return Unknown(_failed("Redis", error).sentence)

    async def keep_tenants(
        self, scale: Hashable, uid: str, rows: Sequence[ManagedRow], living: Sequence[str]
    ) -> TenantsView | None:
        """Bring the rows of a scale's tenants to what is wanted and ask how they stand.

        Rows of tenants that are gone are taken only while both stores are marked as the scale's own, since to another
        scale the tenants of this one are gone too.

        Args:
            scale, uid: whose stores they are.
            rows: those that are wanted.
            living: UIDs that a row may be managed by; others are gone.

        Returns:
            None while the scale's stores are not known yet; the first `look` makes them known.
        """
        connections = self._open.get(scale)
        if connections is None or connections.uid != uid:
            return None
        exclusive = await _is_own(connections.redis, uid)
        return await _keep_rows(connections.database, uid, rows, living, exclusive=exclusive)

    async def keep_keys(self, scale: Hashable, uid: str, keys: Sequence[ManagedKey]) -> frozenset[str] | Unknown:
        """Bring a scale's API keys to what is wanted; returns the hashes of those that are somebody else's.

        Args:
            scale, uid: whose stores they are, after a `look`.
            keys: those that are wanted.
        """
        database = self._open[scale].database
        if not isinstance(database, Database):
            return Unknown(database.sentence)
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                if not await is_migrated(database):
                    return Unknown("the tables of this release are not there yet")
                row = await topology.read(database)
                exclusive = row is not None and row.owner_uid == uid
                return await managed_keys.bring_to(database, keys, managed_by=uid, exclusive=exclusive)
        except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
            return Unknown(_failed("PostgreSQL", error).sentence)

    async def remains(self, scale: Hashable, uid: str, tenant_ids: Sequence[str]) -> Mapping[str, Remains] | Unknown:
        """Return what is left of the work of tenants that have queues of their own.

        Args:
            scale, uid: whose stores they are.
            tenant_ids: the tenants.
        """
        connections = self._open.get(scale)
        if connections is None or connections.uid != uid:
            return Unknown("the stores are not known yet")
        client, database = connections.redis, connections.database
        if not isinstance(client, Redis):
            return Unknown(client.sentence)
        if not isinstance(database, Database):
            return Unknown(database.sentence)
        try:
            async with asyncio.timeout(QUESTION_SECONDS):
                if not await is_migrated(database):
                    return Unknown("the tables of this release are not there yet")
                # Runs first: a job that comes meanwhile has its row before its entry.
                stand = await standing(database, tenant_ids)
                queues = {tenant_id: keys.queue(tenant_id) for tenant_id in tenant_ids}
                figures = await queue_figures(client, list(queues.values()))
        except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
            return Unknown(str(error) or "a store does not answer in time")
        jobs = {tenant_id: figures[queue].queued + figures[queue].active for tenant_id, queue in queues.items()}
        return {tenant_id: Remains(stand[tenant_id], jobs[tenant_id]) for tenant_id in tenant_ids}

    def database(self, scale: Hashable) -> Database | None:
        """Return the PostgreSQL that `look` last asked for a scale; None = there is none to ask."""
        connections = self._open.get(scale)
        return connections.database if connections and isinstance(connections.database, Database) else None

    def forget(self, scale: Hashable) -> None:
        """Take our marks from the stores of a scale that is gone and close its connections, in the background."""
        self._close(scale, gone=True)

    async def close(self) -> None:
        """Close everything and wait for it; the marks stay for the next leader."""
        for scale in list(self._open):
            self._close(scale)
        await asyncio.gather(*self._closing)

    def _close(self, scale: Hashable, *, gone: bool = False) -> None:
        connections = self._open.pop(scale, None)
        if connections is not None:
            task = asyncio.create_task(connections.close(gone=gone))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class _Connections:
    """One client of each store, or what the status says instead."""

    def __init__(self, uid: str, stores: Stores) -> None:
        self.uid = uid
        self.stores = stores
        self.know(frozenset())  # until PostgreSQL says which tenants have queues too
        self.redis: Redis | Unusable | NotTried = NotTried(_NO_URL)
        self.database: Database | Unusable | NotTried = NotTried(_NO_URL)
        if isinstance(stores.redis_url, Found):
            try:
                url = seen_from_here(stores.redis_url.value, stores.namespace)
                self.redis = open_redis(url, ca_text=_text(stores.redis_ca), timeout=CALL_SECONDS)
            except ConfigurationError as error:
                self.redis = Unusable(str(error))
        if isinstance(stores.postgres_url, Found):
            try:
                url = seen_from_here(stores.postgres_url.value, stores.namespace)
                # One connection, since a hundred scales may share one server; a second while a sync has the first.
                self.database = open_database(
                    url,
                    pgbouncer=stores.pgbouncer,
                    pool_size=2,
                    ca_text=_text(stores.postgres_ca),
                    timeout=CALL_SECONDS,
                )
            except ConfigurationError as error:
                self.database = Unusable(str(error))

    def know(self, tenants: frozenset[str]) -> None:
        """Go by the queues that there are with these tenants from now on."""
        self.tenants = tenants
        self.queues = queues_with(sorted(tenants))
        self.holding = tuple(name for queue in self.queues for name in holding(queue))

    async def close(self, *, gone: bool) -> None:
        if isinstance(self.redis, Redis):
            if gone:
                await _quietly(disown(self.redis, self.uid))
            await _quietly(self.redis.aclose(close_connection_pool=True))
        if isinstance(self.database, Database):
            if gone:
                await _quietly(topology.disown(self.database, self.uid))
            await _quietly(self.database.close())


def _text(lookup: SecretLookup | None) -> str:
    """Return certificates; while they cannot be read, those of the system are asked with, and the status says why."""
    return lookup.value.get_secret_value() if isinstance(lookup, Found) else ""


def seen_from_here(url: SecretStr, namespace: str) -> SecretStr:
    """Return a store's URL with the host names (of a cluster: several) that lead there from the operator's namespace.

    A worker pod's resolver completes `redis` to a Service of its own namespace; ours would look in ours. Names with
    a dot (`redis.other`, fully qualified ones, addresses) mean the same everywhere.
    """
    text = url.get_secret_value()
    try:
        parts = urlsplit(text)
        user, at, places = parts.netloc.rpartition("@")
        there = ",".join(_seen_from_here(place.strip(), namespace) for place in places.split(","))
    except ValueError:
        return url  # open_redis and open_database say what is wrong with it
    return SecretStr(urlunsplit(parts._replace(netloc=f"{user}{at}{there}")))


def _seen_from_here(place: str, namespace: str) -> str:
    parts = urlsplit(f"//{place}")
    host, port = parts.hostname or "", parts.port
    if not host or host == "localhost" or "." in host or ":" in host:
        return place
    return f"{host}.{namespace}" + ("" if port is None else f":{port}")


async def _ask_redis(
    client: Redis | Unusable | NotTried, queue_keys: Sequence[str], uid: str
) -> tuple[RedisState, Mapping[str, QueueFigures] | Unknown, str | Unknown]:
    if not isinstance(client, Redis):
        unknown = Unknown(client.sentence)
        return client, unknown, unknown
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            facts = await ping_redis(client)
            figures = await queue_figures(client, queue_keys)
            owner = await _mark(client, uid)
    except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
        state = _failed("Redis", error)
        unknown = Unknown(state.sentence)
        return state, unknown, unknown
    queues = {
        keys.shard_of(queue_key): QueueFigures(figure.queued, figure.active, figure.oldest_seconds, figure.parked)
        for queue_key, figure in figures.items()
    }
    return _answers(facts), queues, owner


def _answers(facts: RedisFacts) -> RedisAnswers:
    return RedisAnswers(facts.version, facts.maxmemory_policy, facts.clustered, facts.masters)


async def _mark(client: Redis, uid: str) -> str | Unknown:
    """Mark a Redis that answers; one that takes no writes now (it is full, or fails over) is no unreachable one."""
    try:
        return await own(client, uid)
    except (StoreUnavailable, StoreRefused) as error:
        return Unknown(str(error))


async def _is_own(client: Redis | Unusable | NotTried, uid: str) -> bool:
    if not isinstance(client, Redis):
        return False
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            return await own(client, uid) == uid
    except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError):
        return False


async def _keep_rows(
    database: Database | Unusable | NotTried,
    uid: str,
    rows: Sequence[ManagedRow],
    living: Sequence[str],
    *,
    exclusive: bool,
) -> TenantsView:
    nothing = RowChanges(frozenset(), frozenset(), frozenset())
    if not isinstance(database, Database):
        return TenantsView(False, database, nothing)
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            if not await is_migrated(database):
                return TenantsView(False, NotMigrated(), nothing)
            row = await topology.read(database)
            exclusive = exclusive and row is not None and row.owner_uid == uid
            changes = await bring_to(database, rows, living=living, exclusive=exclusive)
            return TenantsView(exclusive, await standing(database, [row.tenant_id for row in rows]), changes)
    except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
        return TenantsView(False, _failed("PostgreSQL", error), nothing)


class _PostgresView(NamedTuple):
    """What PostgreSQL said; `tenants` are those that may have queues, None = not known."""

    state: PostgresState
    overview: Overview | Unknown
    stored: Mapping[str, int | str | SecretStr] | Unknown
    topology: TopologyRecord | Unknown | None
    behind: tuple[str, ...] | Unknown
    tenants: frozenset[str] | None


async def _ask_postgres(database: Database | Unusable | NotTried, uid: str, run_days: int | None) -> _PostgresView:
    if not isinstance(database, Database):
        unknown = Unknown(database.sentence)
        return _PostgresView(database, unknown, unknown, unknown, unknown, None)
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            totals = await overview(database)
            if totals is None:
                unknown = Unknown(
                    "the tables are those of an older release; the first worker that starts completes them"
                )
                return _PostgresView(PostgresAnswers(None), unknown, unknown, unknown, unknown, None)
            figures = _figures(totals)
            state = PostgresAnswers(totals.schema_version)
            if totals.schema_version is None:
                unknown = Unknown("the tables of this release are not there yet")
                return _PostgresView(state, figures, unknown, unknown, unknown, None)
            with suppress(StoreRefused):  # a database that takes no writes now can be asked all the same
                await topology.renew(database, uid)
            row = await topology.read(database)
            behind = await topology.producers_behind(database, 0 if row is None else row.epoch)
            known = frozenset(await topology.known_tenants(database))
            stored = await _stored(database)
            figures = replace(figures, work_due=await work_due(database, _run_days(run_days, stored)))
    except (TimeoutError, StoreUnavailable, StoreRefused, ConfigurationError) as error:
        failed = _failed("PostgreSQL", error)
        unknown = Unknown(failed.sentence)
        return _PostgresView(failed, unknown, unknown, unknown, unknown, None)
    record = (
        None if row is None else TopologyRecord(row.epoch, row.topology, row.enabled, row.owner_uid, row.owner_gone)
    )
    return _PostgresView(state, figures, stored, record, tuple(behind), known)


async def _stored(database: Database) -> dict[str, int | str | SecretStr]:
    """Return the stored settings, without keys of model providers: only what a worker's variables can be."""
    settings = await stored_settings(database)
    return {
        key: value for key, variable in _STORED.items() if (value := _plain(settings.get(key), variable)) is not None
    }


def _figures(totals: Totals, *, work_due: bool = False) -> Overview:
    return Overview(
        dead_letters=totals.dead_letters,
        slots=totals.slots,
        active_jobs=totals.active_jobs,
        open_jobs=totals.open_jobs,
        work_due=work_due,
    )


def _run_days(given: int | None, stored: Mapping[str, int | str | SecretStr]) -> int:
    """Return for how many days ended runs are kept."""
    kept = stored.get(RUN_DAYS.stored or "")
    return given or (kept if isinstance(kept, int) else int(RUN_DAYS.default or 0))


def _plain(value: object, variable: Variable) -> int | str | SecretStr | None:
    """Return a stored setting if it is of the kind that workers read; a secret does not show itself."""
    if variable.kind is Kind.INTEGER:
        return value if type(value) is int else None
    if not isinstance(value, str) or not value:
        return None
    return SecretStr(value) if variable.secret else value


def _failed(store: str, error: Exception) -> Unreachable | Unusable:
    """Waiting may repair what does not answer; what answered "no" somebody must change."""
    if isinstance(error, TimeoutError):
        return Unreachable(f"{store} does not answer within {QUESTION_SECONDS:.0f} s")
    return Unreachable(str(error)) if isinstance(error, StoreUnavailable) else Unusable(str(error))


async def _quietly(closing: Coroutine[Any, Any, None]) -> None:
    """Close with a deadline; a connection that cannot be closed properly is dropped."""
    try:
        async with asyncio.timeout(QUESTION_SECONDS):
            await closing
    except Exception as error:
        _log.info("a store's connection was dropped: %s", type(error).__name__)
