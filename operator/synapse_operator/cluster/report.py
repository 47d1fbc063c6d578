"""Tells the user: the status through its subresource, and Events for its transitions.

The conditions are the record, Events hints for people who run `kubectl describe`: one that cannot be posted
is only logged. What to say is decided in `status` and `plan`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from datetime import datetime

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.cluster.apply import APPLY_OPTIONS
from synapse_operator.cluster.client import APPLY_PATCH, Client, path
from synapse_operator.cluster.rate import Rate
from synapse_operator.errors import ApiNotFound, ApiRefused, ApiUnavailable
from synapse_operator.plan import Event
from synapse_operator.status import transition_events

_log = logging.getLogger(__name__)

_API_VERSION = "events.k8s.io/v1"
_SAME_SECONDS = 600
"""Two equal Events of one spec within such a stretch of the clock are one."""

TENANT_WRITES_PER_SECOND = 400.0
TENANT_WRITES_AT_ONCE = 8
"""Half of what the client sends at once, so that scales are not kept waiting."""

_NAME_LENGTH = 253
_NOTE_LENGTH = 1024


class Reporter:
    """Writes status and Events in the name of one process."""

    def __init__(self, client: Client, instance: str) -> None:
        """`instance` is the name of the process in Events."""
        self._client = client
        self._instance = instance

    async def report(
        self, scale: ObjectMeta, previous: JsonObject, status: JsonObject | None, done: Sequence[Event], now: datetime
    ) -> None:
        """Tell what was done and what became of the scale.

        Args:
            scale: the scale.
            previous: the stored status ({} = none).
            status: the status to write, None = the stored one still says it all.
            done: what was done to its children.
            now: the present time, UTC.

        Raises:
            ApiUnavailable, ApiRefused: the status could not be written.
        """
        # Events first: a crash in between repeats them under the same names, while a transition comes only once.
        # What was done to sixty-four Deployments is as many, so side by side; the transition is the last one.
        await asyncio.gather(*(self._post(scale, event, now) for event in done))
        for event in transition_events(previous, status) if status is not None else ():
            await self._post(scale, event, now)
        if status is not None:
            await write_status(self._client, naming.SCALE_KIND, naming.SCALE_PLURAL, scale, status)

    async def _post(self, scale: ObjectMeta, event: Event, now: datetime) -> None:
        """Post one Event; its name is made from its content, so that one told twice is one."""
        stretch = int(now.timestamp()) // _SAME_SECONDS
        digest = naming.content_hash([scale.uid, scale.generation, event.reason, event.message, stretch])
        body: JsonObject = {
            "apiVersion": _API_VERSION,
            "kind": "Event",
            "metadata": {
                "name": f"{scale.name[: _NAME_LENGTH - len(digest) - 1].rstrip('-.')}.{digest}",
                "namespace": scale.namespace,
            },
            "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": event.type,
            "reason": event.reason.value,
            "action": "Reconcile",
            "note": event.message[:_NOTE_LENGTH],
            "regarding": {
                "apiVersion": naming.API_VERSION,
                "kind": naming.SCALE_KIND,
                "namespace": scale.namespace,
                "name": scale.name,
                "uid": scale.uid,
            },
            "reportingController": f"{naming.GROUP}/{naming.FIELD_MANAGER}",
            "reportingInstance": self._instance,
        }
        try:
            await self._client.request("POST", path(_API_VERSION, scale.namespace, "events"), body=body)
        except ApiRefused as error:
            if error.status != 409:
                _log.info("an Event on %s/%s was refused: %s", scale.namespace, scale.name, error)
        except ApiUnavailable as error:
            _log.info("an Event on %s/%s was lost: %s", scale.namespace, scale.name, error)


class TenantReporter:
    """Writes the statuses of tenants, of which there may be thousands, under one rate for the whole process.

    No Events: a thousand tenants that become ready at once would be a thousand more writes, and the condition says it.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._rate = Rate(TENANT_WRITES_PER_SECOND)

    async def report(self, statuses: Iterable[tuple[ObjectMeta, JsonObject]]) -> None:
        """Write statuses, each whole; one that is refused keeps no other from being written.

        Raises:
            ApiRefused: of those that were refused, the first.
            ApiUnavailable: not all could be written.
        """
        left = iter(statuses)
        refused: list[ApiRefused] = []

        async def work() -> None:
            for metadata, status in left:
                await self._rate.turn()
                try:
                    await write_status(self._client, naming.TENANT_KIND, naming.TENANT_PLURAL, metadata, status)
                except ApiRefused as error:
                    refused.append(error)

        workers = [asyncio.create_task(work()) for _ in range(TENANT_WRITES_AT_ONCE)]
        try:
            await asyncio.gather(*workers)
        finally:
            for each in workers:
                each.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if refused:
            raise refused[0]


async def write_status(client: Client, kind: str, plural: str, metadata: ObjectMeta, status: JsonObject) -> None:
    """Write a whole status, unless the object is gone or another one of its name has come."""
    body: JsonObject = {
        "apiVersion": naming.API_VERSION,
        "kind": kind,
        # The UID is a precondition.
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": status,
    }
    target = path(naming.API_VERSION, metadata.namespace, plural, metadata.name, "status")
    try:
        await client.request("PATCH", target, query=APPLY_OPTIONS, body=body, content_type=APPLY_PATCH)
    except ApiNotFound:
        return
    except ApiRefused as error:
        if error.status != 409:
            raise
