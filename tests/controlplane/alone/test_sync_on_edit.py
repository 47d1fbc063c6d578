"""What an edit or Sync Now wakes: the operator's resync is as long as a user's, so what happens sooner was woken."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.controlplane.synced import CONDITION, Store, printing, sources, sync_status

EDIT_SECONDS = 5.0
"""Within so long an edit of a labelled ConfigMap is in PostgreSQL."""


@pytest.fixture(scope="module")
def calm(plane: ControlPlane) -> Iterator[Operator]:
    """An operator whose resync is as long as a user's, so that what happens sooner has been woken."""
    with Operator(plane, RESYNC_SECONDS="60") as operator:
        yield operator.lead()
        operator.terminate()


def test_an_edited_config_map_is_in_postgres_within_five_seconds(
    plane: ControlPlane, ns: str, store: Store, calm: Operator
) -> None:
    """Auto-sync on change: pushes the updated definition to Postgres whenever you save one."""
    plane.apply(
        harness.definitions(ns, "defs", label="main", greet=printing("greet", "one")),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    synced = plane.await_condition(ns, CONDITION, "True", "Synced")
    assert synced["message"] == "1 definitions and settings of 1 source are synced"
    assert store.printed("greet") == "one"
    for content in ("two", "three"):
        began = time.monotonic()
        plane.apply(harness.definitions(ns, "defs", label="main", greet=printing("greet", content)))
        eventually(f"'{content}' is stored", lambda: store.printed("greet") == content, seconds=EDIT_SECONDS)  # noqa: B023
        print(f"edit to row: {time.monotonic() - began:.1f} s")
    plane.apply(harness.definitions(ns, "defs", label="main", other=printing("other", "four")))
    eventually("the old one is taken back", lambda: store.printed("greet") is None, seconds=EDIT_SECONDS)
    assert store.printed("other") == "four"


def test_sync_now_puts_back_what_somebody_else_wrote(
    plane: ControlPlane, ns: str, store: Store, calm: Operator
) -> None:
    plane.apply(
        harness.definitions(ns, "defs", label="main", a=printing("a", "one")),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    plane.await_condition(ns, CONDITION, "True", "Synced")
    store.execute("UPDATE orchestrations SET definition = jsonb_set(definition, '{steps,0,print_content}', '\"ui\"')")
    before = sync_status(plane, ns)
    plane.apply(harness.definitions(ns, "defs", label="main", a=printing("a", "one"), b="# nothing new\n"))
    store.execute("UPDATE synced_definitions SET source = source")
    assert store.printed("a") == "ui"
    plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.SYNC_NOW_ANNOTATION}=now")
    eventually("it is put back", lambda: store.printed("a") == "one", seconds=EDIT_SECONDS)
    eventually("it is told", lambda: sync_status(plane, ns).get("syncNow") == "now", seconds=EDIT_SECONDS)
    assert sync_status(plane, ns)["lastSyncTime"] >= before["lastSyncTime"]
