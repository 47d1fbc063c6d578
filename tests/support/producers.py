"""Producers as users have them, which go on while a cluster is changed: a pod of `synapse-worker enqueue`, stock arq.

What they say they have queued is where the count of runs begins (`load.judge`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from arq.connections import ArqRedis, RedisSettings, create_pool

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import new_run_id
from synapse_worker.store.tenants import DELETING
from tests.support.kube import Object, apply, kubectl

POD = "producer"


class ProducerPod:
    """A pod in a restricted namespace with one `synapse-worker enqueue --rate` for each tenant.

    It takes the stores' URLs from the Secrets of manifests/dev, once, at its start.
    """

    def __init__(
        self, namespace: str, image: str, orchestration_id: str, *, tenants: Sequence[str], rate: float
    ) -> None:
        """Describe it.

        Args:
            tenants: ids that are names of containers too.
            rate: runs a second, of each tenant.
        """
        self._namespace = namespace
        self._image = image
        self._orchestration_id = orchestration_id
        self._tenants = tenants
        self._rate = rate

    def start(self) -> None:
        """Start it; returns once it runs."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": POD},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [self._container(tenant) for tenant in self._tenants],
            },
        }
        apply(pod, namespace=self._namespace)
        kubectl("wait", "--for=condition=Ready", f"pod/{POD}", "-n", self._namespace, "--timeout=60s")

    def stop(self, *, deleted: Sequence[str] = ()) -> list[str]:
        """End it as a user does, with SIGTERM, and return the ids of the runs that it has queued.

        Args:
            deleted: tenants that were deleted meanwhile; what enqueues for them was told so, and has ended.
        """
        for tenant in self._tenants:
            if tenant not in deleted:
                kubectl("exec", POD, "-n", self._namespace, "-c", tenant, "--", "sh", "-c", "kill -TERM 1")
        kubectl(
            *("wait", f"--for=jsonpath={{.status.phase}}={'Failed' if deleted else 'Succeeded'}", f"pod/{POD}"),
            *("-n", self._namespace, "--timeout=60s"),
        )
        said = {tenant: kubectl("logs", POD, "-n", self._namespace, "-c", tenant) for tenant in self._tenants}
        assert {tenant for tenant, text in said.items() if DELETING in text} == set(deleted)
        return [line for text in said.values() for line in text.splitlines() if line.startswith("run_")]

    def remove(self) -> None:
        """Delete it, whatever it does."""
        kubectl("delete", "pod", POD, "-n", self._namespace, "--ignore-not-found", "--grace-period=1")

    def _container(self, tenant: str) -> Object:
        return {
            "name": tenant,
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": [
                *("synapse-worker", "enqueue", self._orchestration_id),
                *(f"--tenant={tenant}", f"--rate={self._rate:g}"),
            ],
            "env": [
                {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": "url"}}}
                for variable, secret in (("REDIS_URL", "synapse-redis"), ("SCALE_POSTGRES_URL", "synapse-postgres"))
            ],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }


@asynccontextmanager
async def stock_producer(
    host: str, password: str, orchestration_id: str, *, tenant: str, rate: float
) -> AsyncIterator[list[str]]:
    """Enqueue to `default` with stock arq, as a main instance does, while the body lasts.

    Args:
        rate: runs a second.

    Yields:
        The ids of the runs that are queued; complete once the body has ended.
    """
    run_ids: list[str] = []
    pool = await create_pool(RedisSettings(host=host, password=password), default_queue_name=keys.queue("default"))
    stop = asyncio.Event()
    producing = asyncio.create_task(_produce(pool, orchestration_id, tenant, rate, stop, run_ids))
    try:
        yield run_ids
    finally:
        stop.set()
        await producing
        await pool.aclose()


async def _produce(
    pool: ArqRedis, orchestration_id: str, tenant: str, rate: float, stop: asyncio.Event, run_ids: list[str]
) -> None:
    while not stop.is_set():
        run_id = new_run_id(int(time.time() * 1000))
        job = await pool.enqueue_job(
            "run_orchestration_job",
            _job_id=run_id,
            run_id=run_id,
            orch_id=orchestration_id,
            initial_input="hi",
            tenant_id=tenant,
        )
        assert job is not None
        run_ids.append(run_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(1 / rate):
                await stop.wait()
