"""Alert rules and dashboard before a real Prometheus, which scrapes a worker, the V2 API and the operator.

Each expression must return a sample, of an alert the expression without its bound, and none of them may be NaN: a
series that an expression asks for and nobody exposes, or labels that do not match, show here. Of the alerts, those are
active that tell what the test does, and no other. What the series mean is told in tests/services/test_metrics.py.
"""

from __future__ import annotations

import asyncio
import base64
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from synapse_operator import naming
from synapse_worker.connections import open_database
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator
from tests.controlplane.proxy import Proxy
from tests.controlplane.stores import Stores
from tests.support import observability, prometheus
from tests.support.api import ApiProcess
from tests.support.prometheus import Prometheus, Target
from tests.support.receiver import Received, Receiver
from tests.support.runs import eventually, store
from tests.support.workers import PRINT_IF_PRINT, WorkerProcess, chain

BROKEN = chain("broken", [{"id": "s", "type": "transform", "transform_code": "result = 1 / 0"}])
MOST_JOBS = 10
"""What the API accepts; a tenant that may run none fills it."""

ALERTS = {"SynapseRunsFail", "SynapseTenantsParked", "SynapseWebhooksGivenUp", "SynapseApiFails"}
"""Of what the test does: half of the runs fail, a tenant's jobs are parked, webhooks are given up, answers are 503."""


async def gone(_: Received) -> str:
    """Answer as a receiver that is there no more: the webhook is given up at once."""
    return "410 Gone"


def unbounded(expression: str) -> str:
    """An alert's expression without its bounds, which returns what they are compared with."""
    return re.sub(r" (==|[<>]) [\d.]+", "", re.sub(r"^absent\((.*)\)$", r"\1", expression))


@dataclass(frozen=True, slots=True)
class Installation:
    """What is scraped, and who scrapes it."""

    api: ApiProcess
    prometheus: Prometheus
    way: Proxy
    """The operator's way to the API server."""

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules as Prometheus has evaluated them last."""
        return [rule for group in self.prometheus.ask("rules")["groups"] for rule in group["rules"]]

    async def alerts_are(self, wanted: set[str]) -> None:
        """Wait until these alerts, and no other, fire or will when it stays so."""
        deadline = time.monotonic() + 20
        while (active := {rule["name"] for rule in self.rules() if rule["state"] != "inactive"}) != wanted:
            assert time.monotonic() < deadline, active
            await asyncio.sleep(0.2)  # the poll's period; the deadline above bounds it

    def without(self, expressions: Mapping[str, str], wanted: Callable[[float], bool]) -> list[str]:
        """Return which expressions have no sample that is wanted."""
        return [name for name, text in expressions.items() if not any(map(wanted, self.prometheus.values(text)))]

    async def all_have(self, expressions: Mapping[str, str], wanted: Callable[[float], bool]) -> None:
        """Wait until each expression has a sample that is wanted, and say which have none."""
        deadline = time.monotonic() + 30
        while lacking := await asyncio.to_thread(self.without, expressions, wanted):
            assert time.monotonic() < deadline, lacking
            await asyncio.sleep(0.2)  # the poll's period; the deadline above bounds it


@pytest.fixture
def installation(plane: ControlPlane, ns: str, stores: Stores, tmp_path: Path) -> Iterator[Installation]:
    """An operator with a scale, and a worker and the V2 API on its stores, behind the token that the operator made."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": observability.GROUPS}))
    prometheus.check_rules(rules)
    plane.apply(harness.scale(ns), harness.tenant(ns, "acme", maxConcurrentRuns=0))
    with ExitStack() as stack:
        way = Proxy(plane.server())
        stack.callback(way.close)
        operator = stack.enter_context(Operator(plane, server=way.url)).lead()
        plane.await_tenant(ns, "acme", "TenantStored")
        made = harness.eventually("a token", lambda: plane.get(ns, "secret", naming.metrics_token_secret_name("main")))
        token = base64.b64decode(made["data"]["token"]).decode()
        variables = {"METRICS_TOKEN": token, "WEBHOOK_ALLOW": "127.0.0.1", "MAX_GLOBAL_QUEUE_DEPTH": str(MOST_JOBS)}
        worker = WorkerProcess(stores.redis.url, stores.postgres_url, **variables).start()
        stack.callback(worker.close)
        api = ApiProcess(stores.redis.url, stores.postgres_url, **variables)
        stack.callback(api.close)
        api.start()
        labels = {"namespace": ns, "scale": "main"}
        scraping = Prometheus(
            rules,
            Target(worker.port, {**labels, "pod": "worker", "shard": "0"}, token=token),
            Target(api.port, {**labels, "pod": "api"}, path="/api/v2/metrics", token=token),
            Target(operator.metrics_port, {"namespace": harness.OPERATOR_NAMESPACE, "pod": "operator"}),
        )
        stack.callback(scraping.remove)
        scraping.start()
        worker.wait_ready()
        yield Installation(api.wait_ready(), scraping, way)


async def test_every_expression_returns_a_sample(ns: str, stores: Stores, installation: Installation) -> None:
    alerts = {name: unbounded(text) for name, text in observability.of_the_rules()}
    cut_off = {name: alerts.pop(name) for name in ("SynapseReconcilesFail",)}
    panels = observability.of_the_dashboard(namespace=ns, scale="main")
    expressions = alerts | {f"{title}: {text}": text for title, text in panels}
    database = open_database(SecretStr(stores.postgres_url))
    try:
        await store(database, PRINT_IF_PRINT, BROKEN)
        async with Receiver(gone) as receiver, installation.api.client() as client:

            async def post(orchestration: str, tenant: str = "default") -> int:
                body = {"message": "hi", "tenant_id": tenant, "webhook_url": receiver.url}
                return (await client.post(f"/orchestrations/{orchestration}/run", json=body)).status_code

            async def work() -> None:
                told = len(receiver.received)
                assert [await post("three"), await post("broken")] == [202, 202]
                await eventually("both ends are told", lambda: len(receiver.received) == told + 2)

            await work()
            await installation.all_have({"runs": "synapse_runs_completed_total"}, bool)
            await work()
            taken = 0

            async def is_full() -> bool:
                nonlocal taken
                taken += await post("three", "acme") == 202
                return taken == MOST_JOBS

            # Runs that have just ended may count for a minute more.
            await eventually("the queue is full", is_full, seconds=90)
            assert await post("three", "acme") == 503
            # NaN is 0 of 0: nothing has grown between two scrapes.
            await installation.all_have(expressions, lambda value: not math.isnan(value))
            # Refusals beyond those of an earlier scrape.
            assert {await post("three") for _ in range(MOST_JOBS)} == {503}
            await installation.alerts_are(ALERTS)
    finally:
        await database.close()

    def fails() -> list[str]:
        installation.way.cut(silent=False)
        return installation.without(cut_off, lambda value: value > 0)

    installation.way.close()
    await eventually("the operator without its API server is told of", lambda: not fails())
    assert {rule["health"] for rule in installation.rules()} == {"ok"}
