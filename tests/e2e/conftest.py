"""The cluster layer's ground: the operator from manifests/install.yaml, and a namespace with stores and a scale."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from synapse_operator import naming
from synapse_worker.connections import open_database, open_redis
from synapse_worker.store import migrate
from synapse_worker.store.database import Database
from tests.support.kube import a_scale, apply, condition, eventually, get, items, kubectl, localcluster, namespace

SCALE = "flow"


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace with Redis, PostgreSQL and a SynapseScale `flow`; URLs as they are reached from the host."""

    namespace: str
    redis_url: str
    redis_address: str
    redis_password: str
    postgres_url: str

    def worker_pods(self) -> list[dict[str, object]]:
        """The scale's worker pods that are not ending."""
        selector = naming.selector_text(naming.worker_selector(SCALE))
        pods = items("pods", "-n", self.namespace, "-l", selector)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def deployment(self) -> str:
        """The name of the scale's worker Deployment."""
        found = items("deploy", "-n", self.namespace, "-l", f"scale.synapseorch.com/scale={SCALE}")
        (name,) = (each["metadata"]["name"] for each in found)
        return str(name)

    def command(self, *words: str) -> str:
        """Run `synapse-worker` with some words in a worker pod; returns what it prints."""
        pod = str(self.worker_pods()[0]["metadata"]["name"])  # type: ignore[index]
        return kubectl("exec", pod, "-n", self.namespace, "--", "synapse-worker", *words)

    def api_url(self) -> str:
        """The base URL of the scale's API, through its Service."""
        service = get("service", naming.api_name(SCALE), "-n", self.namespace)["spec"]
        return f"http://{service['clusterIP']}:{service['ports'][0]['port']}/api/v2"

    def settled(self) -> None:
        """Wait until the present spec is rolled out and no pod of another one is left."""

        def done() -> bool:
            found = get("sscale", SCALE, "-n", self.namespace)
            return (
                found["status"].get("observedGeneration") == found["metadata"]["generation"]
                and condition(found, "Ready")["status"] == "True"
                and condition(found, "Reconciling")["status"] == "False"
                and len(self.worker_pods()) == found["spec"]["workers"]["replicas"]
            )

        eventually("the scale is rolled out", done, seconds=240)


@pytest.fixture(scope="session")
def operator() -> None:
    """The operator as install.yaml brings it, with the images that are loaded now."""
    status = localcluster("status", check=False)
    assert "kubelet" in status, "the local cluster is not up; run: make up"
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "manifests/install.yaml")
    kubectl("wait", "--for=condition=Established", "crd/synapsescales.scale.synapseorch.com", "--timeout=60s")
    # Images keep their names here, so pods of an earlier run would go on with the old ones.
    kubectl("scale", "deploy/synapse-operator", "-n", "synapse-system", "--replicas=1")
    kubectl("rollout", "restart", "deploy/synapse-operator", "-n", "synapse-system")
    kubectl("rollout", "status", "deploy/synapse-operator", "-n", "synapse-system", "--timeout=120s")


@pytest.fixture(scope="session")
def place(operator: None) -> Iterator[Place]:
    """The namespace that most tests of this layer share."""
    name = f"e2e-{os.getpid()}"
    kubectl("apply", "--server-side", "-f", "-", stdin=_text(namespace(name)))
    kubectl("apply", "--server-side", "-n", name, "-k", "manifests/dev/local")
    apply(a_scale(SCALE, replicas=2, drainTimeoutSeconds=60), namespace=name)

    def ready() -> bool:
        return condition(get("sscale", SCALE, "-n", name), "Ready")["status"] == "True"

    eventually("the SynapseScale is Ready", ready, seconds=180)
    yield _reached_from_here(name)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def cluster_redis(place: Place) -> AsyncIterator[Redis]:
    """A client of the namespace's Redis."""
    client = open_redis(SecretStr(place.redis_url))
    yield client
    await client.aclose()


@pytest.fixture
async def cluster_database(place: Place) -> AsyncIterator[Database]:
    """The namespace's database."""
    database = open_database(SecretStr(place.postgres_url))
    await migrate.migrate(database)
    yield database
    await database.close()


def _reached_from_here(name: str) -> Place:
    def secret(of: str) -> tuple[str, str]:
        data = get("secret", f"synapse-{of}", "-n", name)["data"]
        return tuple(base64.b64decode(data[key]).decode() for key in ("url", "password"))  # type: ignore[return-value]

    def address(of: str) -> str:
        return str(get("service", of, "-n", name)["spec"]["clusterIP"])

    redis_url, redis_password = secret("redis")
    postgres_url, _ = secret("postgres")
    redis, postgres = address("redis"), address("postgres")
    return Place(
        namespace=name,
        redis_url=redis_url.replace("@redis:", f"@{redis}:"),
        redis_address=redis,
        redis_password=redis_password,
        postgres_url=postgres_url.replace("@postgres:", f"@{postgres}:"),
    )


def _text(document: dict[str, object]) -> str:
    return json.dumps(document)
