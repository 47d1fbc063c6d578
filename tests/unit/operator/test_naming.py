"""Names, labels and hashes: legal for every legal name of a SynapseScale, and different where the things differ."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from synapse_operator import naming
from synapse_worker.contract import MAX_SHARDS

_LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
SCALE_NAMES = st.lists(_LABEL, min_size=1, max_size=12).map(".".join).filter(lambda name: len(name) <= 253)
"""What the API server accepts as the name of a custom resource: a DNS subdomain."""

SHARDS = st.integers(0, MAX_SHARDS - 1).map(str) | st.just("tenants")

DNS_LABEL_FROM_A_LETTER = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"[a-z0-9A-Z]([-_.a-z0-9A-Z]*[a-z0-9A-Z])?")
KEY = SecretStr("installation")


def _all_names(scale: str, shard: str) -> dict[str, str]:
    return {
        "account": naming.service_account_name(scale),
        "deployment": naming.deployment_name(scale, shard),
        "service": naming.metrics_service_name(scale),
        "config map": naming.config_map_name(scale, {"A": "1"}),
    }


@given(SCALE_NAMES, SHARDS)
def test_every_name_is_a_dns_label_of_at_most_63_characters(scale: str, shard: str) -> None:
    for what, name in _all_names(scale, shard).items():
        assert DNS_LABEL_FROM_A_LETTER.fullmatch(name), (what, name)
        assert len(name) <= 63, (what, name)


@given(SCALE_NAMES, SHARDS)
def test_a_pod_name_is_never_cut_to_a_host_name(scale: str, shard: str) -> None:
    longest_pod_name = f"{naming.deployment_name(scale, shard)}-{'0123456789'}-{'abcde'}"
    assert len(longest_pod_name) <= naming.POD_NAME_LENGTH


@given(SCALE_NAMES, SHARDS)
def test_the_children_of_a_scale_have_different_names(scale: str, shard: str) -> None:
    names = _all_names(scale, shard)
    assert len(set(names.values())) == len(names)


@given(SCALE_NAMES, SCALE_NAMES, SHARDS)
def test_two_scales_share_no_name(one: str, other: str, shard: str) -> None:
    assume(one != other)
    assert not set(_all_names(one, shard).values()) & set(_all_names(other, shard).values())
    assert naming.scale_label(one) != naming.scale_label(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a.b", "a-b"), ("a" * 60 + "x", "a" * 60 + "y"), ("a" * 253, "a" * 252), ("1a", "s-1a")],
)
def test_names_that_look_alike_when_shortened_stay_apart(one: str, other: str) -> None:
    assert not set(_all_names(one, "0").values()) & set(_all_names(other, "0").values())
    assert naming.scale_label(one) != naming.scale_label(other)


@given(SCALE_NAMES, SHARDS)
def test_labels_are_legal_values(scale: str, shard: str) -> None:
    for labels in (naming.child_labels(scale), naming.shard_selector(scale, shard)):
        for value in labels.values():
            assert len(value) <= 63
            assert LABEL_VALUE.fullmatch(value)


def test_a_name_begins_with_the_scale_so_that_people_find_it() -> None:
    assert naming.deployment_name("demo", "0").startswith("demo-worker-0-")
    assert naming.scale_label("demo.team") == "demo.team"


def test_names_are_the_same_in_every_release() -> None:
    """Another name would be another object: the old one, with its pods, would stay behind."""
    assert naming.service_account_name("demo") == "demo-workers-414878da"
    assert naming.deployment_name("demo", "0") == "demo-worker-0-6f35e35b"
    assert naming.metrics_service_name("demo") == "demo-metrics-1e5ba923"
    assert naming.shard_selector("demo", "0") == {
        "scale.synapseorch.com/scale": "demo",
        "scale.synapseorch.com/role": "worker",
        "scale.synapseorch.com/shard": "0",
    }


def test_a_shard_selector_narrows_the_scale_selector() -> None:
    assert naming.worker_selector("demo").items() <= naming.shard_selector("demo", "3").items()
    assert naming.shard_selector("demo", "3") != naming.shard_selector("demo", "30")


def test_the_config_map_is_named_by_its_content_alone() -> None:
    one = naming.config_map_name("demo", {"A": "1", "B": "2"})
    assert one == naming.config_map_name("demo", {"B": "2", "A": "1"})
    assert one != naming.config_map_name("demo", {"A": "1", "B": "3"})


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_a_content_hash_ignores_the_order_of_keys(data: dict[str, str]) -> None:
    assert naming.content_hash(data) == naming.content_hash(dict(reversed(data.items())))


def test_a_fingerprint_changes_with_the_secret_the_scale_and_the_key() -> None:
    def fingerprint(value: str = "pw", uid: str = "u1", key: SecretStr = KEY) -> str:
        return naming.secret_fingerprint({"REDIS_URL": SecretStr(value)}, scale_uid=uid, key=key)

    different = {fingerprint(), fingerprint(value="pw2"), fingerprint(uid="u2"), fingerprint(key=SecretStr("other"))}
    assert len(different) == 4
    assert fingerprint() == fingerprint()


def test_a_fingerprint_tells_where_one_value_ends() -> None:
    def fingerprint(**values: str) -> str:
        return naming.secret_fingerprint(
            {name: SecretStr(value) for name, value in values.items()}, scale_uid="u", key=KEY
        )

    assert fingerprint(a="xb", b="y") != fingerprint(a="x", b="by")


def test_a_selector_is_written_in_order() -> None:
    assert naming.selector_text({"b": "2", "a": "1"}) == "a=1,b=2"
