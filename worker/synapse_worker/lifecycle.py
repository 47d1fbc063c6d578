"""One worker process from start to exit: order of start-up, signals, drain, deadlines.

The parts know nothing of each other's life; here they are started, watched and stopped in order.
Start-up waits for Redis and Postgres as long as it takes: restarting a worker repairs neither.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from synapse_worker import __version__, contract
from synapse_worker.connections import open_blobs, open_database, open_redis, ping_redis, redis_errors_as_ours
from synapse_worker.contract import TENANT_POOL
from synapse_worker.egress import Egress
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.health import Probes, Status, application, listen, server
from synapse_worker.hosting import hosting
from synapse_worker.housekeeping import Housekeeper
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import readable_figures
from synapse_worker.queueing.lease import LeaseQueue
from synapse_worker.queueing.loop import ClaimLoop
from synapse_worker.queueing.pool import TenantPool
from synapse_worker.queueing.served import Served
from synapse_worker.retention import Retention
from synapse_worker.run_logs import RunLogs
from synapse_worker.settings import Settings
from synapse_worker.store import definitions, tenants, workers
from synapse_worker.store.database import Database
from synapse_worker.store.schema_version import ensure
from synapse_worker.telemetry import Metrics
from synapse_worker.webhooks import EXIT_SECONDS as WEBHOOK_EXIT_SECONDS
from synapse_worker.webhooks import Webhooks

log = logging.getLogger(__name__)

_BEAT_SECONDS = 30.0
_FIGURES_SECONDS = 5.0
_MOST_POSTGRES_CONNECTIONS = 5
_EXIT_SECONDS = 8.0
"""How long the last writes may take after the drain's deadline; well inside contract.PROCESS_MARGIN_SECONDS."""


@dataclass(slots=True)
class _Phase:
    started: bool = False
    draining: bool = False
    problem: str = "starting"


class Worker:
    """A worker process. `await Worker(settings).run()` returns when it has stopped cleanly."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tenants: Mapping[str, tenants.Tenant] = {}
        self._metrics = Metrics()
        self._phase = _Phase()
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._loop_lag = 0.0
        self._claim_loop: ClaimLoop | None = None
        self._served: Served | None = None
        self._named_shards = [shard for shard in settings.shards if shard != TENANT_POOL]
        self._address = _address(settings.health_port)
        self._blobs = open_blobs(settings.s3, settings.data_dir)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: something in the settings cannot be used.
        """
        settings = self._settings
        client = open_redis(settings.redis_url, ca_file=settings.redis_ca_file)
        database = open_database(
            settings.postgres_url,
            pgbouncer=settings.pgbouncer_mode,
            pool_size=min(settings.concurrency, _MOST_POSTGRES_CONNECTIONS),
            ca_file=settings.postgres_ca_file,
        )
        self._install_signals()
        gate = StoreGate(database, client)
        health = server(
            application(self._probes(gate), k8s_mode=settings.k8s_mode, metrics_token=settings.metrics_token)
        )
        port = listen(settings.health_port)
        background = [asyncio.create_task(health.serve(sockets=[port])), asyncio.create_task(gate.watch())]
        background.append(asyncio.create_task(self._measure_lag()))
        try:
            if await self._start_up(gate, database, client):
                await self._serve(gate, database, client, background)
        finally:
            health.should_exit = True
            for task in background[1:]:
                task.cancel()
            await asyncio.wait(background, timeout=3.0)
            await database.close()
            await client.aclose()
            await self._blobs.close()
        log.info("worker %s has stopped", settings.worker_id)

    async def _start_up(self, gate: StoreGate, database: Database, client: Redis) -> bool:
        """Wait for the stores, bring the schema up, read stored settings; False when told to stop meanwhile."""
        settings = self._settings
        said = ""
        while not self._stop.is_set():
            if not await gate.wait(1.0):
                self._phase.problem = gate.problem
                if gate.problem != said:
                    said = gate.problem
                    log.warning("start-up waits: %s", said)
                continue
            try:
                facts = await ping_redis(client)
                if facts.old:
                    raise ConfigurationError(f"Redis {facts.version} is too old; 6.2 or newer is needed.")
                if facts.may_drop_keys:
                    log.warning(
                        "Redis has maxmemory-policy %s and may drop queued jobs when it is full; set noeviction",
                        facts.maxmemory_policy,
                    )
                await self._migrate(database)
                self._tenants = await tenants.read_all(database)
                self._settings = settings.with_stored(await definitions.stored_settings(database))
                self._blobs = open_blobs(self._settings.s3, self._settings.data_dir)
            except (StoreUnavailable, StoreRefused) as error:
                self._phase.problem = str(error)
                gate.trip(error)
                if str(error) != said:
                    said = str(error)
                    log.warning("start-up waits: %s", said)
                await self._wait_for_stop(1.0)
                continue
            gate.watch_also(self._blobs)
            return True
        return False

    async def _migrate(self, database: Database) -> None:
        """Bring the schema up, unless it is there and we may not touch it."""
        if (done := await ensure(database)) is not None:
            log.info("schema is at version %d (%d statements)", done.version, len(done.statements))

    async def _serve(
        self, gate: StoreGate, database: Database, client: Redis, background: list[asyncio.Task[None]]
    ) -> None:
        settings = self._settings
        open_queue = partial(LeaseQueue, client, worker_id=settings.worker_id, lease_seconds=settings.lease_seconds)
        pool = None
        if TENANT_POOL in settings.shards:
            pool = TenantPool(
                database, client, gate, open_queue, worker_id=settings.worker_id, apart=self._named_shards
            )
            background.append(asyncio.create_task(pool.keep()))
        served = self._served = Served([open_queue(keys.queue(shard)) for shard in self._named_shards], pool)
        async with (
            hosting(database, client, gate, self._blobs, served, settings, self._tenants, self._metrics) as host,
            Egress(settings.webhook_allow) as egress,
        ):
            loop = ClaimLoop(
                served,
                host.jobs,
                gate,
                slots=settings.concurrency,
                lease_seconds=settings.lease_seconds,
                weight=host.reservations.weight,
            )
            self._claim_loop = loop
            self._metrics.slots.set(settings.concurrency)
            background.append(asyncio.create_task(self._beat(loop, gate, database, client)))
            retention = Retention(database, client, days=settings.retention_days)
            keeper = Housekeeper(
                database,
                client,
                gate,
                lambda: served.keys,
                retention=retention,
                event_ttl=settings.event_ttl,
                metrics=self._metrics,
            )
            background.append(asyncio.create_task(keeper.keep()))
            webhooks = asyncio.create_task(Webhooks(database, gate, egress, self._metrics).send())
            background.append(webhooks)
            logs = RunLogs(database, self._blobs, gate, busy=lambda: loop.active >= loop.slots)
            background.append(asyncio.create_task(logs.keep()))
            background.append(asyncio.create_task(self._watch_figures(loop, served, client, gate)))
            await self._register(database, "online", loop)
            background.append(asyncio.create_task(self._count_workers(database, gate)))
            self._phase.started = True
            self._phase.problem = ""
            log.info(
                "worker %s serves %s with %d slots",
                settings.worker_id,
                ", ".join(settings.shards),
                settings.concurrency,
            )
            claiming = asyncio.create_task(loop.run())
            stopping = asyncio.create_task(self._stop.wait())
            others = (*background, *host.beside)
            await asyncio.wait({claiming, stopping, *others}, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in others if task.done()]
            if claiming.done():
                await claiming  # only an error of ours ends it: show it, and let the pod restart
            await self._drain(loop, claiming, database)
            webhooks.cancel()
            await asyncio.wait({webhooks}, timeout=WEBHOOK_EXIT_SECONDS + 1.0)
            await self._register(database, "offline", loop)
            for task in failed:
                await task  # as above, once the runs are given back

    async def _drain(self, loop: ClaimLoop, claiming: asyncio.Task[None], database: Database) -> None:
        """Stop claiming; give runs back at step boundaries (Kubernetes) or let them end (elsewhere), then interrupt."""
        settings = self._settings
        self._phase.draining = True
        self._phase.problem = "draining"
        log.info("draining: %d jobs run, up to %d s", loop.active, settings.drain_seconds)
        loop.stop(hand_over=settings.k8s_mode)
        register = asyncio.create_task(self._register(database, "draining", loop))
        second_signal = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait(
            {claiming, second_signal}, timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not claiming.done():
            log.warning("interrupting %d jobs; they are handed back", loop.active)
            loop.interrupt()
            await asyncio.wait({claiming}, timeout=_EXIT_SECONDS)
        if not claiming.done():
            log.warning("exiting with %d leases; they run out within %d s", loop.active, settings.lease_seconds)
            claiming.cancel()
        second_signal.cancel()
        await asyncio.wait({claiming, register}, timeout=1.0)

    def stop(self) -> None:
        """Begin the drain, as SIGTERM does; a second call ends it at once."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    async def _wait_for_stop(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    async def _register(self, database: Database, status: str, loop: ClaimLoop) -> None:
        settings = self._settings
        row = workers.WorkerRow(
            worker_id=settings.worker_id,
            hostname=socket.gethostname(),
            address=self._address,
            status=status,
            queues=settings.shards,
            version=__version__,
            active_jobs=loop.active,
            max_jobs=loop.slots,
        )
        try:
            await workers.beat(database, row)
        except (StoreUnavailable, StoreRefused) as error:
            log.warning("the workers table was not updated: %s", error)

    async def _beat(self, loop: ClaimLoop, gate: StoreGate, database: Database, client: Redis) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            if not gate.is_open:
                continue
            await self._register(database, "draining" if self._phase.draining else "online", loop)
            beat = (
                f'{{"worker_id": "{self._settings.worker_id}", "active_jobs": {loop.active}, '
                f'"max_jobs": {loop.slots}, "ts": {time.time():.3f}}}'
            )
            try:
                with redis_errors_as_ours():
                    await client.execute_command(  # type: ignore[no-untyped-call]
                        "PUBLISH", keys.HEARTBEAT_CHANNEL, beat
                    )
                    for shard in self._named_shards:
                        await client.set(
                            keys.health(keys.queue(shard)), f"{self._settings.worker_id} runs {loop.active}", ex=90
                        )
            except (StoreUnavailable, StoreRefused) as error:
                gate.trip(error)

    async def _watch_figures(self, loop: ClaimLoop, served: Served, client: Redis, gate: StoreGate) -> None:
        """Keep the gauges of queues and leases current."""
        recovered, lost = 0, 0
        waiting: list[str] = []
        while True:
            self._metrics.suspended.set(0 if gate.is_open else 1)
            self._metrics.recovered_leases.inc(loop.recovered - recovered)
            self._metrics.lost_leases.inc(loop.lost_leases - lost)
            recovered, lost = loop.recovered, loop.lost_leases
            if gate.is_open:
                try:
                    # One that has left the tenant pool's list is shown to be empty before it is forgotten.
                    figures = await readable_figures(client, list(dict.fromkeys([*served.keys, *waiting])))
                except (StoreUnavailable, StoreRefused) as error:
                    gate.trip(error)
                else:
                    waiting = [name for name, queue in figures.items() if queue.queued]
                    self._metrics.queues(
                        {
                            name: (queue.queued, queue.parked, queue.oldest_seconds or 0.0)
                            for name, queue in figures.items()
                        }
                    )
            await asyncio.sleep(_FIGURES_SECONDS)

    async def _count_workers(self, database: Database, gate: StoreGate) -> None:
        """Keep the gauge of all workers current."""
        while True:
            if await gate.wait(_BEAT_SECONDS):
                try:
                    self._metrics.active_workers.set(await workers.count_online(database))
                except (StoreUnavailable, StoreRefused) as error:
                    gate.trip(error)
            await asyncio.sleep(_BEAT_SECONDS)

    async def _measure_lag(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(1.0)
            self._loop_lag = max(0.0, clock() - before - 1.0)

    def _probes(self, gate: StoreGate) -> Probes:
        def status() -> Status:
            loop = self._claim_loop
            settings = self._settings
            if self._phase.draining:
                word = "draining"
            elif not self._phase.started:
                word = "starting"
            else:
                word = "ok" if gate.is_open else "suspended"
            return Status(
                status=word,
                worker_id=settings.worker_id,
                hostname=socket.gethostname(),
                address=self._address,
                shard=",".join(settings.shards),
                queues=self._served.keys if self._served else [keys.queue(shard) for shard in self._named_shards],
                active_jobs=loop.active if loop else 0,
                max_jobs=settings.concurrency,
                uptime_seconds=round(time.monotonic() - self._began, 1),
                redis_connected=gate.redis.connected,
                postgres_connected=gate.postgres.connected,
                draining=self._phase.draining,
                version=__version__,
            )

        def ready() -> str:
            return self._phase.problem or gate.problem

        def live() -> str:
            loop = self._claim_loop
            bound = contract.LIVENESS_BOUND_SECONDS
            if self._loop_lag > bound:
                return f"the event loop was blocked for {self._loop_lag:.0f} s"
            if loop is None or self._phase.draining:
                return ""
            silence = asyncio.get_running_loop().time() - loop.last_turn
            if silence > bound:
                return f"the claim loop has not turned for {silence:.0f} s"
            if loop.stuck >= loop.slots:
                return "every slot is held by a job that does not stop"
            return ""

        return Probes(
            status=status,
            started=lambda: "" if self._phase.started else self._phase.problem or "starting",
            ready=ready,
            live=live,
            metrics=self._metrics.text,
        )


def _address(port: int) -> str:
    """Return the base URL under which others reach this worker's health port."""
    try:
        host = socket.gethostbyname(socket.gethostname())
    except OSError:
        host = socket.gethostname()
    return f"http://{host}:{port}"
