"""One API process from start to exit: stores, start-up, what is kept current beside the requests, graceful stop.

It serves probes at once and requests once the stores have answered, the tables are there and the operator can know by
which topology this process routes. Nothing here outlives the process: replicas share Redis and PostgreSQL only.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from synapse_worker.api.app import application
from synapse_worker.api.context import Context
from synapse_worker.api.inline import Inline
from synapse_worker.api.looks import Looks
from synapse_worker.api.sse import Streams
from synapse_worker.connections import open_database, open_redis, ping_redis
from synapse_worker.errors import ConfigurationError, StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.health import listen, server
from synapse_worker.queueing.client import known_queues
from synapse_worker.queueing.producer import Producer
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.settings import Settings
from synapse_worker.store import definitions, idempotency, tenants
from synapse_worker.store.open_work import busy_sessions, open_runs
from synapse_worker.store.schema_version import ensure
from synapse_worker.store.topology import Role
from synapse_worker.telemetry import ApiMetrics

log = logging.getLogger(__name__)

_POSTGRES_CONNECTIONS = 5
_REBASE_SECONDS = 2.0
_TIDY_SECONDS = 15.0
_LINGER_SECONDS = 5.0
"""How long a pod that was told to stop still takes requests: Services learn of it meanwhile."""
_END_SECONDS = 8
"""How long requests that have begun may take then."""
_MOST_TENANTS = 10_000


class ApiProcess:
    """An API process. `await ApiProcess(settings).run()` returns when it has stopped cleanly."""

    def __init__(self, settings: Settings) -> None:
        client = open_redis(settings.redis_url, ca_file=settings.redis_ca_file)
        database = open_database(
            settings.postgres_url,
            pgbouncer=settings.pgbouncer_mode,
            pool_size=_POSTGRES_CONNECTIONS,
            ca_file=settings.postgres_ca_file,
        )
        gate = StoreGate(database, client)
        producer = Producer(database, client, settings.topology, role=Role.API)
        self._stop = asyncio.Event()
        self._context = Context(
            settings=settings,
            database=database,
            client=client,
            gate=gate,
            producer=producer,
            quotas=Quotas(client),
            streams=Streams(client),
            inline=Inline(database, client, gate, worker_id=producer.id),
            metrics=ApiMetrics(),
            stopping=asyncio.Event(),
            runs=Looks(partial(open_runs, database)),
            sessions=Looks(partial(busy_sessions, database)),
        )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            ConfigurationError: something in the settings cannot be used.
        """
        context = self._context
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        port = listen(context.settings.api_port, "API_PORT")
        http = server(application(context), graceful_seconds=_END_SECONDS)
        serving = asyncio.create_task(http.serve(sockets=[port]))
        background = [asyncio.create_task(work) for work in (context.gate.watch(), context.streams.read())]
        failed: list[asyncio.Task[None]] = []
        try:
            async with AsyncExitStack() as stack:
                if await self._start_up(stack):
                    background += [
                        asyncio.create_task(self._repeat(_REBASE_SECONDS, self._rebase)),
                        asyncio.create_task(self._repeat(_TIDY_SECONDS, self._tidy)),
                    ]
                    log.info("the API serves port %d", context.settings.api_port)
                    told = asyncio.create_task(self._stop.wait())
                    await asyncio.wait({serving, told, *background}, return_when=asyncio.FIRST_COMPLETED)
                    failed = [task for task in background if task.done()]
                context.stopping.set()
                await asyncio.gather(self._linger(), context.inline.close())
                http.should_exit = True
                await asyncio.wait({serving}, timeout=_END_SECONDS + 1)
        finally:
            http.should_exit = True
            for task in background:
                task.cancel()
            await asyncio.wait([serving, *background], timeout=1.0)
            await context.database.close()
            await context.client.aclose()
        for task in failed:
            await task  # only an error of ours ends it: show it, and let the pod restart
        log.info("the API has stopped")

    async def _start_up(self, stack: AsyncExitStack) -> bool:
        """Wait for the stores, bring the schema up, say by which topology we route; False when told to stop."""
        context = self._context
        said = ""
        while not self._stop.is_set():
            try:
                if not await context.gate.wait(1.0):
                    raise StoreUnavailable("start-up", f"waits: {context.gate.problem}")
                if (facts := await ping_redis(context.client)).old:
                    raise ConfigurationError(f"Redis {facts.version} is too old; 6.2 or newer is needed.")
                if (done := await ensure(context.database)) is not None:
                    log.info("schema is at version %d (%d statements)", done.version, len(done.statements))
                context.settings = context.settings.with_stored(await definitions.stored_settings(context.database))
                await self._rebase()
                await stack.enter_async_context(context.producer)
            except (StoreUnavailable, StoreRefused) as error:
                context.problem = str(error)
                if context.problem != said:
                    said = context.problem
                    log.warning("%s", said)
                await self._wait(1.0)
                continue
            context.problem = ""
            return True
        return False

    async def _linger(self) -> None:
        """In a cluster, take requests until nobody sends any here."""
        if self._context.settings.k8s_mode:
            await asyncio.sleep(_LINGER_SECONDS)

    async def _rebase(self) -> None:
        context = self._context
        await context.quotas.rebase(await known_queues(context.database))

    async def _tidy(self) -> None:
        context = self._context
        rows = await tenants.list_rows(context.database, only=None, limit=_MOST_TENANTS)
        await context.quotas.forget_gone(context.database, [row.tenant_id for row in rows])
        await idempotency.forget_old(context.database)

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        """Do something for ever, while both stores answer; replicas do it at different moments."""
        while True:
            await asyncio.sleep(seconds * random.uniform(0.7, 1.3))  # noqa: S311 - spreads replicas
            if self._context.gate.is_open:
                try:
                    await work()
                except (StoreUnavailable, StoreRefused) as error:
                    self._context.gate.trip(error)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass
