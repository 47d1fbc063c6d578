"""What the routes of one API process work with, and what each request is checked for before they do."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Request
from redis.asyncio import Redis

from synapse_worker.api import admission
from synapse_worker.api.admission import Limits, Refusal
from synapse_worker.api.auth import Caller
from synapse_worker.api.inline import Inline
from synapse_worker.api.looks import Looks
from synapse_worker.api.problems import Problem
from synapse_worker.api.sse import Streams
from synapse_worker.gate import StoreGate
from synapse_worker.queueing.client import Seen
from synapse_worker.queueing.producer import Producer
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.settings import Settings
from synapse_worker.store import api_keys, definitions, tenants, topology
from synapse_worker.store.api_keys import ApiKey
from synapse_worker.store.database import Database
from synapse_worker.telemetry import ApiMetrics

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_REMEMBERED_SECONDS = 1.0
"""How long a revoked key, a changed limit or a removed definition may still be gone by."""
_MOST_REMEMBERED = 10_000


class Remembered(Generic[K, V]):
    """What was read of a store within the last moment, so that a busy client costs one read a second."""

    def __init__(self) -> None:
        self._known: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        """Return what is known of a key, None when nothing is, or nothing any more."""
        until, value = self._known.get(key, (0.0, None))
        return value if monotonic() < until else None

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[key] = (monotonic() + _REMEMBERED_SECONDS, value)


@dataclass(slots=True)
class Context:
    """One per process. `settings` and `problem` change once: when the stores have been asked."""

    settings: Settings
    database: Database
    client: Redis
    gate: StoreGate
    producer: Producer
    quotas: Quotas
    streams: Streams
    inline: Inline
    metrics: ApiMetrics
    stopping: asyncio.Event
    runs: Looks
    sessions: Looks
    problem: str = "starting"
    """Why nothing is served yet or any more, "" while all is well."""
    _keys: Remembered[str, ApiKey] = field(default_factory=Remembered)
    _limits: Remembered[str, Limits] = field(default_factory=Remembered)
    _known: Remembered[tuple[str, str, tuple[str, ...] | None], bool] = field(default_factory=Remembered)

    async def key_of(self, token: str) -> ApiKey | None:
        """Return the key that a token belongs to."""
        token_hash = api_keys.hash_of(token)
        key = self._keys.get(token_hash)
        if key is None and (key := await api_keys.find(self.database, token)) is not None:
            self._keys.put(token_hash, key)
        return key

    async def knows(self, table: str, key: str, *, tenants: Sequence[str] | None) -> bool:
        """Return whether there is such a definition; one that is missing is looked for each time."""
        asked = (table, key, None if tenants is None else tuple(tenants))
        if self._known.get(asked):
            return True
        if not await definitions.exists(self.database, table, key, tenants=tenants):
            return False
        self._known.put(asked, True)
        return True

    async def limits_of(self, tenant_id: str) -> Limits:
        """Return what a tenant may use."""
        limits = self._limits.get(tenant_id)
        if limits is None:
            quota = await tenants.quota_of(self.database, tenant_id)
            limits = Limits(
                rate=self.settings.rate_limit if quota is None or quota.rate is None else quota.rate,
                queued=None if quota is None else quota.queued_runs,
                deleting=quota is not None and quota.deleting,
            )
            self._limits.put(tenant_id, limits)
        return limits


# Coroutines, although they wait for nothing: FastAPI has a thread call a plain function, twice for each request.


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ContextDep = Annotated[Context, Depends(_context)]
CallerDep = Annotated[Caller, Depends(_caller)]


def refuse(request: Request, refusal: Refusal | None) -> None:
    """Answer with a refusal, if there is one.

    Raises:
        Problem: there is.
    """
    if refusal is not None:
        request.state.refusal = refusal.reason.value
        raise Problem(refusal.status, refusal.sentence, refusal.headers)


def tenant_for(request: Request, context: Context, caller: Caller, asked: str | None) -> str:
    """Return the tenant of a request that may name one.

    Raises:
        Problem: 403, the key is bound to another one.
    """
    tenant = admission.tenant_of(asked, bound_to=caller.tenant_id, default=context.settings.default_tenant_id)
    if isinstance(tenant, Refusal):
        refuse(request, tenant)
        raise AssertionError("unreachable: a refusal is raised")
    return tenant


async def pass_rate(request: Request, context: Context, tenant_id: str) -> None:
    """Count a request of a tenant; its answer says what is left.

    Raises:
        Problem: 429, it is beyond the tenant's rate.
        StoreUnavailable, StoreRefused: nobody knows.
    """
    limits = await context.limits_of(tenant_id)
    rate = await context.quotas.request(tenant_id, limits.rate)
    request.state.headers = admission.rate_headers(rate)
    refuse(request, admission.over_rate(rate))


async def pass_unread(request: Request) -> None:
    """Count a request that cannot be read, unless a route has counted it before; whom it names is not known.

    Raises:
        Problem, StoreUnavailable, StoreRefused: as `pass_rate`.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is not None and not hasattr(request.state, "headers"):
        context = await _context(request)
        await pass_rate(request, context, tenant_for(request, context, caller, None))


def tenants_visible_to(context: Context, caller: Caller) -> list[str] | None:
    """Return whose definitions a caller may see and use: its tenant's and the default tenant's; None = everybody's."""
    return None if caller.tenant_id is None else [caller.tenant_id, context.settings.default_tenant_id]


@dataclass(frozen=True, slots=True)
class Mode:
    """How jobs are run now: in a queue for each tenant, or by the process that takes them in."""

    seen: Seen
    inline: bool

    @property
    def isolation(self) -> bool:
        """Whether each tenant has a queue."""
        return self.seen.topology.isolation


async def mode_of(context: Context) -> Mode:
    """Return what the topology's row says of it, else the environment."""
    row = await topology.read(context.database)
    if row is None:
        return Mode(Seen(0, context.settings.topology), inline=False)
    return Mode(Seen(row.epoch, row.topology), inline=not row.enabled)


async def passed(request: Request, context: ContextDep, caller: CallerDep) -> Caller:
    """Let a request pass that concerns no run and names no tenant."""
    await pass_rate(request, context, tenant_for(request, context, caller, None))
    return caller


async def unbound(request: Request, caller: Annotated[Caller, Depends(passed)]) -> Caller:
    """Let a request pass that concerns the whole installation.

    Raises:
        Problem: 403, the key is bound to a tenant.
    """
    if caller.tenant_id is not None:
        request.state.refusal = admission.Reason.OTHER_TENANT.value
        raise Problem(403, "this key is bound to a tenant; what concerns all of them needs a key that is not")
    return caller


PassedDep = Annotated[Caller, Depends(passed)]
UnboundDep = Annotated[Caller, Depends(unbound)]
