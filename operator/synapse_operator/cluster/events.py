"""Posts Events on a SynapseScale: hints for people who run `kubectl describe`, one for each transition.

The conditions are the record; an Event that cannot be posted is only logged. Names are made from the
content, so that a transition reported twice (a crash in between, a retry) is one Event.
"""

from __future__ import annotations

import logging
from datetime import datetime

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, ObjectMeta
from synapse_operator.cluster.client import Client, path
from synapse_operator.errors import ApiRefused, ApiUnavailable
from synapse_operator.plan import Event

_log = logging.getLogger(__name__)

_API_VERSION = "events.k8s.io/v1"
_SAME_SECONDS = 600
"""Two equal Events of one spec within such a stretch of the clock are one."""

_NAME_LENGTH = 253
_NOTE_LENGTH = 1024


async def post(client: Client, scale: ObjectMeta, event: Event, *, instance: str, now: datetime) -> None:
    """Post one Event about `scale`.

    Args:
        client: the API server.
        scale: what it is about.
        event: what happened; the note is cut to the 1024 characters that the API takes.
        instance: name of this process.
        now: the present time, UTC.
    """
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
        "reportingInstance": instance,
    }
    try:
        await client.request("POST", path(_API_VERSION, scale.namespace, "events"), body=body)
    except ApiRefused as error:
        if error.status != 409:
            _log.info("an Event on %s/%s was refused: %s", scale.namespace, scale.name, error)
    except ApiUnavailable as error:
        _log.info("an Event on %s/%s was lost: %s", scale.namespace, scale.name, error)
