"""Keys of the V2 API in PostgreSQL: hashes only, found by their tokens."""

from __future__ import annotations

from synapse_worker.store import api_keys
from synapse_worker.store.database import Database


async def test_a_token_is_found_and_never_stored(database: Database) -> None:
    key, token = await api_keys.create(database, name="ci", tenant_id="acme")
    assert await api_keys.find(database, token.get_secret_value()) == key
    assert await api_keys.find(database, token.get_secret_value() + "x") is None
    assert await api_keys.find(database, "\udcff") is None
    (row,) = await database.fetch("SELECT * FROM api_keys")
    assert token.get_secret_value() not in str(dict(row))
    assert await api_keys.revoke(database, key.key_id) == 1
    assert await api_keys.list_all(database) == []


async def test_a_managers_key_is_not_revoked_here(database: Database) -> None:
    await database.execute(
        "INSERT INTO api_keys (hash, name, managed_by, created_at) VALUES ($1, 'theirs', 'scale', now())",
        api_keys.hash_of("theirs"),
    )
    key = await api_keys.find(database, "theirs")
    assert key is not None
    assert key.managed_by == "scale"
    assert await api_keys.revoke(database, key.key_id) == 0  # its Secret would bring it back
