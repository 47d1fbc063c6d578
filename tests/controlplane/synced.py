"""Definitions that the operator syncs: the objects they are in, and the database where they are looked for."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Coroutine
from typing import TypeVar

from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json

T = TypeVar("T")
CONDITION = "DefinitionsSynced"


class Store:
    """The scale's database, as somebody sees it who looks from outside."""

    def __init__(self, url: str) -> None:
        self._url = harness.migrated(url)

    def do(self, work: Callable[[Database], Coroutine[None, None, T]]) -> T:
        """Run something with a connection of its own."""

        async def run() -> T:
            database = open_database(SecretStr(self._url))
            try:
                return await work(database)
            finally:
                await database.close()

        return asyncio.run(run())

    def printed(self, key: str) -> str | None:
        """What the first step of an active orchestration prints; None = there is none."""

        async def read(database: Database) -> str | None:
            found = await definitions.read_orchestrations(database, [key])
            steps = found[key]["steps"] if key in found else None
            return str(steps[0]["print_content"]) if isinstance(steps, list) else None

        return self.do(read)

    def settings(self) -> dict[str, object]:
        """The stored settings."""

        async def read(database: Database) -> dict[str, object]:
            return dict(await definitions.stored_settings(database))

        return self.do(read)

    def execute(self, statement: str) -> None:
        """Run a statement."""
        self.do(lambda database: database.execute(statement))


def printing(key: str, content: str) -> str:
    return f"id: {key}\nsteps:\n- {{id: say, type: print, print_content: {content}}}\n"


def secret(namespace: str, name: str, **data: str) -> Json:
    texts = {f"{key}.yaml": base64.b64encode(text.encode()).decode() for key, text in data.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": texts}


def sources(*names: str, **more: object) -> Json:
    """spec.sync with sources `cm:NAME` and `secret:NAME`."""
    kinds = {"cm": "configMapRef", "secret": "secretRef"}
    pairs = [name.split(":") for name in names]
    return {"sources": [{kinds[kind]: {"name": name}} for kind, name in pairs], **more}


def sync_status(plane: ControlPlane, namespace: str) -> Json:
    status: Json = (plane.get(namespace, "sscale", "main").get("status") or {}).get("sync") or {}
    return status
