"""Which queue a job goes to: routes, isolation, one shard, and the spread over many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.routing import Route, Topology, shard_of_job, why_no_queue

KEYS = st.text(st.characters(exclude_categories=[]), max_size=60)
"""Any text, lone surrogates included: ids come from other programs."""
MANY = [f"run_{number:012x}_17000000{number:05}" for number in range(4_000)]


def shard(topology: Topology, key: str = "run_1", tenant_id: str = "acme", priority: int = 0) -> str:
    return shard_of_job(topology, key=key, tenant_id=tenant_id, priority=priority)


@given(key=KEYS, tenant_id=KEYS, priority=st.integers(0, 9))
def test_one_shard_is_default(key: str, tenant_id: str, priority: int) -> None:
    assert shard(Topology(), key, tenant_id, priority) == "default"


@given(key=KEYS, shards=st.integers(2, 64))
def test_a_job_stays_where_it_is_or_goes_to_the_new_shard(key: str, shards: int) -> None:
    before, after = shard(Topology(shards), key), shard(Topology(min(64, shards + 1)), key)
    assert 0 <= int(before) < shards
    assert after in (before, str(shards))


@given(key=KEYS, shards=st.integers(2, 64), tenants=st.tuples(KEYS, KEYS))
def test_the_same_key_goes_to_the_same_shard_whosever_it_is(key: str, shards: int, tenants: tuple[str, str]) -> None:
    assert len({shard(Topology(shards), key, tenant) for tenant in tenants}) == 1


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 20, 63])
def test_growing_by_one_moves_one_share(shards: int) -> None:
    moved = sum(shard(Topology(shards), key) != shard(Topology(shards + 1), key) for key in MANY)
    if shards == 1:  # `default` is drained, everything is in numbered shards from then on
        assert moved == len(MANY)
    else:
        share = len(MANY) / (shards + 1)
        assert abs(moved - share) < 6 * share**0.5


@pytest.mark.parametrize("shards", [2, 4, 64])
def test_jobs_are_spread_evenly(shards: int) -> None:
    counts = Counter(shard(Topology(shards), key) for key in MANY)
    share = len(MANY) / shards
    assert set(counts) == {str(number) for number in range(shards)}
    assert all(abs(count - share) < 6 * share**0.5 for count in counts.values())


def test_the_places_are_the_same_in_every_process_and_release() -> None:
    assert [shard(Topology(4), key) for key in ("run_1", "run_2", "run_3", "Größe", "chat_\ud800")] == [
        "0",
        "1",
        "2",
        "1",
        "2",
    ]


@given(key=KEYS, shards=st.integers(2, 64), data=st.data())
def test_a_routed_shard_gets_nothing_else(key: str, shards: int, data: st.DataObject) -> None:
    routed = data.draw(st.integers(0, shards - 1))
    topology = Topology(shards, routes=(Route(routed, tenants=("vip",)),))
    assert shard(topology, key, "vip") == str(routed)
    assert shard(topology, key, "other") != str(routed)


def test_the_first_route_that_matches_wins() -> None:
    routes = (Route(1, tenants=("a", "b"), min_priority=5), Route(2, tenants=("a",)), Route(3, min_priority=8))
    topology = Topology(5, routes=routes)
    assert shard(topology, tenant_id="a", priority=5) == "1"
    assert shard(topology, tenant_id="a", priority=4) == "2"
    assert shard(topology, tenant_id="c", priority=8) == "3"
    assert shard(topology, tenant_id="b", priority=4) in ("0", "4")


def test_routes_come_before_isolation() -> None:
    topology = Topology(4, isolation=True, routes=(Route(1, tenants=("a",)),))
    assert shard(topology, tenant_id="a") == "1"
    assert shard(topology, tenant_id="b") == "b"


@given(tenant_id=KEYS, shards=st.integers(1, 64))
def test_isolation_is_the_tenants_queue_where_it_can_have_one(tenant_id: str, shards: int) -> None:
    at = shard(Topology(shards, isolation=True), tenant_id=tenant_id)
    assert at == (shard(Topology(shards)) if why_no_queue(tenant_id) else tenant_id)


def test_routes_that_name_every_shard_lose_nothing() -> None:
    topology = Topology(2, routes=(Route(0, tenants=("a",)), Route(1, tenants=("b",))))
    assert shard(topology, tenant_id="c") in ("0", "1")


@pytest.mark.parametrize(
    ("tenant_id", "reason"),
    [
        ("0", "it is the name of a shard (0 to 63)"),
        ("63", "it is the name of a shard (0 to 63)"),
        ("a{b", "it holds a brace"),
        ("}", "it holds a brace"),
        ("acme:health-check", "it ends in :health-check, as keys of arq do"),
        ("", "it has not 1 to 255 characters"),
        ("x" * 256, "it has not 1 to 255 characters"),
        *((tenant, "") for tenant in ("acme", "64", "007", "default", "tenants", "Größe: $(X) / 'q'", "x" * 255)),
    ],
)
def test_which_tenants_can_have_a_queue(tenant_id: str, reason: str) -> None:
    assert why_no_queue(tenant_id) == reason
