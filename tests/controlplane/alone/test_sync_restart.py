"""A sync across outages: of PostgreSQL, and of the operator."""

from __future__ import annotations

import json

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.controlplane.synced import CONDITION, Store, printing, sources
from tests.support.servers import PostgresServer, RedisServer


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
