"""Weighted round robin among the queues of one worker."""

from __future__ import annotations

from collections import Counter

from synapse_worker.queueing.turns import Turns


def test_equal_queues_take_turns() -> None:
    turns = Turns(["a", "b", "c"], lambda _: 1)
    assert [turns.next()[0] for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_a_weight_is_a_share_and_its_turns_are_spread() -> None:
    weights = {"a": 5, "b": 1, "c": 1}
    turns = Turns(list(weights), weights.__getitem__)
    firsts = [turns.next()[0] for _ in range(70)]
    assert Counter(firsts) == {"a": 50, "b": 10, "c": 10}
    assert firsts[:7] == ["a", "a", "b", "a", "c", "a", "a"]


def test_every_queue_is_asked_in_every_turn() -> None:
    turns = Turns(["a", "b", "c"], lambda queue: 3 if queue == "b" else 1)
    assert all(sorted(turns.next()) == ["a", "b", "c"] for _ in range(10))


def test_a_weight_may_change_between_turns() -> None:
    weights = {"a": 1, "b": 1}
    turns = Turns(list(weights), weights.__getitem__)
    turns.next()
    weights["b"] = 9
    assert Counter(turns.next()[0] for _ in range(100))["b"] >= 85
