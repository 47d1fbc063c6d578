"""Keys of the V2 API in PostgreSQL: hashes only, and a manager's keys beside those of the command line."""

from __future__ import annotations

from pydantic import SecretStr

from synapse_worker.store import api_keys
from synapse_worker.store.api_keys import ManagedKey
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


async def test_a_managers_keys_are_as_it_wants_them(database: Database) -> None:
    by_hand, token = await api_keys.create(database, name="by hand", tenant_id=None)
    one = ManagedKey(SecretStr("one"), "one", None)
    other = ManagedKey(SecretStr("other"), "other", "acme")
    taken = ManagedKey(token, "taken", "acme")
    assert await api_keys.bring_to(database, [one, other, taken], managed_by="scale") == 2
    assert await api_keys.bring_to(database, [one, other, taken], managed_by="scale") == 0
    assert await api_keys.find(database, token.get_secret_value()) == by_hand
    managed = await api_keys.find(database, "one")
    assert managed is not None
    assert await api_keys.revoke(database, managed.key_id) == 0  # its Secret would bring it back
    assert await api_keys.bring_to(database, [ManagedKey(SecretStr("one"), "one", "acme")], managed_by="scale") == 2
    assert [(key.name, key.tenant_id) for key in await api_keys.list_all(database)] == [
        ("by hand", None),
        ("one", "acme"),
    ]
    assert await api_keys.bring_to(database, [], managed_by="another") == 0
