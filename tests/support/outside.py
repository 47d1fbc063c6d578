"""Where servers of a test that pods shall reach have to listen: this machine's end of the link to the local cluster."""

from __future__ import annotations

import socket


def address_for_pods(cluster_address: str) -> str:
    """Return the address of this machine from which it reaches a Service, and at which pods reach this machine.

    Args:
        cluster_address: address of any Service of the local cluster.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((cluster_address, 9))  # sends nothing: the kernel looks for the route
        return str(probe.getsockname()[0])
