"""Address ranges: divided without overlap, chosen without collision, the same for the same name."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcluster.addresses import PREFERRED, SPARE, Addresses, choose, link_name
from localcluster.errors import ClusterError

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,29}", fullmatch=True)
CANDIDATES = [*PREFERRED, *SPARE]


@given(st.sampled_from(CANDIDATES))
def test_the_parts_of_a_block_lie_in_it_and_do_not_overlap(block: IPv4Network) -> None:
    addresses = Addresses(block)
    parts = [addresses.services, addresses.link, addresses.pods]
    assert all(part.subnet_of(block) for part in parts)
    assert not any(one.overlaps(other) for one in parts for other in parts if one is not other)
    assert {addresses.host, addresses.node} == set(addresses.link.hosts())


def test_the_api_server_has_the_first_service_address() -> None:
    assert str(Addresses(IPv4Network("10.90.0.0/16")).kubernetes) == "10.90.0.1"


@given(NAMES)
def test_a_name_leads_to_the_same_block_each_time(name: str) -> None:
    assert choose(name, []) == choose(name, [])


@given(NAMES, st.sets(st.sampled_from(CANDIDATES), max_size=len(CANDIDATES) - 1))
def test_a_taken_block_is_never_chosen(name: str, taken: set[IPv4Network]) -> None:
    assert choose(name, taken).block not in taken


def test_a_route_to_a_part_of_a_block_takes_it() -> None:
    first = choose("synapse", []).block
    part = next(first.subnets(new_prefix=30))
    assert choose("synapse", [part]).block != first


def test_a_network_that_takes_all_of_10_leaves_the_spare_ones() -> None:
    assert choose("synapse", [IPv4Network("10.0.0.0/8")]).block in SPARE


def test_a_machine_without_a_free_block_is_told_so() -> None:
    with pytest.raises(ClusterError, match="No private address range is free"):
        choose("synapse", CANDIDATES)


@given(NAMES)
def test_a_device_name_fits_the_kernel(name: str) -> None:
    assert len(link_name(name)) <= 15
