"""The operator's process: `synapse-operator`, or `python -m synapse_operator`.

It campaigns for the Lease; whoever holds it watches and reconciles, a standby does neither. Losing the Lease
or the watch ends the process, since a fresh start is the one state that is always right. SIGTERM stops what
is under way, gives the Lease back and is over within a second: every step can be repeated by the next leader.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from kubernetes.aio.client import Configuration, CoordinationV1Api

from synapse_operator import probes, settings
from synapse_operator.backends import Backends
from synapse_operator.cluster import hashkey, observe
from synapse_operator.cluster.client import Client, load_configuration
from synapse_operator.cluster.observe import Key, ScaleKey, TenantsKey
from synapse_operator.dedicated import Dedicated
from synapse_operator.echo import Echo, Version
from synapse_operator.election import Elector
from synapse_operator.errors import ApiNotFound, OperatorError
from synapse_operator.handlers import Inbox
from synapse_operator.reconcile import Reconciler
from synapse_operator.reconcile_tenants import TenantReconciler
from synapse_operator.rest import Rests
from synapse_operator.settings import Settings, SettingsError
from synapse_operator.syncer import Syncer
from synapse_operator.telemetry import Metrics, configure_logging
from synapse_operator.watch import watch
from synapse_operator.workqueue import Again, Pace, WorkQueue

_log = logging.getLogger("synapse_operator")

LEASE_NAME = "synapse-operator"

SLOTS = 32
"""Keys that are reconciled at once; a dead store holds one slot for some seconds, so they are many."""

STOP_SECONDS = 0.7
"""How long a stopping process waits for what it has in hand."""

READY_SECONDS = 30.0
"""A process that the API server has not answered for so long is not ready to lead."""

CRD_RETRY_SECONDS = 5.0


def main() -> None:
    """Run until SIGTERM (exit code 0), a loss (1) or settings that cannot be used (2)."""
    try:
        given = settings.load()
        configure_logging(given.log_level, given.log_format)
        code = asyncio.Runner().run(_run(given))
    except SettingsError as error:
        sys.stderr.write(f"synapse-operator: {error}\n")
        code = 2
    logging.shutdown()
    sys.stderr.flush()
    # Not sys.exit: it would wait for threads that still resolve the name of a dead store.
    os._exit(code)


async def _run(given: Settings) -> int:
    stop = asyncio.Event()

    def take_signals() -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)

    take_signals()
    metrics = Metrics()
    configuration = await load_configuration(given.kubeconfig)
    identity = f"{given.pod_name}_{uuid.uuid4().hex[:8]}"
    # A client of its own: renewals must not wait behind reconciles.
    async with Client(configuration, metrics) as for_lease, Client(configuration, metrics) as client:
        elector = Elector(
            CoordinationV1Api(for_lease), namespace=given.pod_namespace, name=LEASE_NAME, identity=identity
        )
        leader = _Leader(given, configuration, client, metrics, take_signals)
        async with probes.serve(
            metrics.registry,
            live=lambda: leader.echo.problem,
            ready=lambda: _not_ready(elector),
            health_port=given.health_port,
            metrics_port=given.metrics_port,
        ):
            campaign = asyncio.create_task(_campaign(elector, leader, metrics), name="campaign")
            stopping = asyncio.create_task(stop.wait(), name="signal")
            await asyncio.wait({campaign, stopping}, return_when=asyncio.FIRST_COMPLETED)
            lost = campaign.done()
            if lost:
                _log.error("ending: %s", campaign.exception())
            campaign.cancel()
            await asyncio.wait({campaign}, timeout=STOP_SECONDS)
            await elector.release()
    _log.info("stopped")
    return 1 if lost else 0


def _not_ready(elector: Elector) -> str | None:
    if elector.answered_at is None:
        return "The API server has not answered yet."
    silent = asyncio.get_running_loop().time() - elector.answered_at
    return f"The API server has not answered for {silent:.0f} s." if silent > READY_SECONDS else None


async def _campaign(elector: Elector, leader: _Leader, metrics: Metrics) -> None:
    """Wait for the Lease, then lead for as long as it is held; always ends by raising."""
    await elector.acquire()
    metrics.set_leading(True)
    await _until_one_ends(elector.hold(), leader.lead())


class _Leader:
    """What only the holder of the Lease does."""

    def __init__(
        self,
        given: Settings,
        configuration: Configuration,
        client: Client,
        metrics: Metrics,
        take_signals: Callable[[], None],
    ) -> None:
        self._given = given
        self._configuration = configuration
        self._client = client
        self._metrics = metrics
        self._take_signals = take_signals
        self._scopes = given.watch_namespaces or ("",)
        self.echo = Echo(self._list, self._missed)

    async def lead(self) -> None:
        """Reconcile until something ends, and raise why."""
        await self._await_crds()
        backends = Backends()
        syncer = Syncer(self._client, backends, self._wake, resync_seconds=self._given.resync_seconds)
        dedicated = Dedicated(self._wake)
        rests = Rests(timedelta(seconds=self._given.resync_seconds))
        scales = Reconciler(
            self._client,
            backends,
            syncer,
            dedicated,
            rests,
            self._metrics,
            worker_image=self._given.worker_image,
            hash_key=await hashkey.provide(self._client, self._given.pod_namespace),
            instance=self._given.pod_name,
            empty_for=timedelta(seconds=self._given.shard_empty_seconds),
            figures_every=timedelta(seconds=self._given.status_figures_seconds),
            wake=self._wake,
        )
        tenants = TenantReconciler(self._client, backends, dedicated, self._metrics)

        async def reconcile(key: Key) -> Again | None:
            return await (tenants(key) if isinstance(key, TenantsKey) else scales(key))

        self._queue = WorkQueue[Key](
            reconcile, slots=SLOTS, pace=Pace(resync=self._given.resync_seconds), added=rests.disturb
        )
        self._metrics.watch_queue(self._queue.__len__)
        inbox = Inbox(self._queue, self.echo, syncer.edited, rests.disturb)
        watching = watch(inbox, self._configuration, self._given.watch_namespaces, self._take_signals)
        try:
            await _until_one_ends(self._queue.run(), self.echo.run(), watching)
        finally:
            await syncer.close()
            await backends.close()

    async def _list(self) -> list[Version]:
        return await observe.list_versions(self._client, self._scopes)

    def _wake(self, key: Key, delay: float) -> None:
        self._queue.add(key, delay)

    def _missed(self, version: Version) -> None:
        key = ScaleKey(version.namespace, version.scale)
        self._queue.add(key)
        self._queue.add(TenantsKey(key))

    async def _await_crds(self) -> None:
        """Return once the cluster knows our kinds: an operator may be installed before its CRDs."""
        while True:
            try:
                await self._list()
            except ApiNotFound:
                _log.warning("the cluster does not know our kinds yet; install the CRDs (kubectl apply -k crds)")
            except OperatorError as error:
                _log.warning("cannot list our custom resources: %s", error)
            else:
                return
            await asyncio.sleep(CRD_RETRY_SECONDS)


async def _until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run the works together until one raises; cancel the others and raise what it raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
