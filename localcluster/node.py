"""A whole cluster of one node, in namespaces of its own: `up` from nothing to Ready.

It needs root, but touches the machine only with one link, two routes and one
cgroup folder, all named after the cluster and all removed by `clusters.end`.
"""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from localcluster import cgroups, clusters, components, images, loading, machine, network, tools
from localcluster.addresses import Addresses, choose
from localcluster.api import Api, answers
from localcluster.components import NODE
from localcluster.places import Record, State
from localcluster.progress import say, step


def up(state: State) -> None:
    machine.check_node()
    machine.provide(machine.FOR_NODE, cni=True)
    programs = tools.ensure()
    images.ensure_base()
    with state.locked():
        record = state.read()
        if record and record.ready and clusters.alive(record):
            addresses = Addresses(IPv4Network(record.block))
            # Whatever died since is started again; a start of what runs changes nothing.
            clusters.start(state, clusters.ask(state, "status"))
        else:
            clusters.clear(state)
            addresses = choose(state.name, network.taken())
            with clusters.starting(state), step(f"cluster {state.name} on {addresses.block}"):
                _start(state, programs, addresses)
        _await_ready(state, addresses)


def _start(state: State, programs: Path, addresses: Addresses) -> None:
    at = components.node_endpoints(addresses)
    clusters.prepare(state, at, [addresses.node, addresses.kubernetes])
    _configure(state, addresses)
    cgroups.create(state.name)
    plan = [
        *components.control_plane(state, programs / "node", at),
        *components.node_agents(state, programs, addresses),
    ]
    record = Record(kind="node", block=str(addresses.block), server=at.server)
    record = clusters.launch(state, plan, programs, record, isolate=True)
    network.connect(state.name, record.pid, addresses)
    clusters.start(state, ["containerd"])
    clusters.await_ready(state, "The start of containerd", lambda: _listens(state.containerd_socket))
    with ThreadPoolExecutor(max_workers=1) as aside:
        # Unpacking images takes the disk while the API server takes a processor.
        loaded = aside.submit(loading.load_known, state, programs)
        api = clusters.start_control_plane(state, at.server)
        clusters.start(state, ["kube-scheduler", "coredns", "kubelet"])
        # kube-proxy ends itself when the addresses of its node change, and having none yet counts.
        clusters.await_ready(state, "The registration of the node", lambda: api.has_address(NODE))
        clusters.start(state, ["kube-proxy"])
        for name in loaded.result():
            say(f"  loaded {name}")
    _await_ready(state, addresses)
    state.write(replace(record, ready=True))


def _configure(state: State, addresses: Addresses) -> None:
    network_folder = state.containerd / "cni"
    network_folder.mkdir(parents=True)
    state.snapshots.mkdir()
    for path, text in (
        (state.containerd / "config.toml", components.containerd_configuration(state, machine.cni_folders())),
        (network_folder / "10-pods.conflist", components.pod_network(addresses)),
        (
            state.root / "kubelet.json",
            components.kubelet_configuration(state, addresses, cgroups.root_name(state.name)),
        ),
        (state.root / "kube-proxy.json", components.proxy_configuration(state, addresses)),
        (state.root / "Corefile", components.dns_configuration(state, addresses)),
    ):
        path.write_text(text)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _await_ready(state: State, addresses: Addresses) -> None:
    """Ready means that a pod which is created now runs, finds services by name and reaches them."""
    api = Api(state, components.node_endpoints(addresses).server)
    node = addresses.node
    for what, check in (
        ("The start of the API server", api.ready),
        ("The first service account", api.default_account),
        ("Ready of the node", lambda: api.schedulable(NODE)),
        ("The start of DNS", lambda: answers(f"http://{node}:{components.DNS_READY_PORT}/ready")),
        ("The start of kube-proxy", lambda: answers(f"http://{node}:{components.PROXY_HEALTH_PORT}/healthz")),
    ):
        clusters.await_ready(state, what, check)
