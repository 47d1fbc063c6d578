"""API keys as users write them into a Secret, read into what the table of keys holds.

Pure. A token is never part of what is said about it; who stores the keys is `backends`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from synapse_operator.api.common import JsonObject
from synapse_worker.contract import TENANT_ID_MAX_LENGTH
from synapse_worker.store.api_keys import hash_of
from synapse_worker.store.managed_keys import ManagedKey

_TOKEN = re.compile(r"[!-~]{1,1024}")
_ACCEPTED = 'accepted: {"token": "..", "tenantId": ".."}, tenantId optional'


@dataclass(frozen=True, slots=True)
class KeyEntries:
    """The entries of a Secret.

    Attributes:
        keys: those that are keys.
        problems: what is wrong with the others, a sentence each.
    """

    keys: tuple[ManagedKey, ...]
    problems: tuple[str, ...]


def read_keys(secret: JsonObject) -> KeyEntries:
    """Read a Secret as the API server sent it; of two entries with one token the first by name counts."""
    keys: dict[str, ManagedKey] = {}
    problems: list[str] = []
    for name, encoded in sorted((secret.get("data") or {}).items()):
        key = _read(name, encoded)
        if isinstance(key, str):
            problems.append(f"entry {name}: {key}")
        elif key.hash in keys:
            problems.append(f"entry {name}: it has the token of entry {keys[key.hash].name}; give it its own")
        else:
            keys[key.hash] = key
    return KeyEntries(tuple(keys.values()), tuple(problems))


def not_taken(entries: KeyEntries, hashes: Sequence[str]) -> tuple[str, ...]:
    """Return what to say of keys that are somebody else's already.

    Args:
        entries: what was read.
        hashes: the keys that were left alone.
    """
    return tuple(
        f"entry {key.name}: its token is a key of somebody else, such as `synapse-worker keys`; give it its own"
        for key in entries.keys
        if key.hash in hashes
    )


def _read(name: str, encoded: str) -> ManagedKey | str:
    """Return a key, or why an entry is none."""
    try:
        content = json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError, RecursionError):
        return f"it is no JSON; {_ACCEPTED}"
    if not isinstance(content, dict):
        return f"it is no JSON object; {_ACCEPTED}"
    if set(content) - {"token", "tenantId"}:
        # Not by its name: who writes {"<token>": "<tenant>"} has made a token the name of a field.
        return f"it has a field that is not known; {_ACCEPTED}"
    token, tenant_id = content.get("token"), content.get("tenantId")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        return "token is not 1 to 1024 characters that a header can hold (ASCII, without spaces)"
    if tenant_id is None:
        return ManagedKey(hash_of(token), name, None)
    if not isinstance(tenant_id, str) or not _is_tenant_id(tenant_id):
        return f"tenantId is not a text of 1 to {TENANT_ID_MAX_LENGTH} characters"
    return ManagedKey(hash_of(token), name, tenant_id)


def _is_tenant_id(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # half of a surrogate pair, which JSON can write and PostgreSQL cannot hold
    return 0 < len(text) <= TENANT_ID_MAX_LENGTH and "\0" not in text
