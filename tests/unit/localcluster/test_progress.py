"""The arithmetic of progress, and how it is said."""

import pytest

from localcluster.progress import Step, duration, remaining
from localcluster.tools import compile_progress


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s")],
)
def test_a_duration_is_said_as_a_person_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_is_left_follows_from_the_pace() -> None:
    assert remaining(250, 1000, 60) == pytest.approx(180)


@pytest.mark.parametrize(("done", "total", "elapsed"), [(0, 100, 60), (5, 0, 60), (5, 100, 1)])
def test_nothing_is_foretold_from_too_little(done: int, total: int, elapsed: float) -> None:
    assert remaining(done, total, elapsed) is None


def test_more_than_was_expected_leaves_nothing() -> None:
    assert remaining(120, 100, 60) == 0


def test_a_compilation_is_counted_in_packages() -> None:
    step = Step("Kubernetes")
    assert compile_progress(5, 0, step) == "5 packages"
    assert compile_progress(5, 20, step) == "5 of 20 packages"
    step.started -= 30
    assert compile_progress(5, 20, step) == "5 of 20 packages, about 1 min 30 s left"
