"""Which schema a release expects, and whether a database has it: all that most programs ask of the schema.

`tables` and `migrate` describe and make it, for which they load SQLAlchemy; who only asks is spared that.
"""

from __future__ import annotations

from synapse_worker.store.database import Database

SCHEMA_VERSION = 5


async def is_migrated(database: Database) -> bool:
    """Return whether the schema is there, at this release's version or a newer one."""
    row = await database.fetchrow("SELECT to_regclass('synapse_scale_schema') IS NOT NULL AS there")
    if row is None or not row["there"]:
        return False
    version = await database.fetchrow("SELECT max(version) AS version FROM synapse_scale_schema")
    return version is not None and (version["version"] or 0) >= SCHEMA_VERSION
