"""An operator that has nothing to do writes nothing: counted in the API server's audit log."""

from __future__ import annotations

import pytest

from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.support.servers import PostgresServer, RedisServer

RENEWALS = 'synapse_operator_api_calls_total{outcome="ok",verb="update"}'


@pytest.fixture(autouse=True)
def _nothing_else_to_do(plane: ControlPlane) -> None:
    """What other tests left behind would be work."""
    plane.kubectl("delete", "sscale,stenant", "--all", "--all-namespaces", "--timeout=60s")


def test_a_reconcile_without_a_change_sends_no_write_and_neither_does_a_restart(
    plane: ControlPlane, live_ns: str, redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    plane.apply(harness.secret(live_ns, redis_server.url, harness.migrated(postgres_server.new_database())))
    other = f"{live_ns}-dead"
    plane.apply(harness.namespace(other), harness.secret(other, "redis://127.0.0.1:1", "postgresql://127.0.0.1:1/d"))
    with Operator(plane) as operator:
        operator.lead()
        keys = {**harness.secret(live_ns, "", "", "keys"), "data": {"settings": "bW9kZWw6IGdwdAo="}}
        plane.apply(harness.definitions(live_ns, agent="id: helper\nsystem_prompt: Help.\n"), keys)
        sources = [{"configMapRef": {"name": "definitions"}}, {"secretRef": {"name": "keys"}}]
        plane.apply(harness.scale(live_ns, sync={"sources": sources}), harness.scale(other))
        plane.apply(harness.tenant(live_ns, "acme"), harness.tenant(other, "acme"), harness.tenant(other, "lost", "no"))
        plane.await_tenant(live_ns, "acme", "TenantStored")
        plane.await_tenant(other, "acme", "PostgresUnreachable")
        plane.await_tenant(other, "lost", "ScaleNotFound")
        plane.await_children(live_ns)
        plane.await_children(other)
        plane.make_pods_ready(live_ns)
        plane.await_condition(live_ns, "Ready", "True")
        plane.await_condition(live_ns, "DefinitionsSynced", "True", "Synced")
        # The last figures are written within their rhythm.
        looks = operator.reconciles()
        due = 2 * (2 + 2 * harness.STATUS_FIGURES_SECONDS // harness.RESYNC_SECONDS)
        eventually("looks at both scales beyond it", lambda: operator.reconciles() >= looks + due, seconds=60)

        mark, looks = plane.audit_mark(), operator.reconciles()
        renewed = operator.metric(RENEWALS) or 0
        eventually("ten looks at each scale", lambda: operator.reconciles() >= looks + 20, seconds=60)
        eventually("three renewals of the Lease", lambda: (operator.metric(RENEWALS) or 0) >= renewed + 3)
        assert plane.writes(mark) == [], "it writes its Lease and nothing else"
        # What it does read is bounded too: the scale, its children, its Secrets (that of the stores, and the token of
        # its metrics), and pods that are not ready; of the scale that syncs also its two sources, once a resync.
        # Ten each, then, and two more for one of the two.
        # Tenants have looks of their own, here three beside two of scales: the scale again, and the list of them.
        reads = [call for call in plane.audit(mark) if not call.is_write and call.namespace in (live_ns, other)]
        assert len(reads) <= (11 + 3) * (operator.reconciles() - looks + 2)
        sources_read = [call for call in reads if call.name in ("definitions", "keys")]
        assert 4 <= len(sources_read) <= 2 * (operator.reconciles() - looks + 2)
        operator.terminate()

    mark = plane.audit_mark()
    with Operator(plane) as operator:
        operator.lead()
        eventually("both scales", lambda: operator.reconciles() >= 6, seconds=40)
        assert plane.writes(mark) == []
        operator.terminate()
    plane.kubectl("delete", "namespace", other, "--wait=false")
