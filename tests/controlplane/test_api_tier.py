"""The V2 API tier of a scale, against a real control plane and a real database: its objects, its keys, its end."""

from __future__ import annotations

import base64
import json

from synapse_operator import naming
from synapse_worker.store.api_keys import hash_of
from tests.controlplane import harness
from tests.controlplane.harness import ControlPlane, Json, Operator, eventually
from tests.controlplane.stores import Stores

NAME = naming.api_name("main")
WORD = "hidden-token-word"


def keys(ns: str, **entries: object) -> Json:
    data = {name: base64.b64encode(json.dumps(value).encode()).decode() for name, value in entries.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": ns}, "data": data}


def stored(stores: Stores) -> dict[str, str | None]:
    return {row["hash"]: row["tenant_id"] for row in stores.ask("SELECT hash, tenant_id FROM api_keys")}


def test_it_comes_with_its_keys_and_goes(plane: ControlPlane, ns: str, stores: Stores, operator: Operator) -> None:
    api = {"enabled": True, "replicas": 3, "keysSecretRef": {"name": "keys"}, "service": {"port": 80}}
    plane.apply(harness.scale(ns, api=api))
    told = plane.await_condition(ns, "ApiReady", "False", "SecretNotFound")
    assert told["message"].startswith("api.keysSecretRef: Secret keys does not exist")
    plane.apply(keys(ns, ci={"token": WORD}, acme={"token": f"{WORD}-2", "tenantId": "Acme & Söhne"}))
    eventually("the keys", lambda: stored(stores) == {hash_of(WORD): None, hash_of(f"{WORD}-2"): "Acme & Söhne"})

    deployment = plane.get(ns, "deployment", NAME)
    assert deployment["spec"]["replicas"] == 3
    assert deployment["spec"]["template"]["spec"]["containers"][0]["args"] == ["api"]
    assert plane.get(ns, "service", NAME)["spec"]["ports"][0]["port"] == 80
    assert plane.get(ns, "pdb", NAME)["spec"]["maxUnavailable"] == 1
    plane.await_condition(ns, "ApiReady", "False", "ApiNotReady")
    plane.make_pods_ready(ns)
    plane.await_condition(ns, "Ready", "True", "WorkersReady")
    status = plane.get(ns, "sscale", "main")["status"]
    assert status["api"] == {"desired": 3, "ready": 3, "service": NAME, "port": 80, "keys": 2}
    assert status["workers"]["summary"] == "1/1"

    # Another Secret: what vanished is revoked, what is no key is said, without its words.
    plane.kubectl("replace", "-f", "-", stdin=json.dumps(keys(ns, ci={"token": WORD}, bad={"tokens": WORD})))
    eventually("one is revoked", lambda: stored(stores) == {hash_of(WORD): None})
    plane.await_condition(ns, "ApiReady", "False", "ApiKeysRefused")
    status = plane.get(ns, "sscale", "main")["status"]
    assert status["api"]["keyErrors"][0].startswith("entry bad: it has a field that is not known")
    assert WORD not in json.dumps(plane.get(ns, "sscale", "main"))
    assert WORD not in operator.log

    # Drift is repaired, and nothing is written when nothing is to be done.
    plane.kubectl("replace", "-f", "-", stdin=json.dumps(keys(ns, ci={"token": WORD})))
    plane.kubectl("scale", "deployment", NAME, "-n", ns, "--replicas=1")
    eventually("three pods", lambda: plane.get(ns, "deployment", NAME)["spec"]["replicas"] == 3)

    plane.apply(harness.scale(ns))
    for kind in ("deployment", "service", "pdb"):
        eventually(f"its {kind} goes", lambda kind=kind: not plane.get(ns, kind, NAME))
    eventually("its keys go", lambda: stored(stores) == {})
    plane.await_condition(ns, "ApiReady", "True", "ApiOff")
