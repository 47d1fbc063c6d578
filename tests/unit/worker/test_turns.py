"""Weighted fair turns among the queues of one worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synapse_worker.queueing.turns import Turns


def one_by_one(turns: Turns, queues: Sequence[str], count: int) -> list[str]:
    """Take `count` jobs while all queues are full and one slot is free at a time; returns the queues in order."""
    taken = []
    for _ in range(count):
        queue, most = turns.share(1, queues)[0]
        assert most == 1
        turns.took(queue, 1)
        taken.append(queue)
    return taken


def given_by(turns: Turns, slots: int, full: Sequence[str]) -> Counter[str]:
    """Fill `slots` from full queues, as the claim loop does."""
    got: Counter[str] = Counter()
    while (left := slots - got.total()) > 0:
        for queue, most in turns.share(left, full):
            jobs = min(most, slots - got.total())
            turns.took(queue, jobs)
            got[queue] += jobs
    return got


def test_equal_queues_take_turns() -> None:
    assert one_by_one(Turns(lambda _: 1), ["a", "b", "c"], 6) == ["a", "b", "c", "a", "b", "c"]


def test_a_weight_is_a_share_and_its_turns_are_spread() -> None:
    firsts = one_by_one(Turns({"a": 5, "b": 1, "c": 1}.__getitem__), ["a", "b", "c"], 70)
    assert Counter(firsts) == {"a": 50, "b": 10, "c": 10}
    assert all(Counter(firsts[start : start + 14])["a"] >= 5 for start in range(56))


@given(
    weights=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10), min_size=1),
    batches=st.lists(st.integers(1, 50), min_size=60, max_size=60),
)
def test_whatever_is_free_at_a_time_the_shares_are_those_of_the_weights(
    weights: Mapping[str, int], batches: list[int]
) -> None:
    turns, got = Turns(weights.__getitem__), Counter[str]()
    for slots in batches:
        got += given_by(turns, slots, list(weights))
    for queue, weight in weights.items():
        assert abs(got[queue] - sum(batches) * weight / sum(weights.values())) <= 50


def test_many_slots_are_shared_out_at_once() -> None:
    turns = Turns({"a": 1, "b": 3}.__getitem__)
    assert turns.share(40, ["a", "b"]) == [("a", 10), ("b", 30)]


def test_with_more_queues_than_slots_each_gets_one_in_its_turn() -> None:
    turns, queues = Turns(lambda _: 1), [f"q{number}" for number in range(30)]
    got = sum((given_by(turns, 10, queues) for _ in range(3)), Counter[str]())
    assert got == dict.fromkeys(queues, 1)


def test_an_idle_queue_may_give_whatever_it_has() -> None:
    turns = Turns(lambda _: 1)
    assert turns.share(10, ["a", "b", "c"], idle={"c"}) == [("a", 5), ("b", 5), ("c", 10)]


def test_time_without_jobs_saves_nothing_up() -> None:
    turns = Turns(lambda _: 1)
    for _ in range(100):
        turns.share(10, ["a", "b"], idle={"a"})
        turns.took("b", 10)
    assert one_by_one(turns, ["a", "b"], 30)[10:] == ["a", "b"] * 10  # level after one batch, not after a hundred


def test_a_queue_that_comes_later_takes_its_share_from_then_on() -> None:
    turns = Turns(lambda _: 1)
    one_by_one(turns, ["a"], 100)
    assert Counter(one_by_one(turns, ["a", "new"], 20)) == {"a": 10, "new": 10}


def test_going_away_and_coming_back_gains_nothing() -> None:
    turns = Turns(lambda _: 1)
    turns.share(10, ["a", "b"])
    turns.took("a", 10)
    turns.share(10, ["b"])
    assert one_by_one(turns, ["a", "b"], 10) == ["b"] * 10


def test_a_weight_may_change_between_turns() -> None:
    weights = {"a": 1, "b": 1}
    turns = Turns(weights.__getitem__)
    one_by_one(turns, ["a", "b"], 2)
    weights["b"] = 9
    assert Counter(one_by_one(turns, ["a", "b"], 100))["b"] == pytest.approx(90, abs=1)
