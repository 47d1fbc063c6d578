"""The layout's one trap: our folder `operator/` must never stand in for the standard library's module."""

from __future__ import annotations

import operator
import sys
from pathlib import Path

import synapse_operator
import synapse_worker

ROOT = Path(__file__).resolve().parents[2]


def test_operator_is_the_standard_librarys() -> None:
    assert operator.__file__ is not None
    assert Path(operator.__file__).is_relative_to(Path(sys.base_prefix).resolve())
    assert operator.add(1, 2) == 3


def test_the_folders_of_the_packages_are_no_packages() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not (ROOT / "worker" / "__init__.py").exists()


def test_both_packages_are_those_of_this_checkout() -> None:
    assert Path(synapse_operator.__file__).is_relative_to(ROOT / "operator")
    assert Path(synapse_worker.__file__).is_relative_to(ROOT / "worker")


def test_the_lock_files_hold_no_address() -> None:
    for lock in (ROOT / "locks").glob("*.txt"):
        assert "://" not in lock.read_text(encoding="utf-8"), lock.name
