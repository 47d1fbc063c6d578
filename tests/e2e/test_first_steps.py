"""What a user does first: two shards, definitions from a ConfigMap, a tenant, a run, an edit."""

from __future__ import annotations

import asyncio
import json

import pytest

from synapse_operator import naming
from synapse_worker.store.database import Database
from tests.e2e.conftest import Place
from tests.support.kube import Object, a_scale, a_tenant, apply, eventually, get, items, kubectl

NAME = "first"


def greeting(text: str) -> Object:
    """A ConfigMap with one orchestration of one step, which prints `text`."""
    step = {"id": "say", "type": "print", "print_content": text, "output_key": "said"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": {naming.SYNC_LABEL: NAME}},
        "data": {"greet.json": json.dumps({"id": "greet", "name": "Greet", "entry_step_id": "say", "steps": [step]})},
    }


def stores(place: Place) -> Object:
    """A Secret that leads to databases of the namespace's stores that nobody else uses."""
    urls = {"redis": place.redis_url.rsplit("/", 1)[0] + "/1", "postgres": place.postgres_url.rsplit("/", 1)[0]}
    data = {"redis": urls["redis"], "postgres": f"{urls['postgres']}/{NAME}"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}, "stringData": data}


def scale() -> Object:
    """A SynapseScale with two shards and the ConfigMap as its source."""
    found = a_scale(NAME, replicas=1)
    found["spec"] |= {
        "redis": {"urlSecretRef": {"name": NAME, "key": "redis"}},
        "postgres": {"urlSecretRef": {"name": NAME, "key": "postgres"}},
        "queue": {"shards": 2},
        "sync": {"sources": [{"configMapRef": {"name": NAME}}]},
    }
    return found


def pods(place: Place) -> dict[str, tuple[str, int]]:
    """The scale's pods: name -> shard and restarts."""
    found = items("pods", "-n", place.namespace, "-l", f"{naming.SCALE_LABEL}={NAME}")
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["labels"][naming.SHARD_LABEL],
            pod["status"]["containerStatuses"][0]["restartCount"],
        )
        for pod in found
    }


def said(place: Place, pod: str) -> str:
    """Enqueue a run in a pod, wait for its end, and return what its step printed."""
    (run,) = json.loads(
        kubectl(
            *("exec", pod, "-n", place.namespace, "--"),
            *("synapse-worker", "enqueue", "greet", "--tenant=acme", "--wait=20", "-o", "json"),
        )
    )
    assert run["status"] == "completed"
    assert run["tenant_id"] == "acme"
    return str(run["state"]["said"])


def works(place: Place) -> None:
    """The whole of it."""
    apply(
        stores(place), greeting("one"), scale(), a_tenant("acme", NAME, maxConcurrentRuns=5), namespace=place.namespace
    )
    kubectl("wait", "--for=condition=Ready", f"sscale/{NAME}", "-n", place.namespace, "--timeout=60s")
    kubectl("wait", "--for=condition=Ready", "stenant/acme", "-n", place.namespace, "--timeout=30s")
    kubectl("wait", "--for=condition=DefinitionsSynced", f"sscale/{NAME}", "-n", place.namespace, "--timeout=30s")
    shards = {"0": "Active", "1": "Active"}

    def active() -> bool:
        status = get("sscale", NAME, "-n", place.namespace).get("status", {})
        return {each["name"]: each["state"] for each in status.get("shards", [])} == shards

    eventually("producers are told of both shards", active, seconds=30)
    header, row = kubectl("get", "sscale", NAME, "-n", place.namespace).splitlines()
    assert header.split()[:4] == ["NAME", "READY", "SHARDS", "WORKERS"]
    assert row.split()[:4] == [NAME, "True", "2", "2/2"]
    header, row = kubectl("get", "stenant", "acme", "-n", place.namespace).splitlines()
    assert header.split() == [
        *("NAME", "TENANT", "SCALE", "QUEUE", "SERVED-BY"),
        *("QUEUED", "ACTIVE", "MAX-QUEUED", "MAX-CONCURRENT", "READY", "AGE"),
    ]
    assert row.split()[:-1] == ["acme", "acme", NAME, "0..1", "shards", "0", "0", "1000", "5", "True"]
    before = pods(place)
    assert sorted(before.values()) == [("0", 0), ("1", 0)]
    pod = next(iter(before))
    assert said(place, pod) == "one"
    apply(greeting("two"), namespace=place.namespace)
    eventually("the edit is what runs do", lambda: said(place, pod) == "two", seconds=20)
    assert pods(place) == before


@pytest.mark.timeout(200)
async def test_shards_sync_and_a_tenant_in_real_pods(place: Place, cluster_database: Database) -> None:
    await cluster_database.execute(f"CREATE DATABASE {NAME}")
    try:
        await asyncio.to_thread(works, place)
    finally:
        kubectl("delete", f"sscale/{NAME}", "stenant/acme", "-n", place.namespace, "--ignore-not-found")
