"""Command lines and configuration files: what must agree between two components does."""

import json
import tomllib
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from localcluster import components
from localcluster.addresses import Addresses
from localcluster.places import State

ADDRESSES = Addresses(IPv4Network("10.90.0.0/16"))
PROGRAMS = Path("/programs")


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    monkeypatch.setattr("localcluster.places.state_root", lambda: Path("/state"))
    return State("unit")


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_the_api_server_of_a_node_is_where_its_clients_look(state: State) -> None:
    at = components.node_endpoints(ADDRESSES)
    _, apiserver, _ = components.control_plane(state, PROGRAMS / "node", at)
    assert option(apiserver.argv, "--bind-address") == "10.90.64.2"
    assert at.server == f"https://10.90.64.2:{option(apiserver.argv, '--secure-port')}"
    assert option(apiserver.argv, "--service-cluster-ip-range") == str(ADDRESSES.services)
    assert option(apiserver.argv, "--audit-log-path") == "/state/unit/logs/audit.log"


def test_a_control_plane_alone_writes_no_loopback_address_into_a_service(state: State) -> None:
    loopback = IPv4Address("127.0.0.1")
    at = components.Endpoints(loopback, 4001, 4002, 4003, IPv4Network("10.96.0.0/16"), reconciles_endpoints=False)
    etcd, apiserver, _ = components.control_plane(state, PROGRAMS / "node", at)
    assert option(apiserver.argv, "--endpoint-reconciler-type") == "none"
    assert option(apiserver.argv, "--etcd-servers") == option(etcd.argv, "--listen-client-urls")


def test_every_component_has_a_name_and_a_program_of_ours(state: State) -> None:
    at = components.node_endpoints(ADDRESSES)
    plan = [
        *components.control_plane(state, PROGRAMS / "node", at),
        *components.node_agents(state, PROGRAMS, ADDRESSES),
    ]
    assert len({part.name for part in plan}) == len(plan) == 8
    assert {part.argv[0] for part in plan} == {"/programs/node", "/programs/containerd"}


def test_kubelet_and_containerd_meet_at_one_socket(state: State) -> None:
    kubelet = json.loads(components.kubelet_configuration(state, ADDRESSES, "synapse-unit"))
    containerd = tomllib.loads(components.containerd_configuration(state, ["/usr/lib/cni"]))
    assert kubelet["containerRuntimeEndpoint"] == f"unix://{containerd['grpc']['address']}"
    assert containerd["plugins"]["io.containerd.cri.v1.runtime"]["cni"]["bin_dirs"] == ["/usr/lib/cni"]


def test_pods_ask_the_server_that_answers(state: State) -> None:
    kubelet = json.loads(components.kubelet_configuration(state, ADDRESSES, "synapse-unit"))
    assert kubelet["clusterDNS"] == ["10.90.64.2"]
    assert "bind 10.90.64.2" in components.dns_configuration(state, ADDRESSES)


def test_the_root_zone_is_answered_too_so_that_foreign_names_fail_at_once(state: State) -> None:
    zones = next(
        line for line in components.dns_configuration(state, ADDRESSES).splitlines() if "kubernetes cluster" in line
    )
    assert " . {" in zones


def test_pods_and_proxy_agree_on_the_range(state: State) -> None:
    bridge = json.loads(components.pod_network(ADDRESSES))["plugins"][0]
    proxy = json.loads(components.proxy_configuration(state, ADDRESSES))
    assert bridge["ipam"]["ranges"] == [[{"subnet": proxy["clusterCIDR"]}]]


def test_the_kubeconfig_verifies_the_server() -> None:
    document = json.loads(components.kubeconfig("https://10.90.64.2:6443", "Q0E=", "secret"))
    (cluster,) = document["clusters"]
    assert cluster["cluster"] == {"server": "https://10.90.64.2:6443", "certificate-authority-data": "Q0E="}
    assert document["users"][0]["user"] == {"token": "secret"}
