"""Where requests to addresses that users name may go: to the public Internet, and to what the operator's owner allows.

Pure rules over names and addresses; `egress` resolves names, asks here, and connects to what was allowed.
A worker stands inside the cluster, beside the stores, the API server and the cloud's metadata service, and a URL in an
API request must not make it a way to them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from synapse_worker.errors import ConfigurationError

Address = IPv4Address | IPv6Address

_PUBLIC_V6 = IPv6Network("2000::/3")
"""The only part of IPv6 that has been given out for global use."""
_NAT64 = IPv6Network("64:ff9b::/96")
_NOT_PUBLIC: tuple[IPv4Network | IPv6Network, ...] = (
    IPv4Network("192.0.0.0/24"),  # protocol assignments; a cloud's metadata service is among them
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv4Network("168.63.129.16/32"),  # a cloud's platform service, reachable from its machines only
    IPv6Network("2002::/16"),  # 6to4: any IPv4 address behind a relay
)
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be reached although it is not public: networks, and names whatever they resolve to (lower case)."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """Read a comma-separated list of CIDRs, addresses and host names, as in WEBHOOK_ALLOW.

        Raises:
            ConfigurationError: a part is neither.
        """
        networks: list[IPv4Network | IPv6Network] = []
        hosts: set[str] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(part))
            except ValueError:
                if _NUMBER.fullmatch(part.rpartition(".")[2]) or not _NAME.fullmatch(part):
                    raise ConfigurationError(
                        f"WEBHOOK_ALLOW names {part!r}; accepted: networks such as 10.1.0.0/16, addresses and host"
                        " names, comma-separated, without schemes and ports."
                    ) from None
                hosts.add(part.lower())
        return cls(tuple(networks), frozenset(hosts))

    def permits(self, host: str, address: Address) -> bool:
        """Whether a request to `host` may connect to `address`."""
        if host.lower().removesuffix(".") in self.hosts:
            return True
        behind = _behind(address)
        return _is_public(behind) or any(
            candidate in network for network in self.networks for candidate in (address, behind)
        )


def literal(host: str) -> Address | None:
    """Return the address that a URL's host is, None for a name.

    Raises:
        ValueError: it is an address in a form that programs read differently (octal, decimal, hexadecimal, short).
    """
    try:
        return ip_address(host)
    except ValueError:
        if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
            raise ValueError("it writes an address in a form that is not accepted") from None
        return None


def _behind(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _PUBLIC_V6:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in _NOT_PUBLIC)
