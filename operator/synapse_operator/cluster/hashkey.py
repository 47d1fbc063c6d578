"""The installation's own random key, from which fingerprints of users' Secrets are made.

A fingerprint stands in an annotation that many may read; without a key that only the operator knows, a short
password could be found from it by trying. The key lives in a Secret in the operator's namespace, so that a
restart does not change all fingerprints and with them roll all pods.
"""

from __future__ import annotations

import base64
import secrets

from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.cluster.client import Client, path
from synapse_operator.errors import ApiNotFound, ApiRefused

SECRET_NAME = "synapse-operator-hash-key"  # noqa: S105  # the name of a Secret, not a secret
_KEY = "key"


async def provide(client: Client, namespace: str) -> SecretStr:
    """Return the key; the first leader of an installation makes it.

    Raises:
        ApiRefused, ApiUnavailable: it can be neither read nor made.
    """
    try:
        return _read(await client.request("GET", path("v1", namespace, "secrets", SECRET_NAME)))
    except ApiNotFound:
        pass
    made: JsonObject = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": SECRET_NAME,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": naming.FIELD_MANAGER, "app.kubernetes.io/part-of": "synapse"},
        },
        "type": "Opaque",
        "immutable": True,
        "data": {_KEY: base64.b64encode(secrets.token_bytes(32)).decode()},
    }
    try:
        return _read(await client.request("POST", path("v1", namespace, "secrets"), body=made))
    except ApiRefused as error:
        if error.status != 409:
            raise
        return _read(await client.request("GET", path("v1", namespace, "secrets", SECRET_NAME)))


def _read(secret: JsonObject) -> SecretStr:
    encoded = (secret.get("data") or {}).get(_KEY) or ""
    if not encoded:
        raise ApiRefused(
            404, "NotFound", f"Secret {SECRET_NAME} has no value; delete it, and the operator makes a new one"
        )
    return SecretStr(encoded)
