"""Syncs definitions from ConfigMaps and Secrets into each scale's PostgreSQL, beside the reconciles.

A reconcile calls `look`: it is told what became of the last sync, and a sync that is due begins in a task of its own,
so a thousand definitions hold up neither their own scale nor another one. When a sync ends with news, the scale is
looked at again, and `status` tells. What the texts mean and how they are stored is `synapse_worker.sync`'s business;
`cluster.observe` reads the objects.

While nothing changes, a sync reads its sources and asks PostgreSQL one question. The outcome of the last one is only
remembered here: after a restart everything is synced anew, which writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale, SyncSource, sync_asked
from synapse_operator.backends import Backends
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import ScaleKey, read_sources
from synapse_operator.errors import OperatorError
from synapse_operator.naming import SCALE_KIND
from synapse_operator.observed import (
    PostgresAnswers,
    PostgresState,
    SourceKind,
    SourceRef,
    SyncOutcome,
    Unknown,
    read_source,
)
from synapse_worker.contract import BY_NAME
from synapse_worker.errors import SynapseError
from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from synapse_worker.sync.documents import Problem, Source
from synapse_worker.sync.store import sync

_log = logging.getLogger(__name__)

SLOTS = 2
"""Syncs at once; more wait, so that many large ones take neither all of the processor nor all of the memory."""

SYNC_SECONDS = 300.0
"""A sync that takes longer is given up; each of its calls has a deadline of its own far below."""

RETRY_SECONDS = 15.0
"""Wait after a sync that ended early."""

_DEFAULT_TENANT = BY_NAME["DEFAULT_TENANT_ID"].default or ""

_DUE_SHARE = 0.75
"""Share of the resync after which a sync is due: a reconcile that comes a little early must not skip its turn."""


class _Asked(NamedTuple):
    """What a spec asks for: sources, and the tenant of what names none."""

    sources: tuple[SyncSource, ...]
    tenant_id: str


@dataclass(frozen=True, slots=True)
class _Known:
    """The last sync of one scale.

    Attributes:
        asked: what it was to sync.
        versions: what it read, by UID and resourceVersion.
        rows: rows that were there behind it.
        due: time of the loop's clock at which the next one is due.
    """

    asked: _Asked
    outcome: SyncOutcome
    versions: tuple[str, ...] = ()
    rows: int = -1
    due: float = 0.0


class Syncer:
    """The syncs of all scales."""

    def __init__(
        self, client: Client, backends: Backends, wake: Callable[[ScaleKey, float], None], *, resync_seconds: float
    ) -> None:
        """`wake` has a scale looked at in so many seconds."""
        self._client = client
        self._backends = backends
        self._wake = wake
        self._every = resync_seconds * _DUE_SHARE
        self._known: dict[ScaleKey, _Known] = {}
        self._edited: set[ScaleKey] = set()
        self._running: dict[ScaleKey, asyncio.Task[None]] = {}
        self._late: set[ScaleKey] = set()
        """Scales that were due while a sync of theirs was under way: they are looked at again behind it."""
        self._slots = asyncio.Semaphore(SLOTS)

    def edited(self, key: ScaleKey) -> None:
        """Note that a ConfigMap of a scale's definitions was edited: its next `look` begins a sync."""
        self._edited.add(key)

    def look(
        self, key: ScaleKey, scale: SynapseScale, postgres: PostgresState, previous: JsonObject
    ) -> SyncOutcome | None:
        """Begin a sync if one is due and return what became of the last one.

        Args:
            key: the scale.
            scale: the same.
            postgres: what was just seen of its PostgreSQL; where it does not answer, nothing is begun.
            previous: the stored status.

        Returns:
            None when the present sources have not been synced by this process yet.
        """
        wanted = _Asked(scale.spec.sync.sources, scale.spec.tenancy.default_tenant_id or _DEFAULT_TENANT)
        known = self._known.get(key)
        if not wanted.sources and not previous.get("sync"):
            self.forget(key)
            return None
        done = known.outcome.asked if known else (previous.get("sync") or {}).get("syncNow")
        asked = sync_asked(scale.metadata, {"sync": {"syncNow": done}})
        due = asked is not None or (scale.spec.sync.auto and self._is_due(key, wanted))
        answers = isinstance(postgres, PostgresAnswers) and postgres.schema_version is not None
        database = self._backends.database(key)
        if due and key in self._running:
            self._late.add(key)
        elif due and answers and database is not None:
            self._edited.discard(key)
            task = asyncio.create_task(self._run(key, wanted, database, asked, done), name=f"sync of {key}")
            self._running[key] = task
        return known.outcome if known and known.asked == wanted else None

    def forget(self, key: ScaleKey) -> None:
        """Give up on a scale that is gone or has nothing to sync."""
        self._known.pop(key, None)
        self._edited.discard(key)
        self._late.discard(key)
        if task := self._running.pop(key, None):
            task.cancel()

    async def close(self) -> None:
        """End all syncs; each can be repeated from the start."""
        tasks = list(self._running.values())
        for key in [*self._running]:
            self.forget(key)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_due(self, key: ScaleKey, wanted: _Asked) -> bool:
        known = self._known.get(key)
        if known is None or known.asked != wanted or key in self._edited:
            return True
        return asyncio.get_running_loop().time() >= known.due

    async def _run(
        self,
        key: ScaleKey,
        wanted: _Asked,
        database: Database,
        asked: str | None,
        done: str | None,
    ) -> None:
        before = self._known.get(key)
        if before is not None and before.asked != wanted:
            before = None
        async with self._slots:
            try:
                async with asyncio.timeout(SYNC_SECONDS):
                    now = await self._sync(key, wanted, database, before, asked or done, everything=bool(asked))
            except TimeoutError:
                now = _failed(wanted, before, done, f"It took longer than {SYNC_SECONDS:.0f} s.")
            except (SynapseError, OperatorError) as error:
                now = _failed(wanted, before, done, str(error))
            except Exception as error:
                # Without its words: the driver quotes the values that it was given.
                places = "".join(traceback.format_tb(error.__traceback__))
                _log.error("the sync of %s failed with %s at\n%s", key, type(error).__name__, places)
                now = _failed(wanted, before, done, "An error of the operator's own; its log says more.")
        del self._running[key]
        if (
            before is not None
            and now.outcome.written == 0
            and replace(now.outcome, at=before.outcome.at) == replace(before.outcome, written=0)
        ):
            now = replace(now, outcome=before.outcome)  # no news
        wait = RETRY_SECONDS if now.outcome.failure else self._every
        self._known[key] = replace(now, due=asyncio.get_running_loop().time() + wait)
        if before is None or now.outcome is not before.outcome or key in self._late:
            self._late.discard(key)
            self._wake(key, 0.0)
        if now.outcome.failure:
            self._wake(key, RETRY_SECONDS)

    async def _sync(
        self,
        key: ScaleKey,
        wanted: _Asked,
        database: Database,
        before: _Known | None,
        asked: str | None,
        *,
        everything: bool,
    ) -> _Known:
        refs = [_ref(source) for source in wanted.sources]
        objects = await read_sources(self._client, key.namespace, refs)
        versions = tuple(_version(each) for each in objects)
        owner = f"{SCALE_KIND} {key.namespace}/{key.name}"
        unchanged = before is not None and before.versions == versions and _is_complete(before.outcome)
        if before and unchanged and not everything and await definitions.count_there(database, owner) == before.rows:
            return before
        texts: list[Source] = []
        unread: list[Problem] = []
        for ref, found in zip(refs, objects, strict=True):
            if found is None:
                sentence = "It does not exist in this namespace; create it, or take it out of spec.sync.sources."
                unread.append(Problem(str(ref), "", None, sentence))
            elif isinstance(found, Unknown):
                unread.append(Problem(str(ref), "", None, f"It cannot be read: {found.sentence}"))
            else:
                texts += read_source(ref, found)
        report = await sync(
            database,
            texts,
            tenant_id=wanted.tenant_id,
            owner=owner,
            unread=unread,
            everything=everything,
        )
        outcome = SyncOutcome(
            at=datetime.now(UTC),
            written=report.changed + report.retired,
            total=report.total_synced,
            problems=report.problems,
            not_found=any(each is None for each in objects),
            unreadable=any(isinstance(each, Unknown) for each in objects),
            failure="",
            asked=asked,
        )
        return _Known(wanted, outcome, versions, await definitions.count_there(database, owner))


def _failed(wanted: _Asked, before: _Known | None, done: str | None, sentence: str) -> _Known:
    """Return what is known when a sync ended early: the last figures, and why."""
    total, problems = (before.outcome.total, before.outcome.problems) if before else (0, ())
    return _Known(wanted, SyncOutcome(datetime.now(UTC), 0, total, problems, False, False, sentence, done))


def _is_complete(outcome: SyncOutcome) -> bool:
    return not outcome.problems and not outcome.failure


def _ref(source: SyncSource) -> SourceRef:
    if source.config_map_ref is not None:
        return SourceRef(SourceKind.CONFIG_MAP, source.config_map_ref.name)
    # The schema sees to it that one of the two is given.
    return SourceRef(SourceKind.SECRET, source.secret_ref.name if source.secret_ref else "")


def _version(found: JsonObject | Unknown | None) -> str:
    if isinstance(found, Unknown):
        return found.sentence
    return f"{found['metadata']['uid']}/{found['metadata']['resourceVersion']}" if found else ""
