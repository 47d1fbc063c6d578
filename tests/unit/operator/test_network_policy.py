"""The rendered rules, as a table. Whether they are enforced is up to a cluster's network plugin."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_operator.desired.networkpolicy import store_ports
from synapse_operator.naming import Kind
from synapse_operator.observed import Found
from tests.builders import a_scale, an_observed, manifest_of, what_is_desired


def _policy(redis: str = "redis://redis", postgres: str = "postgresql://postgres/d", **spec: Any) -> JsonObject:
    observed = an_observed(redis_url=Found(SecretStr(redis)), postgres_url=Found(SecretStr(postgres)))
    enabled = {"networkPolicy": {"enabled": True, **spec.pop("networkPolicy", {})}}
    desired = what_is_desired(a_scale(spec={**enabled, **spec}), observed)
    rendered: JsonObject = manifest_of(desired, Kind.NETWORK_POLICY).body["spec"]
    return rendered


def _ports(*numbers: int) -> list[JsonObject]:
    return [{"port": number, "protocol": "TCP"} for number in numbers]


def test_there_is_none_unless_it_is_asked_for() -> None:
    assert Kind.NETWORK_POLICY not in {manifest.ref.kind for manifest in what_is_desired(a_scale()).manifests}


def test_it_is_about_all_workers_both_ways() -> None:
    policy = _policy()
    assert policy["podSelector"] == {"matchLabels": naming.worker_selector("demo")}
    assert policy["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize(("workers", "port"), [({}, 9000), ({"healthPort": 9100}, 9100)])
def test_only_the_port_of_probes_and_metrics_can_be_reached(workers: JsonObject, port: int) -> None:
    assert _policy(workers=workers)["ingress"] == [{"ports": _ports(port)}]


def test_with_the_api_it_is_about_its_pods_and_its_port_too() -> None:
    policy = _policy(api={"enabled": True})
    assert policy["podSelector"] == {"matchLabels": {naming.SCALE_LABEL: "demo"}}
    assert policy["ingress"] == [{"ports": _ports(9000, 8765)}]


EGRESS = {
    "dns": {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]},
    "stores and https": {"ports": _ports(443, 5432, 6379)},
    "cloud credentials": {
        "to": [
            {"ipBlock": {"cidr": "169.254.169.254/32"}},
            {"ipBlock": {"cidr": "169.254.170.2/32"}},
            {"ipBlock": {"cidr": "169.254.170.23/32"}},
        ]
    },
}


def test_what_may_be_reached_is_this_and_nothing_else() -> None:
    assert _policy()["egress"] == list(EGRESS.values())


def test_ports_of_the_stores_follow_their_urls() -> None:
    policy = _policy(
        redis="rediss+cluster://u:p%40@a:7000,b:7001,c", postgres="postgresql://u:p@postgres:6432/d?sslmode=require"
    )
    assert policy["egress"][1] == {"ports": _ports(443, 6379, 6432, 7000, 7001)}


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector", 4317), ("http://collector:5000/", 5000), ("https://c:8443", 8443), ("https://c", 443)],
)
def test_the_collector_of_traces_can_be_reached(endpoint: str, port: int) -> None:
    policy = _policy(observability={"otlpEndpoint": endpoint})
    assert policy["egress"][1] == {"ports": _ports(*sorted({443, 5432, 6379, port}))}


def test_more_can_be_allowed() -> None:
    model = {"to": [{"podSelector": {"matchLabels": {"app": "model"}}}], "ports": _ports(8000)}
    assert _policy(networkPolicy={"extraEgress": [model]})["egress"] == [*EGRESS.values(), model]


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("redis://redis", {6379}),
        ("redis://:a@b@redis:6380/0", {6380}),
        ("redis://[::1]:6381/0?x=1", {6381}),
        ("redis+cluster://a:1, b:2", {1, 2}),
        ("redis://redis:port", {6379}),
    ],
)
def test_ports_of_a_url(url: str, ports: set[int]) -> None:
    assert store_ports(SecretStr(url), 6379) == ports
