"""The API keys of a SynapseScale in a real PostgreSQL: one statement for all, and nobody else's touched."""

from __future__ import annotations

from synapse_worker.store.api_keys import hash_of
from synapse_worker.store.database import Database
from synapse_worker.store.managed_keys import ManagedKey, bring_to


def key(token: str, *, name: str = "ci", tenant_id: str | None = None) -> ManagedKey:
    return ManagedKey(hash_of(token), name, tenant_id)


async def bring(database: Database, *wanted: ManagedKey, uid: str = "one", exclusive: bool = True) -> frozenset[str]:
    return await bring_to(database, wanted, managed_by=uid, exclusive=exclusive)


async def stored(database: Database) -> dict[str, tuple[str, str | None, str | None]]:
    rows = await database.fetch("SELECT * FROM api_keys")
    return {row["hash"]: (row["name"], row["tenant_id"], row["managed_by"]) for row in rows}


async def test_keys_come_change_and_go_with_the_secret(database: Database) -> None:
    assert await bring(database, key("a"), key("b", name="b", tenant_id="acme")) == frozenset()
    assert await stored(database) == {hash_of("a"): ("ci", None, "one"), hash_of("b"): ("b", "acme", "one")}
    await bring(database, key("b", name="c", tenant_id="other"))
    assert await stored(database) == {hash_of("b"): ("c", "other", "one")}
    await bring(database)
    assert await stored(database) == {}


async def test_what_is_as_wanted_is_not_written(database: Database) -> None:
    await bring(database, key("a"))
    before = await database.fetch("SELECT xmin::text FROM api_keys")
    await bring(database, key("a"))
    assert await database.fetch("SELECT xmin::text FROM api_keys") == before


async def test_keys_of_the_command_line_are_left_alone_and_named(database: Database) -> None:
    await database.execute("INSERT INTO api_keys (hash, name) VALUES ($1, 'by hand')", hash_of("a"))
    assert await bring(database, key("a", tenant_id="acme"), key("b")) == {hash_of("a")}
    assert (await stored(database))[hash_of("a")] == ("by hand", None, None)
    await bring(database)
    assert set(await stored(database)) == {hash_of("a")}


async def test_keys_of_a_scale_that_is_gone_are_taken_over_or_deleted(database: Database) -> None:
    await bring(database, key("a"), key("b"), uid="gone")
    assert await bring(database, key("a"), uid="two", exclusive=False) == {hash_of("a")}
    assert {row[2] for row in (await stored(database)).values()} == {"gone"}
    assert await bring(database, key("a"), uid="two") == frozenset()
    assert await stored(database) == {hash_of("a"): ("ci", None, "two")}
