"""The operator syncs definitions from ConfigMaps and Secrets into PostgreSQL, and tells what became of it.

What the configuration page says in Auto-sync on change and in Sync Now is shown here and in alone/test_sync_on_edit.py.
"""

from __future__ import annotations

import json
import time

from synapse_operator import naming
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Operator, eventually
from tests.controlplane.synced import CONDITION, Store, printing, secret, sources, sync_status
from tests.support.servers import PostgresServer


def test_model_keys_and_tokens_come_from_a_secret(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    keys = "openai_key: sk-hidden-word\nmodel: gpt\nworker_concurrency: 7\n"
    crm = "name: crm\nserver_type: remote\nurl: https://example.com\ntoken: hidden-token\n"
    plane.apply(secret(ns, "keys", settings=keys, crm=crm), harness.scale(ns, sync=sources("secret:keys")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.settings() == {
        "openai_key": "sk-hidden-word",
        "model": "gpt",
        "worker_concurrency": 7,
        "mcp_token.crm": "hidden-token",
    }
    plane.apply(secret(ns, "keys", settings="openai_key: sk-hidden-word-2\n  model: x\n"))
    refused = plane.await_condition(ns, CONDITION, "False", "DocumentsRefused")
    plane.apply(secret(ns, "keys", settings=keys.replace("hidden-word", "rotated")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.settings() == {"openai_key": "sk-rotated", "model": "gpt", "worker_concurrency": 7}
    shown = plane.kubectl("get", "sscale,events", "-n", ns, "-o", "yaml") + operator.log + json.dumps(refused)
    assert "hidden" not in shown
    assert "rotated" not in shown


def test_what_is_wrong_is_told_with_key_and_line_and_the_rest_is_stored(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    bad = "id: bad\nsteps:\n- {id: s, type: print, print_content: x, next_step_id: nowhere}\n"
    plane.apply(
        harness.definitions(ns, "defs", a=printing("good", "one") + "---\n" + bad, b="openai_key: sk\n"),
        harness.scale(ns, sync=sources("cm:defs")),
    )
    condition = plane.await_condition(ns, CONDITION, "False", "DocumentsRefused")
    assert "1 definitions and settings of 1 source are synced; 2 errors" in condition["message"]
    assert store.printed("good") == "one"
    status = sync_status(plane, ns)
    assert status["totalSynced"] == 1
    first, second = status["errors"]
    assert (first["source"], first["key"], first["line"]) == ("ConfigMap defs", "a.yaml", 5)
    assert "'nowhere', which is no step" in first["message"]
    assert (second["key"], second["line"]) == ("b.yaml", 1)
    assert second["message"] == "The setting openai_key is a secret: put it into a Secret."
    plane.apply(harness.definitions(ns, "defs", a=printing("good", "one")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert "errors" not in sync_status(plane, ns)


def test_a_source_that_is_missing_is_named_and_what_came_from_it_stays(
    plane: ControlPlane, ns: str, store: Store, operator: Operator
) -> None:
    plane.apply(
        harness.definitions(ns, "one", a=printing("a", "x")),
        harness.definitions(ns, "two", b=printing("b", "y")),
        harness.scale(ns, sync=sources("cm:one", "cm:two")),
    )
    plane.await_condition(ns, CONDITION, "True", "Synced")
    plane.kubectl("delete", "configmap", "one", "-n", ns)
    condition = plane.await_condition(ns, CONDITION, "False", "SourceNotFound")
    assert "ConfigMap one: It does not exist in this namespace; create it" in condition["message"]
    (error,) = sync_status(plane, ns)["errors"]
    assert error["source"] == "ConfigMap one"
    assert (store.printed("a"), store.printed("b")) == ("x", "y")
    plane.apply(harness.scale(ns, sync=sources("cm:two")))
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert (store.printed("a"), store.printed("b")) == (None, "y")
    plane.apply(harness.scale(ns, sync=sources()))
    plane.await_condition(ns, CONDITION, "True", "NoSources")
    eventually("everything is taken back", lambda: store.printed("b") is None)
    eventually("the figures go", lambda: sync_status(plane, ns) == {})


def test_without_auto_only_the_annotation_syncs(plane: ControlPlane, ns: str, store: Store, operator: Operator) -> None:
    """Auto-sync on change: when disabled, you must click Sync Now after every change."""
    plane.apply(
        harness.definitions(ns, "defs", label="main", a=printing("a", "one")),
        harness.scale(ns, sync=sources("cm:defs", auto=False)),
    )
    plane.await_condition(ns, CONDITION, "Unknown", "SyncNotAsked")
    looks = operator.reconciles()
    eventually("some looks", lambda: operator.reconciles() >= looks + 3)
    assert store.printed("a") is None

    def ask(value: str) -> None:
        plane.kubectl("annotate", "sscale", "main", "-n", ns, f"{naming.SYNC_NOW_ANNOTATION}={value}", "--overwrite")
        eventually(f"sync {value} is done", lambda: sync_status(plane, ns).get("syncNow") == value)

    ask("1")
    plane.await_condition(ns, CONDITION, "True", "Synced")
    assert store.printed("a") == "one"
    plane.apply(harness.definitions(ns, "defs", label="main", a=printing("a", "two")))
    looks = operator.reconciles()
    eventually("some looks", lambda: operator.reconciles() >= looks + 3)
    assert store.printed("a") == "one"
    ask("2")
    assert store.printed("a") == "two"


def test_a_large_sync_holds_up_no_other_scale(
    plane: ControlPlane, ns: str, store: Store, operator: Operator, postgres_server: PostgresServer
) -> None:
    many = "".join(
        f"---\nid: o{number}\nsteps:\n- {{id: t, type: transform, transform_code: 'result = {number}'}}\n"
        for number in range(4000)
    )
    other = f"{ns}-other"
    plane.apply(harness.namespace(other), harness.secret(other, "redis://127.0.0.1:1", postgres_server.new_database()))
    plane.apply(harness.definitions(ns, "defs", many=many))
    plane.apply(harness.scale(ns, sync=sources("cm:defs")))
    began = time.monotonic()
    plane.apply(harness.scale(other))
    plane.await_condition(other, "ChildrenApplied", "True", seconds=3)
    beside = time.monotonic() - began
    plane.await_condition(ns, CONDITION, "True", "Synced", seconds=60)
    print(f"a scale beside a sync of 4,000: {beside:.1f} s; the sync: {time.monotonic() - began:.1f} s")
    assert sync_status(plane, ns)["totalSynced"] == 4000
    plane.kubectl("delete", "namespace", other, "--wait=false")
