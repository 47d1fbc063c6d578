"""Address ranges and names of a node's network, chosen so that clusters live side by side.

Pure: what is taken on this machine is told by the caller. A name leads to the
same range each time as long as it is free, so an address seen in a log stays
valid over a restart.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from localcluster.errors import ClusterError

# The middle of 10/8 is rarely used by routers and container engines.
PREFERRED: Sequence[IPv4Network] = [IPv4Network((f"10.{second}.0.0", 16)) for second in range(64, 192)]
# For machines where a private network takes all of 10/8; container engines like this range too.
SPARE: Sequence[IPv4Network] = [IPv4Network((f"172.{second}.0.0", 16)) for second in range(18, 32)]


@dataclass(frozen=True)
class Addresses:
    """How one /16 is divided."""

    block: IPv4Network

    @property
    def services(self) -> IPv4Network:
        return next(self.block.subnets(new_prefix=20))

    @property
    def link(self) -> IPv4Network:
        """Between this machine and the node."""
        return IPv4Network((self.block.network_address + (64 << 8), 30))

    @property
    def pods(self) -> IPv4Network:
        return list(self.block.subnets(new_prefix=17))[1]

    @property
    def kubernetes(self) -> IPv4Address:
        """The API server's service address, by rule the first one."""
        return self.services[1]

    @property
    def host(self) -> IPv4Address:
        return self.link[1]

    @property
    def node(self) -> IPv4Address:
        return self.link[2]


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def choose(name: str, taken: Iterable[IPv4Network]) -> Addresses:
    """The first free range, searched from a place that the name decides."""
    used = list(taken)
    start = int(digest(name)[:8], 16) % len(PREFERRED)
    for candidate in (*PREFERRED[start:], *PREFERRED[:start], *SPARE):
        if not any(candidate.overlaps(network) for network in used):
            return Addresses(candidate)
    raise ClusterError(
        "No private address range is free on this machine, remove a route to 10.0.0.0/8 or 172.16.0.0/12."
    )


def link_name(name: str) -> str:
    """The host's end of the link; a device name has 15 characters at most."""
    return f"syn-{digest(name)[:8]}"
