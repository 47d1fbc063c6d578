"""Which schema a release expects, and whether a database has it: all that most programs ask of the schema.

`tables` and `migrate` describe and make it, for which they load SQLAlchemy; who only asks is spared that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synapse_worker.store.database import Database

if TYPE_CHECKING:
    from synapse_worker.store.migrate import Migration

SCHEMA_VERSION = 5


async def is_migrated(database: Database) -> bool:
    """Return whether the schema is there, at this release's version or a newer one."""
    return (await version_there(database) or 0) >= SCHEMA_VERSION


async def version_there(database: Database) -> int | None:
    """Return the version of the schema that is there; None = nobody has migrated yet."""
    row = await database.fetchrow("SELECT to_regclass('synapse_scale_schema') IS NOT NULL AS there")
    if row is None or not row["there"]:
        return None
    version = await database.fetchrow("SELECT max(version) AS version FROM synapse_scale_schema")
    return None if version is None else version["version"]


async def ensure(database: Database) -> Migration | None:
    """Bring the schema up, unless it is there: whoever may not create tables can still work with it.

    Returns:
        None when there was nothing to do.

    Raises:
        As `migrate.migrate`.
    """
    if await is_migrated(database):
        return None
    from synapse_worker.store.migrate import migrate  # loads SQLAlchemy, which costs a seventh of a worker's start

    return await migrate(database)
