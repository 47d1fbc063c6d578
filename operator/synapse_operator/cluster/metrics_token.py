"""The token of a scale's metrics, where the operator makes it: a Secret that is written once and never again.

The value follows from the installation's key and the scale, so that a Secret that somebody deleted comes back with the
same token. A right to create is all that it takes; changing or listing Secrets would be a right over everybody's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject, SecretKeySelector
from synapse_operator.api.scale import SynapseScale
from synapse_operator.cluster.client import Client, path
from synapse_operator.cluster.observe import is_there
from synapse_operator.desired.manifest import child_metadata
from synapse_operator.errors import ApiNotFound, ApiRefused
from synapse_operator.observed import SecretLookup, Unknown, read_secret_key


async def provide(client: Client, scale: SynapseScale, hash_key: SecretStr) -> SecretLookup:
    """Return the token; the first reconcile of a scale makes it, unless the scale is paused.

    Args:
        hash_key: the installation's own key.

    Raises:
        ApiUnavailable: the API server did not answer.
    """
    namespace, name = scale.metadata.namespace, naming.metrics_token_secret_name(scale.metadata.name)
    selector = SecretKeySelector(name=name, key=naming.METRICS_TOKEN_KEY)
    try:
        found = await _read(client, namespace, name)
        if found is None and not scale.metadata.paused and await is_there(client, scale):
            found = await _make(client, scale, name, _token(scale.metadata.uid, hash_key))
    except ApiRefused as error:
        return Unknown(f"Secret {name} can be neither read nor made: {error}")
    owners = (found or {}).get("metadata", {}).get("ownerReferences") or ()
    if found is not None and scale.metadata.uid not in [owner["uid"] for owner in owners]:
        return Unknown(
            f"Secret {name} exists and does not belong to this SynapseScale; delete it, or name a Secret of yours in"
            " metricsTokenSecretRef"
        )
    return read_secret_key(found, selector, "a token, or delete it")


async def _read(client: Client, namespace: str, name: str) -> JsonObject | None:
    try:
        return await client.request("GET", path("v1", namespace, "secrets", name))
    except ApiNotFound:
        return None


async def _make(client: Client, scale: SynapseScale, name: str, token: str) -> JsonObject | None:
    made: JsonObject = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": child_metadata(scale, name),
        "type": "Opaque",
        "immutable": True,
        "data": {naming.METRICS_TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }
    try:
        return await client.request("POST", path("v1", scale.metadata.namespace, "secrets"), body=made)
    except ApiRefused as error:
        if error.status != 409:  # an operator that led until a moment ago has made it
            raise
        return await _read(client, scale.metadata.namespace, name)


def _token(uid: str, hash_key: SecretStr) -> str:
    return hmac.new(hash_key.get_secret_value().encode(), f"metrics-token/{uid}".encode(), hashlib.sha256).hexdigest()
