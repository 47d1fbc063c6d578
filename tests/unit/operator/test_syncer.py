"""When a sync begins, and what is told when one ends early; that it works: tests/controlplane/test_sync.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from synapse_operator import naming, syncer
from synapse_operator.api.common import JsonObject
from synapse_operator.api.scale import SynapseScale, TenancySpec
from synapse_operator.backends import Backends
from synapse_operator.cluster.client import Client
from synapse_operator.cluster.observe import ScaleKey
from synapse_operator.errors import ApiUnavailable
from synapse_operator.observed import PostgresAnswers, PostgresState, SyncOutcome, Unreachable
from synapse_operator.syncer import RETRY_SECONDS, Syncer
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.sync.store import SyncReport
from tests.builders import a_scale

KEY = ScaleKey("team-a", "demo")
ANSWERS = PostgresAnswers(schema_version=3)
RESYNC = 60.0


def syncing(*names: str, auto: bool = True, now: str = "") -> SynapseScale:
    sources = [{"configMapRef": {"name": name}} for name in names]
    annotations = {naming.SYNC_NOW_ANNOTATION: now} if now else {}
    return a_scale(spec={"sync": {"auto": auto, "sources": sources}}, annotations=annotations)


class Stage:
    """A Syncer whose reads and writes are stand-ins; `syncs` holds what each sync was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncs: list[dict[str, Any]] = []
        self.woken: list[float] = []
        self.version = "1"
        self.error: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        monkeypatch.setattr(syncer, "read_sources", self._read)
        monkeypatch.setattr(syncer, "sync", self._sync)
        monkeypatch.setattr(syncer.definitions, "count_there", self._count)
        backends = cast(Backends, type("Stores", (), {"database": staticmethod(lambda key: object())})())
        self.syncer = Syncer(
            cast(Client, None), backends, lambda key, delay: self.woken.append(delay), resync_seconds=RESYNC
        )

    async def _read(self, client: object, namespace: str, refs: list[object]) -> list[JsonObject]:
        await self.hold.wait()
        metadata = {"uid": "u", "resourceVersion": self.version}
        return [{"metadata": metadata, "data": {"a.yaml": "id: a"}} for _ in refs]

    async def _sync(self, database: object, texts: object, **told: Any) -> SyncReport:
        self.syncs.append(told)
        if self.error:
            raise self.error
        return SyncReport({"agents": 1}, 1, 0, ())

    async def _count(self, database: object, owner: str) -> int:
        return 1

    def look(
        self, scale: SynapseScale, postgres: PostgresState = ANSWERS, previous: JsonObject | None = None
    ) -> SyncOutcome | None:
        """What a reconcile does."""
        return self.syncer.look(KEY, scale, postgres, previous or {})

    async def settled(self, scale: SynapseScale, previous: JsonObject | None = None) -> SyncOutcome | None:
        """Look, let what was begun end, and look again without beginning anything."""
        self.look(scale, previous=previous)
        await asyncio.gather(*self.syncer._running.values())
        return self.look(scale, Unreachable("away"), previous)


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


async def test_a_sync_begins_when_it_is_due_and_only_where_postgres_answers(stage: Stage) -> None:
    scale = syncing("defs")
    for postgres in (Unreachable("away"), PostgresAnswers(None)):
        assert stage.look(scale, postgres) is None
        assert stage.syncer._running == {}
    outcome = await stage.settled(scale)
    assert outcome is not None
    assert (outcome.total, outcome.written, stage.woken) == (1, 1, [0.0])
    await stage.settled(scale)
    assert len(stage.syncs) == 1, "nothing is due"
    stage.syncer.edited(KEY)
    await stage.settled(scale)
    assert (len(stage.syncs), stage.woken) == (1, [0.0]), "the same objects are not read twice"
    stage.version = "2"
    stage.syncer.edited(KEY)
    await stage.settled(scale)
    assert len(stage.syncs) == 2
    await stage.settled(syncing("defs", "more"))
    assert len(stage.syncs) == 3


async def test_what_is_known_of_other_sources_is_not_told(stage: Stage) -> None:
    await stage.settled(syncing("defs"))
    assert stage.look(syncing("others"), Unreachable("away")) is None


async def test_another_default_tenant_is_another_sync(stage: Stage) -> None:
    scale = syncing("defs")
    await stage.settled(scale)
    acme = scale.model_copy(
        update={"spec": scale.spec.model_copy(update={"tenancy": TenancySpec(default_tenant_id="acme")})}
    )
    assert stage.look(acme, Unreachable("away")) is None
    await stage.settled(acme)
    assert [each["tenant_id"] for each in stage.syncs] == ["default", "acme"]


async def test_without_auto_only_a_new_value_of_the_annotation_syncs(stage: Stage) -> None:
    assert await stage.settled(syncing("defs", auto=False)) is None
    stage.syncer.edited(KEY)
    assert await stage.settled(syncing("defs", auto=False, now="1"), {"sync": {"syncNow": "1"}}) is None
    outcome = await stage.settled(syncing("defs", auto=False, now="2"), {"sync": {"syncNow": "1"}})
    assert outcome is not None
    assert outcome.asked == "2"
    assert [each["everything"] for each in stage.syncs] == [True]
    await stage.settled(syncing("defs", auto=False, now="2"), {"sync": {"syncNow": "1"}})
    assert len(stage.syncs) == 1, "the status is not written yet"


async def test_edits_during_a_sync_begin_another_one(stage: Stage) -> None:
    stage.hold.clear()
    stage.look(syncing("defs"))
    await asyncio.sleep(0)
    stage.syncer.edited(KEY)
    stage.look(syncing("defs"))
    assert len(stage.syncer._running) == 1
    stage.hold.set()
    stage.version = "2"
    await asyncio.gather(*stage.syncer._running.values())
    assert (len(stage.syncs), stage.woken) == (1, [0.0])
    stage.version = "3"
    await stage.settled(syncing("defs"))
    assert len(stage.syncs) == 2


async def test_what_is_asked_for_during_a_sync_without_news_is_not_forgotten(stage: Stage) -> None:
    await stage.settled(syncing("defs"))
    stage.syncer.edited(KEY)
    stage.hold.clear()
    stage.look(syncing("defs"))
    await asyncio.sleep(0)
    stage.woken.clear()
    stage.look(syncing("defs", now="1"))
    stage.hold.set()
    await asyncio.gather(*stage.syncer._running.values())
    assert (len(stage.syncs), stage.woken) == (1, [0.0])
    outcome = await stage.settled(syncing("defs", now="1"))
    assert outcome is not None
    assert outcome.asked == "1"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (StoreUnavailable("PostgreSQL", "cannot be reached"), "PostgreSQL cannot be reached"),
        (StoreRefused("PostgreSQL does not allow it"), "PostgreSQL does not allow it"),
        (ApiUnavailable("The API server is away."), "The API server is away."),
        (ValueError("hidden-word"), "An error of the operator's own; its log says more."),
        (TimeoutError(), "It took longer than 300 s."),
    ],
)
async def test_a_sync_that_ends_early_is_told_and_tried_again(
    stage: Stage, error: Exception, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    scale = syncing("defs", now="1")
    await stage.settled(scale)
    stage.woken.clear()
    stage.error = error
    stage.version = "2"
    stage.syncer.edited(KEY)
    failed = await stage.settled(scale)
    assert failed is not None
    assert (failed.failure, failed.total, failed.asked) == (sentence, 1, "1")
    assert stage.woken == [0.0, RETRY_SECONDS]
    assert "hidden-word" not in caplog.text
    stage.syncer.edited(KEY)
    assert await stage.settled(scale) is failed, "the same failure is no news"
    assert stage.woken == [0.0, RETRY_SECONDS, RETRY_SECONDS]
    stage.error = None
    stage.syncer.edited(KEY)
    repaired = await stage.settled(scale)
    assert repaired is not None
    assert repaired.failure == ""


async def test_a_failed_sync_now_is_asked_for_again(stage: Stage) -> None:
    stage.error = StoreRefused("no")
    failed = await stage.settled(syncing("defs", auto=False, now="1"))
    assert failed is not None
    assert failed.asked is None
    stage.error = None
    done = await stage.settled(syncing("defs", auto=False, now="1"))
    assert done is not None
    assert done.asked == "1"


async def test_the_last_source_is_taken_back_before_the_scale_is_forgotten(stage: Stage) -> None:
    await stage.settled(syncing("defs"))
    told = {"sync": {"totalSynced": 1}}
    await stage.settled(syncing(), told)
    assert len(stage.syncs) == 2
    assert stage.look(syncing(), previous=told) is not None
    assert stage.look(syncing()) is None
    assert stage.syncer._known == {}


@pytest.mark.parametrize("end", ["forget", "close"])
async def test_a_scale_that_goes_ends_its_sync(stage: Stage, end: str) -> None:
    stage.hold.clear()
    stage.look(syncing("defs"))
    await asyncio.sleep(0)
    (task,) = stage.syncer._running.values()
    ends: dict[str, Callable[[], Any]] = {"forget": lambda: stage.syncer.forget(KEY), "close": stage.syncer.close}
    answer = ends[end]()
    if answer is not None:
        await answer
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.syncer._running == {}
    assert stage.syncs == []
