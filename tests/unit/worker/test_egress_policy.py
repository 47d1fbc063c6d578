"""Which addresses requests of users may reach."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from synapse_worker.egress_policy import Allowed, literal
from synapse_worker.errors import ConfigurationError

NOT_PUBLIC = (
    "0.0.0.0",  # noqa: S104 - nothing is bound
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.0.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:0:1::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_what_is_not_public_is_not_reached(address: str) -> None:
    assert not Allowed().permits("receiver.example", ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_public_is_reached(address: str) -> None:
    assert Allowed().permits("receiver.example", ip_address(address))


@pytest.mark.parametrize(
    ("allow", "host", "address", "permitted"),
    [
        ("10.1.0.0/16", "a", "10.1.2.3", True),
        ("10.1.0.0/16", "a", "10.2.2.3", False),
        ("10.1.0.0/16", "a", "::ffff:10.1.2.3", True),
        ("::ffff:0:0/96", "a", "10.1.2.3", False),
        ("127.0.0.1", "a", "127.0.0.1", True),
        ("127.0.0.1", "a", "127.0.0.2", False),
        ("fd00::/8, 10.0.0.0/8", "a", "fd00::1", True),
        ("hooks.internal", "hooks.internal", "10.1.2.3", True),
        ("Hooks.Internal", "hooks.internal.", "10.1.2.3", True),
        ("hooks.internal", "evil.hooks.internal", "10.1.2.3", False),
        ("hooks.internal", "hooks.internal.evil", "10.1.2.3", False),
        ("", "a", "10.1.2.3", False),
        (" , ", "a", "10.1.2.3", False),
    ],
)
def test_what_is_allowed(allow: str, host: str, address: str, permitted: bool) -> None:
    assert Allowed.parse(allow).permits(host, ip_address(address)) is permitted


@pytest.mark.parametrize(
    "part", ["10.0.0.0/99", "10.0.0.1/8", "http://hooks", "hooks:8080", "*.internal", "10.1", "0x7f.1", "a b", "-a"]
)
def test_a_part_that_is_neither_network_nor_name_is_named(part: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^WEBHOOK_ALLOW names ") as refused:
        Allowed.parse(f"10.0.0.0/8,{part}")
    assert repr(part) in str(refused.value)


@pytest.mark.parametrize("host", ["2130706433", "127.1", "0x7f.1", "0177.0.0.1", "0x7f000001", "1.2.3", "127.0.0.1."])
def test_addresses_in_unusual_forms_are_none(host: str) -> None:
    with pytest.raises(ValueError, match="not accepted"):
        literal(host)


@pytest.mark.parametrize("host", ["receiver", "receiver.example", "1.example", "a1", "xn--bcher-kva.example"])
def test_names_are_names(host: str) -> None:
    assert literal(host) is None


def test_addresses_are_addresses() -> None:
    assert literal("127.0.0.1") == ip_address("127.0.0.1")
    assert literal("::1") == ip_address("::1")
