"""What the page says and this release does not do is refused, or documented as not read yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_operator.api import crd
from synapse_operator.api.scale import SCALE_RESOURCE
from synapse_worker.cli import cli
from synapse_worker.contract import BY_NAME
from tests.page.not_built_yet import NOT_BUILT_YET, NotBuiltYet


@pytest.mark.parametrize("missing", NOT_BUILT_YET, ids=lambda each: f"{each.section}: {each.statement}"[:60])
def test_it_is_refused_or_documented(missing: NotBuiltYet) -> None:
    """Each statement in not_built_yet.py."""
    assert missing.issue in "BCDE"
    assert missing.variables or missing.field or missing.command
    page = Path("docs/environment.md").read_text(encoding="utf-8").splitlines()
    for name in missing.variables:
        (line,) = [line for line in page if line.startswith(f"| {name} |")]
        assert "*not read yet*" in line
        assert not BY_NAME[name].read
    if missing.field:
        assert_no_field(missing.field)
    if missing.command:
        assert missing.command not in cli.commands


def test_every_variable_that_is_not_read_is_listed() -> None:
    """A variable of the page that nobody reads yet belongs to a statement in not_built_yet.py."""
    ours = {"SYNAPSE_DATA_DIR"}  # beyond the page
    listed = {name for missing in NOT_BUILT_YET for name in missing.variables}
    assert {variable.name for variable in BY_NAME.values() if not variable.read} - ours == listed


def assert_no_field(path: str) -> None:
    """The schema lacks the field and keeps no unknown ones, so kubectl refuses it; tests/controlplane shows that."""
    node = crd.structural_schema(SCALE_RESOURCE.spec)
    *parents, name = path.split(".")
    for parent in parents:
        node = node["properties"][parent]
    assert name not in node["properties"]
    assert "x-kubernetes-preserve-unknown-fields" not in node
