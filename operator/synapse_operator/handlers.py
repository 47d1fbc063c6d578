"""What the watch brings becomes keys in the work queue; nothing else happens here.

Only `kopf.on.event`: kopf's change handlers, timers and daemons would put finalizers and annotations on
every object, and a namespace could then not be deleted while the operator is down. `watch` configures kopf
and sends the label selectors to the server; `reconcile` finds out what there is to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import kopf

from synapse_operator import naming
from synapse_operator.api.common import ObjectMeta
from synapse_operator.api.scale import sync_asked
from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey, scale_of
from synapse_operator.echo import Echo
from synapse_operator.naming import WATCHED, Kind
from synapse_operator.workqueue import WorkQueue

CHILD_DELAY_SECONDS = 0.2
"""A rollout, or somebody who applies a folder, brings many events within a moment; one look answers them all."""

TENANT_DELAY_SECONDS = 0.5
"""A thousand tenants come within seconds; one look at all of them answers for those that came meanwhile."""


@dataclass(frozen=True, slots=True)
class Inbox:
    """Where the handlers put what they hear; kopf hands it to them as `memo`.

    Attributes:
        edited: is told whose definitions were edited.
        disturbed: is told each scale that was written or listed with its children, also where nobody is woken.
    """

    queue: WorkQueue[Key]
    echo: Echo
    edited: Callable[[ScaleKey], None]
    disturbed: Callable[[ScaleKey], None]


@kopf.on.event(naming.GROUP, naming.VERSION, naming.SCALE_PLURAL)
async def scale_event(event: kopf.RawEvent, memo: Inbox, **_: object) -> None:
    """Wake the scale when it came, went, got another spec or is to sync; our own status writes wake nobody."""
    metadata = ObjectMeta.model_validate(event["object"]["metadata"])
    key = ScaleKey(metadata.namespace, metadata.name)
    status = event["object"].get("status") or {}
    memo.disturbed(key)  # an annotation is no news, but its next look must see it
    if _is_news(event, memo):
        memo.queue.add(key)
        memo.queue.add(TenantsKey(key), TENANT_DELAY_SECONDS)
    elif sync_asked(metadata, status):
        memo.queue.add(key)


@kopf.on.event(naming.GROUP, naming.VERSION, naming.TENANT_PLURAL)
async def tenant_event(event: kopf.RawEvent, memo: Inbox, **_: object) -> None:
    """Wake all tenants of the scale when one came, went or got another spec."""
    if _is_news(event, memo):
        memo.queue.add(TenantsKey(scale_of(dict(event["object"]))), TENANT_DELAY_SECONDS)


def _is_news(event: kopf.RawEvent, memo: Inbox) -> bool:
    metadata = ObjectMeta.model_validate(event["object"]["metadata"])
    if event["type"] == "DELETED":
        memo.echo.heard_gone(metadata.uid)
        return True
    return memo.echo.heard(metadata.uid, metadata.generation)


async def child_event(event: kopf.RawEvent, memo: Inbox, **_: object) -> None:
    """Wake the scale that a changed or deleted child belongs to."""
    key = owner(event["object"]["metadata"])
    if event["type"] is None:
        # The first listing says nothing new: each scale is looked at anyway. A later one follows a gap in the watch,
        # and its objects may have changed in that.
        memo.disturbed(key)
    else:
        memo.queue.add(key, CHILD_DELAY_SECONDS)


async def config_map_event(event: kopf.RawEvent, memo: Inbox, **_: object) -> None:
    """Have the scale synced that a user's ConfigMap names in its label; treat one of ours as a child."""
    metadata = event["object"]["metadata"]
    labels = metadata.get("labels") or {}
    if labels.get(naming.MANAGED_BY_LABEL) == naming.FIELD_MANAGER:
        await child_event(event, memo)
    elif event["type"] is not None and labels.get(naming.SYNC_LABEL):
        key = ScaleKey(str(metadata["namespace"]), str(labels[naming.SYNC_LABEL]))
        memo.edited(key)
        memo.queue.add(key, CHILD_DELAY_SECONDS)


for _kind in WATCHED:
    kopf.on.event(_kind.group, _kind.version, _kind.plural, id=f"child_event/{_kind.plural}")(
        config_map_event if _kind is Kind.CONFIG_MAP else child_event
    )


def owner(metadata: Mapping[str, object]) -> ScaleKey:
    """Return the scale of a child: its owner, or, where somebody removed that, what its label says."""
    owners = metadata.get("ownerReferences")
    names = [
        str(each["name"])
        for each in (owners if isinstance(owners, list) else ())
        if each["kind"] == naming.SCALE_KIND and str(each["apiVersion"]).startswith(f"{naming.GROUP}/")
    ]
    labels = metadata.get("labels")
    label = labels.get(naming.SCALE_LABEL, "") if isinstance(labels, Mapping) else ""
    return ScaleKey(str(metadata["namespace"]), names[0] if names else str(label))
