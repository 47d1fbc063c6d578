"""Events become keys: which ones wake a scale, and which scale a child wakes."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import kopf
import pytest

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey
from synapse_operator.echo import Echo
from synapse_operator.handlers import (
    CHILD_DELAY_SECONDS,
    TENANT_DELAY_SECONDS,
    Inbox,
    child_event,
    config_map_event,
    owner,
    scale_event,
    tenant_event,
)
from synapse_operator.workqueue import WorkQueue

KEY = ScaleKey("ns", "main")
BOTH = [(KEY, 0.0), (TenantsKey(KEY), TENANT_DELAY_SECONDS)]


class Queue:
    """Notes what is added."""

    def __init__(self) -> None:
        self.added: list[tuple[Key, float]] = []
        self.edited: list[ScaleKey] = []
        self.disturbed: list[ScaleKey] = []

    def add(self, key: Key, delay: float = 0.0) -> None:
        self.added.append((key, delay))


async def _nothing() -> list[Any]:
    return []


@pytest.fixture
def queue() -> Queue:
    return Queue()


@pytest.fixture
def inbox(queue: Queue) -> Inbox:
    echo = Echo(_nothing, lambda version: None)
    return Inbox(cast("WorkQueue[Key]", queue), echo, queue.edited.append, queue.disturbed.append)


def hear(handler: Any, event: kopf.RawEvent, inbox: Inbox) -> None:
    """Call a handler with what it takes of all that kopf gives."""
    asyncio.run(handler(event=event, memo=inbox))


def tell(
    inbox: Inbox, type_: str | None, generation: int = 1, status: JsonObject | None = None, **metadata: object
) -> None:
    meta = {"namespace": "ns", "name": "main", "uid": "u", "generation": generation, **metadata}
    body = {"metadata": meta, **({"status": status} if status else {})}
    event = cast("kopf.RawEvent", {"type": type_, "object": body})
    hear(scale_event, event, inbox)


def test_a_scale_wakes_when_it_comes_changes_or_goes_and_not_for_its_status(inbox: Inbox, queue: Queue) -> None:
    tell(inbox, None)
    tell(inbox, "MODIFIED")
    assert queue.added == BOTH
    assert queue.disturbed == [KEY, KEY], "an annotation is seen by the next look"
    tell(inbox, "MODIFIED", 2)
    tell(inbox, "DELETED", 2)
    assert queue.added == BOTH * 3


def test_a_tenant_wakes_all_of_its_scale_when_it_comes_changes_or_goes(inbox: Inbox, queue: Queue) -> None:
    for type_, generation in ((None, 1), ("MODIFIED", 1), ("MODIFIED", 2), ("DELETED", 2)):
        meta = {"namespace": "ns", "name": "acme", "uid": "t", "generation": generation}
        body = {"metadata": meta, "spec": {"scaleRef": {"name": "main"}}}
        hear(tenant_event, cast("kopf.RawEvent", {"type": type_, "object": body}), inbox)
    assert queue.added == [(TenantsKey(KEY), TENANT_DELAY_SECONDS)] * 3


def test_a_scale_and_its_tenants_are_two_keys() -> None:
    assert len({KEY, TenantsKey(KEY)}) == 2


def test_a_new_value_of_the_sync_now_annotation_wakes_until_the_status_says_that_it_was_done(
    inbox: Inbox, queue: Queue
) -> None:
    asked = {naming.SYNC_NOW_ANNOTATION: "2"}
    tell(inbox, None)
    tell(inbox, "MODIFIED", annotations={"other": "x"})
    assert queue.added == BOTH
    tell(inbox, "MODIFIED", annotations=asked)
    tell(inbox, "MODIFIED", annotations=asked, status={"sync": {"syncNow": "1"}})
    assert queue.added == [*BOTH, (KEY, 0.0), (KEY, 0.0)]
    tell(inbox, "MODIFIED", annotations=asked, status={"sync": {"syncNow": "2"}})
    tell(inbox, "MODIFIED", annotations={naming.SYNC_NOW_ANNOTATION: ""}, status={"sync": {"syncNow": "2"}})
    assert queue.added == [*BOTH, (KEY, 0.0), (KEY, 0.0)]


def test_a_config_map_of_definitions_wakes_the_scale_of_its_label(inbox: Inbox, queue: Queue) -> None:
    def happens(type_: str | None, **labels: str) -> None:
        metadata = {"namespace": "ns", "name": "defs", "labels": labels}
        hear(config_map_event, cast("kopf.RawEvent", {"type": type_, "object": {"metadata": metadata}}), inbox)

    happens(None, **{naming.SYNC_LABEL: "main"})
    happens("MODIFIED", **{naming.SYNC_LABEL: ""})
    assert (queue.added, queue.edited) == ([], [])
    for type_ in ("ADDED", "MODIFIED", "DELETED"):
        happens(type_, **{naming.SYNC_LABEL: "main"})
    assert queue.added == [(KEY, CHILD_DELAY_SECONDS)] * 3
    assert queue.edited == [KEY] * 3
    ours = {**naming.child_labels("main"), naming.SYNC_LABEL: ""}
    happens("MODIFIED", **ours)
    assert (len(queue.added), len(queue.edited)) == (4, 3)


def test_a_child_wakes_its_scale_a_moment_later_but_not_at_the_first_listing(inbox: Inbox, queue: Queue) -> None:
    metadata = {"namespace": "ns", "name": "child", "labels": {naming.SCALE_LABEL: "main"}}
    for type_ in (None, "MODIFIED", "DELETED"):
        event = cast("kopf.RawEvent", {"type": type_, "object": {"metadata": metadata}})
        hear(child_event, event, inbox)
    assert queue.disturbed == [KEY], "what changed in a gap of the watch is seen by the next look"
    assert [key for key, _ in queue.added] == [KEY, KEY]
    assert all(delay > 0 for _, delay in queue.added)


def test_a_child_belongs_to_its_owner_and_else_to_the_scale_of_its_label() -> None:
    reference = {"apiVersion": naming.API_VERSION, "kind": naming.SCALE_KIND, "name": "a" * 100}
    labels = {naming.SCALE_LABEL: "shortened"}
    assert owner({"namespace": "ns", "ownerReferences": [reference], "labels": labels}).name == "a" * 100
    other = {**reference, "apiVersion": "elsewhere/v1"}
    assert owner({"namespace": "ns", "ownerReferences": [other], "labels": labels}).name == "shortened"
    assert owner({"namespace": "ns"}).name == ""


def test_each_kind_of_child_is_watched_and_nothing_but_events_is_handled() -> None:
    registry = kopf.get_default_registry()
    watched = {handler.id.split("/")[0] for handler in registry._watching.get_all_handlers()}
    assert watched == {"scale_event", "tenant_event", "child_event"}
    (config_maps,) = [each for each in registry._watching.get_all_handlers() if each.id == "child_event/configmaps"]
    assert config_maps.fn is config_map_event
    assert len(registry._watching.get_all_handlers()) == 2 + len(naming.WATCHED)
    assert registry._changing.get_all_handlers() == []
    assert registry._spawning.get_all_handlers() == []
