"""SynapseTenants from their creation to their end, against a real control plane and a real database."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from synapse_operator import naming
from synapse_worker.connections import open_database
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.support.servers import PostgresServer, RedisServer

SAMPLE = Path(__file__).parents[2] / "manifests" / "samples" / "tenants.yaml"


class Stores:
    """What the Secret of a namespace leads to: databases of Redis and PostgreSQL that nobody else uses."""

    def __init__(self, redis: str, postgres: str) -> None:
        self.redis = redis
        self.postgres = postgres

    def ask(self, statement: str, *arguments: object) -> list[Json]:
        """Run one statement."""

        async def asked() -> list[Json]:
            database = open_database(SecretStr(self.postgres))
            try:
                return [dict(row) for row in await database.fetch(statement, *arguments)]
            finally:
                await database.close()

        return asyncio.run(asked())

    def migrate(self) -> None:
        """Do what the first worker does."""

        async def done() -> None:
            database: Database = open_database(SecretStr(self.postgres))
            await migrate.migrate(database)
            await database.close()

        asyncio.run(done())

    def rows(self) -> dict[str, Json]:
        """All rows, by tenant id."""
        return {row["tenant_id"]: row for row in self.ask("SELECT * FROM tenants")}

    def queue_runs(self, tenant_id: str, status: str, count: int) -> None:
        """Rows of runs as a producer and a worker leave them."""
        self.ask(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
            " SELECT $1 || $2 || n, 'o', $1, $2, '{}', '[]' FROM generate_series(1, $3) AS n",
            tenant_id,
            status,
            count,
        )


_numbers = itertools.count(1)


@pytest.fixture
def stores(
    plane: ControlPlane, ns: str, redis_server: RedisServer, postgres_server: PostgresServer, operator: Operator
) -> Stores:
    """The stores of `ns`, with our tables; the operator runs."""
    assert operator.running
    # Scales of earlier tests may still be there and mark the Redis that all others share.
    redis = f"{redis_server.url.rsplit('/', 1)[0]}/{next(_numbers)}"
    found = Stores(redis, postgres_server.new_database())
    plane.apply(harness.secret(ns, found.redis, found.postgres))
    found.migrate()
    return found


def test_a_tenant_becomes_a_row_and_says_how_it_stands(plane: ControlPlane, ns: str, stores: Stores) -> None:
    stores.queue_runs("Acme & Söhne", "queued", 3)
    stores.queue_runs("Acme & Söhne", "running", 2)
    plane.apply(
        harness.scale(ns),
        harness.tenant(ns, "acme", tenantId="Acme & Söhne", name="Acme", maxQueuedRuns=7, maxConcurrentRuns=3),
        harness.tenant(ns, "plain"),
    )
    plane.kubectl("wait", "--for=condition=Ready", "stenant", "--all", "-n", ns, "--timeout=20s")
    acme = plane.get(ns, "stenant", "acme")
    assert acme["status"]["observedGeneration"] == acme["metadata"]["generation"]
    assert "finalizers" not in acme["metadata"]
    assert "annotations" not in acme["metadata"]
    rows = stores.rows()
    assert rows.keys() == {"Acme & Söhne", "plain"}
    row = rows["Acme & Söhne"]
    assert (row["name"], row["max_queued_runs"], row["max_concurrent_runs"]) == ("Acme", 7, 3)
    assert row["managed_by"] == acme["metadata"]["uid"]
    lines = [" ".join(line.split()) for line in plane.kubectl("get", "synapsetenants", "-n", ns).splitlines()]
    assert lines[0] == "NAME TENANT SCALE QUEUE SERVED-BY QUEUED ACTIVE MAX-QUEUED MAX-CONCURRENT READY AGE"
    assert lines[1].startswith("acme Acme & Söhne main default shards 3 2 7 3 True ")
    assert lines[2].startswith("plain plain main default shards 0 0 1000 100 True ")


def test_a_change_reaches_the_row(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    plane.await_tenant(ns, "acme", "TenantStored")
    made = stores.rows()["acme"]["created_at"]
    plane.apply(harness.tenant(ns, "acme", maxConcurrentRuns=9))
    eventually("the new limit", lambda: stores.rows()["acme"]["max_concurrent_runs"] == 9)
    assert stores.rows()["acme"]["created_at"] == made

    def told() -> bool:
        acme = plane.get(ns, "stenant", "acme")
        return bool(acme["status"]["observedGeneration"] == acme["metadata"]["generation"] == 2)

    eventually("the status is about the new spec", told)


def test_a_row_that_somebody_deletes_comes_again(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    plane.await_tenant(ns, "acme", "TenantStored")
    stores.ask("DELETE FROM tenants")
    eventually("the row", lambda: "acme" in stores.rows())


def test_the_row_goes_with_its_tenant(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"), harness.tenant(ns, "other"))
    plane.await_tenant(ns, "acme", "TenantStored")
    plane.await_tenant(ns, "other", "TenantStored")
    plane.kubectl("delete", "stenant", "acme", "-n", ns, "--timeout=10s")
    eventually("the row is gone", lambda: stores.rows().keys() == {"other"})
    plane.kubectl("delete", "stenant", "--all", "-n", ns, "--timeout=10s")
    eventually("the last row is gone", lambda: stores.rows() == {})


def test_a_tenant_without_a_scale_says_so_until_there_is_one(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.tenant(ns, "acme"))
    status = plane.await_tenant(ns, "acme", "ScaleNotFound")["status"]
    assert "SynapseScale main does not exist" in status["conditions"][0]["message"]
    assert status["tenantId"] == "acme"
    assert "queue" not in status
    plane.apply(harness.scale(ns))
    plane.await_tenant(ns, "acme", "TenantStored")
    plane.kubectl("delete", "sscale", "main", "-n", ns)
    plane.await_tenant(ns, "acme", "ScaleNotFound")
    assert "acme" in stores.rows()
    # The next scale finds the Redis unmarked, and the row its own.
    plane.apply(harness.scale(ns))
    plane.await_tenant(ns, "acme", "TenantStored")
    plane.await_condition(ns, "BackendExclusive", "True", "Exclusive")


def test_of_two_with_one_id_the_older_has_it(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "older", tenantId="acme", maxConcurrentRuns=1))
    older = plane.await_tenant(ns, "older", "TenantStored")
    created = older["metadata"]["creationTimestamp"]

    def younger() -> bool:
        """Creation times are whole seconds."""
        plane.kubectl("delete", "stenant", "acme", "-n", ns, "--ignore-not-found")
        plane.apply(harness.tenant(ns, "acme", maxConcurrentRuns=2))
        return bool(plane.get(ns, "stenant", "acme")["metadata"]["creationTimestamp"] > created)

    eventually("a younger one", younger)
    told = plane.await_tenant(ns, "acme", "DuplicateTenantId")
    assert "SynapseTenant older has the tenant id 'acme'" in told["status"]["conditions"][0]["message"]
    assert stores.rows()["acme"]["managed_by"] == older["metadata"]["uid"]
    plane.kubectl("delete", "stenant", "older", "-n", ns)
    plane.await_tenant(ns, "acme", "TenantStored")
    row = stores.rows()["acme"]
    assert (row["managed_by"], row["max_concurrent_runs"]) == (told["metadata"]["uid"], 2)


def test_a_row_of_somebody_else_is_left_to_them(plane: ControlPlane, ns: str, stores: Stores) -> None:
    stores.ask("INSERT INTO tenants (tenant_id, max_concurrent_runs) VALUES ('acme', 77), ('unknown', 1)")
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    told = plane.await_tenant(ns, "acme", "NotManaged")
    assert "settings page" in told["status"]["conditions"][0]["message"]
    plane.kubectl("delete", "stenant", "acme", "-n", ns)
    plane.apply(harness.tenant(ns, "marker"))
    plane.await_tenant(ns, "marker", "TenantStored")
    rows = stores.rows()
    assert rows["acme"]["max_concurrent_runs"] == 77
    assert "unknown" in rows
    plane.apply(harness.tenant(ns, "acme"))
    plane.await_tenant(ns, "acme", "NotManaged")
    stores.ask("DELETE FROM tenants WHERE tenant_id = 'acme'")
    plane.await_tenant(ns, "acme", "TenantStored")


def test_two_scales_on_one_redis_delete_no_rows(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    plane.await_condition(ns, "BackendExclusive", "True", "Exclusive")
    plane.await_tenant(ns, "acme", "TenantStored")
    plane.apply(harness.scale(ns, "second"), harness.tenant(ns, "extra", "second"))
    first = plane.get(ns, "sscale", "main")["metadata"]["uid"]
    told = plane.await_condition(ns, "BackendExclusive", "False", "BackendShared", scale="second")
    assert first in told["message"]
    events = json.loads(plane.kubectl("get", "events", "-n", ns, "-o", "json"))["items"]
    assert [each["involvedObject"]["name"] for each in events if each["reason"] == "BackendShared"] == ["second"]
    plane.await_tenant(ns, "extra", "TenantStored")
    plane.kubectl("delete", "stenant", "extra", "-n", ns)
    plane.apply(harness.tenant(ns, "marker", "second"))
    plane.await_tenant(ns, "marker", "TenantStored")
    # The second may not know that it is gone; the first does.
    eventually("the row is gone", lambda: stores.rows().keys() == {"acme", "marker"})


def test_a_database_that_is_away_is_said_and_comes_back(plane: ControlPlane, ns: str, stores: Stores) -> None:
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme"))
    plane.await_tenant(ns, "acme", "TenantStored")
    plane.apply(harness.secret(ns, stores.redis, "postgresql://synapse:hidden-postgres-word@127.0.0.1:1/synapse"))
    told = plane.await_tenant(ns, "acme", "PostgresUnreachable", seconds=40)
    assert "queuedRuns" not in told["status"]
    assert told["status"]["conditions"][0]["status"] == "False"
    assert "hidden-postgres-word" not in json.dumps(told)
    plane.apply(harness.secret(ns, stores.redis, stores.postgres))
    back = plane.await_tenant(ns, "acme", "TenantStored", seconds=40)
    assert back["status"]["queuedRuns"] == 0


def test_an_empty_database_waits_for_the_first_worker(plane: ControlPlane, live_ns: str, operator: Operator) -> None:
    plane.apply(harness.scale(live_ns), harness.tenant(live_ns, "acme"))
    assert "first worker" in plane.await_tenant(live_ns, "acme", "NotMigrated")["status"]["conditions"][0]["message"]


def test_two_hundred_at_once_are_all_ready_and_cost_one_write_each(
    plane: ControlPlane, ns: str, stores: Stores
) -> None:
    plane.apply(harness.scale(ns))
    plane.await_condition(ns, "PostgresReachable", "True")
    mark = plane.audit_mark()
    plane.apply(*(harness.tenant(ns, f"tenant-{number:03}") for number in range(200)))

    def ready() -> bool:
        found = plane.find(ns, ["stenant"])
        conditions = [(each.get("status") or {}).get("conditions") or [{}] for each in found]
        return len(found) == 200 and all(each[0].get("status") == "True" for each in conditions)

    eventually("all are ready", ready, seconds=40)
    assert len(stores.rows()) == 200
    written = [
        call.name
        for call in plane.writes(mark)
        if call.resource == "synapsetenants/status" and call.namespace == ns  # others may be going still
    ]
    assert sorted(written) == [f"tenant-{number:03}" for number in range(200)]
    collection = f"/apis/{naming.API_VERSION}/namespaces/{ns}/{naming.TENANT_PLURAL}"
    plane.kubectl("delete", "--raw", collection)  # all in one request
    eventually("all rows are gone", lambda: stores.rows() == {})


def test_the_sample_is_accepted(plane: ControlPlane, ns: str) -> None:
    for document in yaml.safe_load_all(SAMPLE.read_text(encoding="utf-8")):
        document["metadata"]["namespace"] = ns
        plane.kubectl("create", "--validate=strict", "--dry-run=server", "-f", "-", stdin=json.dumps(document))
