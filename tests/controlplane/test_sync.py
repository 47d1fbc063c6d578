"""The operator syncs definitions from ConfigMaps and Secrets into PostgreSQL, and tells what became of it.

What the configuration page says in Auto-sync on change and in Sync Now is shown here for the operator.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TypeVar

import pytest
from pydantic import SecretStr

from synapse_operator import naming
from synapse_worker.connections import open_database
from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.support.servers import PostgresServer, RedisServer

T = TypeVar("T")
CONDITION = "DefinitionsSynced"
EDIT_SECONDS = 5.0
"""Within so long an edit of a labelled ConfigMap is in PostgreSQL."""


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


@pytest.fixture
def store(plane: ControlPlane, ns: str, redis_server: RedisServer, postgres_server: PostgresServer) -> Store:
    """A migrated database, which the Secret of the namespace leads to."""
    url = postgres_server.new_database()
    plane.apply(harness.secret(ns, redis_server.url, url))
    return Store(url)


@pytest.fixture
def operator(plane: ControlPlane) -> Iterator[Operator]:
    """An operator of the test's own, since some tests need another one and there is one Lease."""
    with Operator(plane) as operator:
        yield operator.lead()
        operator.terminate()


@pytest.fixture
def calm(plane: ControlPlane) -> Iterator[Operator]:
    """An operator whose resync is as long as a user's, so that what happens sooner has been woken."""
    with Operator(plane, RESYNC_SECONDS="60") as operator:
        yield operator.lead()
        operator.terminate()


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


def test_an_edited_config_map_is_in_postgres_within_five_seconds(
    plane: ControlPlane, ns: str, store: Store, calm: Operator
) -> None:
    """Auto-sync on change: pushes the updated definition to Postgres whenever you save one."""
    plane.apply(
        harness.definitions(ns, "defs", label="main", greet=printing("greet", "one")),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    synced = plane.await_condition(ns, CONDITION, "True", "Synced")
    assert synced["message"] == "1 definitions and settings of 1 source are synced"
    assert store.printed("greet") == "one"
    for content in ("two", "three"):
        began = time.monotonic()
        plane.apply(harness.definitions(ns, "defs", label="main", greet=printing("greet", content)))
        eventually(f"'{content}' is stored", lambda: store.printed("greet") == content, seconds=EDIT_SECONDS)  # noqa: B023
        print(f"edit to row: {time.monotonic() - began:.1f} s")
    plane.apply(harness.definitions(ns, "defs", label="main", other=printing("other", "four")))
    eventually("the old one is taken back", lambda: store.printed("greet") is None, seconds=EDIT_SECONDS)
    assert store.printed("other") == "four"


def test_model_keys_and_tokens_come_from_a_secret(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    keys = "openai_key: sk-hidden-word\nmodel: gpt\nworker_concurrency: 7\n"
    crm = "name: crm\nserver_type: remote\nurl: https://example.com\ntoken: hidden-token\n"
    plane.apply(secret(ns, "keys", settings=keys, crm=crm), harness.scale(ns, sync=sources("secret:keys")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.settings() == {
        "openai_key": "sk-hidden-word",
        "model": "gpt",
        "worker_concurrency": 7,
        "mcp_token.crm": "hidden-token",
    }
    plane.apply(secret(ns, "keys", settings="openai_key: sk-hidden-word-2\n  model: x\n"))
    refused = plane.await_condition(ns, CONDITION, "False", "DocumentsRefused")
    plane.apply(secret(ns, "keys", settings=keys.replace("hidden-word", "rotated")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.settings() == {"openai_key": "sk-rotated", "model": "gpt", "worker_concurrency": 7}
    shown = plane.kubectl("get", "sscale,events", "-n", ns, "-o", "yaml") + operator.log + json.dumps(refused)
    assert "hidden" not in shown
    assert "rotated" not in shown


def test_what_is_wrong_is_told_with_key_and_line_and_the_rest_is_stored(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    bad = "id: bad\nsteps:\n- {id: s, type: print, print_content: x, next_step_id: nowhere}\n"
    plane.apply(
        harness.definitions(ns, "defs", a=printing("good", "one") + "---\n" + bad, b="openai_key: sk\n"),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    condition = plane.await_condition(ns, CONDITION, "False", "DocumentsRefused")
    assert "1 definitions and settings of 1 source are synced; 2 errors" in condition["message"]
    assert store.printed("good") == "one"
    status = sync_status(plane, ns)
    assert status["totalSynced"] == 1
    first, second = status["errors"]
    assert (first["source"], first["key"], first["line"]) == ("ConfigMap defs", "a.yaml", 5)
    assert "'nowhere', which is no step" in first["message"]
    assert (second["key"], second["line"]) == ("b.yaml", 1)
    assert second["message"] == "The setting openai_key is a secret: put it into a Secret."
    plane.apply(harness.definitions(ns, "defs", a=printing("good", "one")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert "errors" not in sync_status(plane, ns)


def test_a_source_that_is_missing_is_named_and_what_came_from_it_stays(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    plane.apply(
        harness.definitions(ns, "one", a=printing("a", "x")),
        harness.definitions(ns, "two", b=printing("b", "y")),
        harness.scale(ns, sync=sources("cm:one", "cm:two")),
    )
    plane.await_condition(ns, CONDITION, "True", "Synced")
    plane.kubectl("delete", "configmap", "one", "-n", ns)
    condition = plane.await_condition(ns, CONDITION, "False", "SourceNotFound")
    assert "ConfigMap one: It does not exist in this namespace; create it" in condition["message"]
    (error,) = sync_status(plane, ns)["errors"]
    assert error["source"] == "ConfigMap one"
    assert (store.printed("a"), store.printed("b")) == ("x", "y")
    plane.apply(harness.scale(ns, sync=sources("cm:two")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert (store.printed("a"), store.printed("b")) == (None, "y")
    plane.apply(harness.scale(ns, sync=sources()))
    plane.await_condition(ns, CONDITION, "True", "NoSources")
    eventually("everything is taken back", lambda: store.printed("b") is None)
    eventually("the figures go", lambda: sync_status(plane, ns) == {})


def test_without_auto_only_the_annotation_syncs(plane: ControlPlane, ns: str, store: Store, operator: Operator) -> None:
    """Auto-sync on change: when disabled, you must click Sync Now after every change."""
    plane.apply(
        harness.definitions(ns, "defs", label="main", a=printing("a", "one")),
        harness.scale(ns, sync=sources("cm:defs", auto=False)),
    )
    plane.await_condition(ns, CONDITION, "Unknown", "SyncNotAsked")
    looks = operator.reconciles()
    eventually("some looks", lambda: operator.reconciles() >= looks + 3)
    assert store.printed("a") is None

    def ask(value: str) -> None:
        plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.SYNC_NOW_ANNOTATION}={value}", "--overwrite")
        eventually(f"sync {value} is done", lambda: sync_status(plane, ns).get("syncNow") == value)

    ask("1")
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.printed("a") == "one"
    plane.apply(harness.definitions(ns, "defs", label="main", a=printing("a", "two")))
    looks = operator.reconciles()
    eventually("some looks", lambda: operator.reconciles() >= looks + 3)
    assert store.printed("a") == "one"
    ask("2")
    assert store.printed("a") == "two"


def test_sync_now_puts_back_what_somebody_else_wrote(
    plane: ControlPlane, ns: str, store: Store, calm: Operator
) -> None:
    plane.apply(
        harness.definitions(ns, "defs", label="main", a=printing("a", "one")),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    plane.await_condition(ns, CONDITION, "True", "Synced")
    store.execute("UPDATE orchestrations SET definition = jsonb_set(definition, '{steps,0,print_content}', '\"ui\"')")
    before = sync_status(plane, ns)
    plane.apply(harness.definitions(ns, "defs", label="main", a=printing("a", "one"), b="# nothing new\n"))
    store.execute("UPDATE synced_definitions SET source = source")
    assert store.printed("a") == "ui"
    plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.SYNC_NOW_ANNOTATION}=now")
    eventually("it is put back", lambda: store.printed("a") == "one", seconds=EDIT_SECONDS)
    eventually("it is told", lambda: sync_status(plane, ns).get("syncNow") == "now", seconds=EDIT_SECONDS)
    assert sync_status(plane, ns)["lastSyncTime"] >= before["lastSyncTime"]


def test_a_dead_postgres_is_waited_for_and_a_restart_of_the_operator_writes_nothing(
    plane: ControlPlane, ns: str, redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    plane.apply(harness.definitions(ns, "defs", a=printing("a", "one")), harness.scale(ns, sync=sources("cm:defs")))
    with Operator(plane) as operator:
        operator.lead()
        pending = plane.await_condition(ns, CONDITION, "Unknown", "SyncPending")
        assert pending["message"].startswith("The sync waits for PostgreSQL: PostgreSQL cannot be reached")
        assert "hidden-postgres-word" not in json.dumps(plane.get(ns, "sscale", "main"))
        url = postgres_server.new_database()
        plane.apply(harness.secret(ns, redis_server.url, url))
        waits = "The sync waits for the first worker, which creates or completes the tables in PostgreSQL"
        eventually("it waits for tables", lambda: plane.condition(ns, CONDITION)["message"] == waits, seconds=40)
        store = Store(url)
        plane.await_condition(ns, CONDITION, "True", "Synced", seconds=40)
        assert store.printed("a") == "one"
        looks = operator.reconciles()
        due = 2 + 2 * harness.STATUS_FIGURES_SECONDS // harness.RESYNC_SECONDS
        eventually("the figures are written", lambda: operator.reconciles() >= looks + due, seconds=60)
        operator.terminate()
    mark = plane.audit_mark()
    with Operator(plane) as operator:
        operator.lead()
        eventually("five looks", lambda: operator.reconciles() >= 5, seconds=40)
        assert [call for call in plane.writes(mark) if call.namespace == ns] == []
        operator.terminate()


def test_a_large_sync_holds_up_no_other_scale(
    plane: ControlPlane, ns: str, store: Store, operator: Operator, postgres_server: PostgresServer
) -> None:
    many = "".join(
        f"---\nid: o{number}\nsteps:\n- {{id: t, type: transform, transform_code: 'result = {number}'}}\n"
        for number in range(4000)
    )
    other = f"{ns}-other"
    plane.apply(harness.namespace(other), harness.secret(other, "redis://127.0.0.1:1", postgres_server.new_database()))
    plane.apply(harness.definitions(ns, "defs", many=many))
    plane.apply(harness.scale(ns, sync=sources("cm:defs")))
    began = time.monotonic()
    plane.apply(harness.scale(other))
    plane.await_condition(other, "ChildrenApplied", "True", seconds=3)
    beside = time.monotonic() - began
    plane.await_condition(ns, CONDITION, "True", "Synced", seconds=60)
    print(f"a scale beside a sync of 4,000: {beside:.1f} s; the sync: {time.monotonic() - began:.1f} s")
    assert sync_status(plane, ns)["totalSynced"] == 4000
    plane.kubectl("delete", "namespace", other, "--wait=false")
