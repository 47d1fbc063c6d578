"""A cluster without a node: etcd, the API server and the controllers, on loopback.

For tests that look at what the operator writes and not at what pods do. It needs
neither root nor namespaces, and its ports are whatever was free.
"""

import socket
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from localcluster import clusters, components, machine, tools
from localcluster.components import Endpoints
from localcluster.places import Record, State
from localcluster.progress import step

LOOPBACK = IPv4Address("127.0.0.1")
# Only written into services; nothing routes it.
SERVICES = IPv4Network("10.96.0.0/16")


def up(state: State) -> None:
    machine.provide(machine.FOR_CONTROL_PLANE)
    programs = tools.ensure()
    with state.locked():
        record = state.read()
        if record and record.ready and clusters.alive(record):
            return
        clusters.clear(state)
        api_port, client_port, peer_port = _free_ports(3)
        at = Endpoints(
            api=LOOPBACK,
            api_port=api_port,
            etcd_client_port=client_port,
            etcd_peer_port=peer_port,
            services=SERVICES,
            reconciles_endpoints=False,
        )
        with clusters.starting(state), step(f"control plane {state.name}"):
            clusters.prepare(state, at, [LOOPBACK, SERVICES[1]])
            record = Record(kind="control-plane", block="", server=at.server)
            plan = components.control_plane(state, programs / "node", at)
            record = clusters.launch(state, plan, programs, record, isolate=False)
            api = clusters.start_control_plane(state, at.server)
            clusters.await_ready(state, "The first service account", api.default_account)
            state.write(replace(record, ready=True))


def _free_ports(count: int) -> list[int]:
    """Held together while they are chosen, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind((str(LOOPBACK), 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
