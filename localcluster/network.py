"""The link between this machine and a node's network namespace.

One veth pair joins the two; the host's end routes the pods' and services' ranges
to the node. The node gets no default route: what a pod asks of the outside is
refused at once instead of being lost, on every machine alike. Ending the
namespace takes link and routes with it; `remove` is for what a kill left half way.
"""

import json
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from localcluster.addresses import Addresses, link_name
from localcluster.commands import run, succeeds, wait_for

NODE_DEVICE = "eth0"


def taken() -> Iterator[IPv4Network]:
    """Every network that this machine routes, besides the default one."""
    for route in json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"])):
        if route["dst"] != "default":
            yield _network(route["dst"])


def _network(text: str) -> IPv4Network:
    network = ip_network(text, strict=False)
    assert isinstance(network, IPv4Network)  # noqa: S101 - asked for with -4
    return network


def connect(name: str, pid: int, addresses: Addresses) -> None:
    device = link_name(name)
    prefix = addresses.link.prefixlen
    run(["ip", "link", "add", device, "type", "veth", "peer", "name", NODE_DEVICE, "netns", str(pid)])
    _batch(
        ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"],
        [
            f"address add {addresses.node}/{prefix} dev {NODE_DEVICE}",
            f"link set {NODE_DEVICE} up",
            # kube-proxy rewrites a service's address after the kernel looked for a route, so there must be one.
            f"route add {addresses.services} dev {NODE_DEVICE}",
        ],
    )
    _batch(
        ["ip", "-batch", "-"],
        [
            f"address add {addresses.host}/{prefix} dev {device}",
            f"link set {device} up",
            f"route add {addresses.services} via {addresses.node}",
            f"route add {addresses.pods} via {addresses.node}",
        ],
    )


def _batch(argv: list[str], lines: list[str]) -> None:
    run(argv, given="\n".join(lines) + "\n")


def remove(name: str) -> None:
    device = link_name(name)

    def gone() -> bool:
        # The kernel takes a dead namespace apart in its own time, so the device may vanish before it is deleted here.
        return not Path("/sys/class/net", device).exists() or succeeds(["ip", "link", "delete", device])

    wait_for(f"The removal of the link {device}", gone, seconds=10)
