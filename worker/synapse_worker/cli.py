"""The command `synapse-worker`: run the worker, or look at and feed the installation it belongs to.

Commands print for people, or JSON with `-o json`; an error is one sentence on standard error and exit code 1
(2 for a wrong command line).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import click
from redis.asyncio import Redis

from synapse_worker import __version__, tracing
from synapse_worker import settings as settings_module
from synapse_worker.connections import open_blobs, open_database, open_redis
from synapse_worker.contract import TENANT_ID_MAX_LENGTH
from synapse_worker.errors import BlobNotFound, ConfigurationError, StoreUnavailable, SynapseError
from synapse_worker.queueing.client import NewRun, answer_run, cancel_run, new_run_id, resume_run, retry_letter
from synapse_worker.queueing.producer import Producer
from synapse_worker.routing import HIGHEST_PRIORITY
from synapse_worker.settings import Settings
from synapse_worker.store import api_keys, dead_letters, tenants
from synapse_worker.store import runs as run_store
from synapse_worker.store.api_keys import ApiKey
from synapse_worker.store.blobs import CHUNK_BYTES, Blobs, checked_path, vault_folder, vault_key
from synapse_worker.store.database import Database
from synapse_worker.store.dead_letters import Letter
from synapse_worker.store.definitions import stored_settings
from synapse_worker.store.runs import RunStatus, RunView
from synapse_worker.store.topology import Role
from synapse_worker.telemetry import set_up_logging
from synapse_worker.waiting_ends import say_ended

_ENDED = {RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PAUSED}
_POLL_SECONDS = 0.3
_AWAY_SECONDS = 1.0

OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Form of the output.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="synapse-worker")
def cli() -> None:
    """Run Synapse orchestrations. Settings come from the environment (docs/environment.md)."""


@cli.command()
def run() -> None:
    """Serve the queues of WORKER_QUEUE_SHARD until SIGTERM."""
    from synapse_worker import eventloop
    from synapse_worker.lifecycle import Worker

    settings = settings_module.load()
    set_up_logging(level=settings.log_level, form=settings.log_format)

    async def serve() -> None:
        async with tracing.exporting(settings.otlp_endpoint, service="synapse-worker", instance=settings.worker_id):
            await Worker(settings).run()

    eventloop.run(serve())


@cli.command()
def api() -> None:
    """Serve the V2 API on API_PORT until SIGTERM."""
    from synapse_worker import eventloop
    from synapse_worker.api.process import ApiProcess

    settings = settings_module.load()
    set_up_logging(level=settings.log_level, form=settings.log_format)

    async def serve() -> None:
        async with tracing.exporting(settings.otlp_endpoint, service="synapse-api", instance=settings.worker_id):
            await ApiProcess(settings).run()

    eventloop.run(serve())


@cli.command()
def migrate() -> None:
    """Create or complete the tables in PostgreSQL; existing data stays."""
    from synapse_worker.store import migrate as migration

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            done = await migration.migrate(database)
        click.echo(
            f"schema version {done.version}: "
            + (f"{len(done.statements)} statements run" if done.statements else "nothing to do")
        )

    _do(work)


@cli.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--tenant", default=None, help="Tenant of the definitions [default: DEFAULT_TENANT_ID].")
@click.option(
    "--prune", is_flag=True, help="Take back what an earlier sync --prune of this folder stored and it no longer holds."
)
@OUTPUT
def sync(folder: Path | None, tenant: str | None, prune: bool, output: str) -> None:
    """Store the definitions and settings in FOLDER (default: SYNAPSE_DEFINITIONS_DIR) into PostgreSQL."""
    from synapse_worker.sync.folder import read_folder
    from synapse_worker.sync.store import sync as sync_sources

    async def work(settings: Settings) -> None:
        where = folder or (Path(settings.definitions_dir) if settings.definitions_dir else None)
        if where is None:
            raise ConfigurationError("name a folder, or set SYNAPSE_DEFINITIONS_DIR.")
        sources, unread = read_folder(where)
        async with _database(settings) as database:
            report = await sync_sources(
                database,
                sources,
                tenant_id=tenant or settings.default_tenant_id,
                owner=f"folder {where.resolve()}" if prune else "",
                unread=unread,
                everything=True,
            )
        if output == "json":
            _print_json(report.as_json())
        else:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.counts.items())) or "nothing"
            taken = f", {report.retired} taken back" if report.retired else ""
            click.echo(f"synced {report.total_synced} ({kinds}), {report.changed} changed{taken}")
            for problem in report.problems:
                click.echo(f"refused: {problem}", err=True)
        if report.problems:
            sys.exit(1)

    _do(work)


@cli.command()
@click.argument("orchestration_id")
@click.option("-m", "--message", default="", help="The run's input (state key user_input).")
@click.option(
    "-s", "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Initial state; VALUE may be JSON."
)
@click.option("--tenant", default=None, help="Tenant of the run [default: DEFAULT_TENANT_ID].")
@click.option("--session", default=None, help="Session id of the run.")
@click.option(
    "--priority",
    default=0,
    show_default=True,
    type=click.IntRange(0, HIGHEST_PRIORITY),
    help="Routes of the topology may send runs of a priority to a shard of their own.",
)
@click.option(
    "-n", "--count", default=None, type=click.IntRange(1), help="How many runs [default: 1; with --rate: no end]."
)
@click.option(
    "--rate",
    default=None,
    metavar="RUNS",
    type=click.FloatRange(0, min_open=True),
    help="So many runs a second, until --count or SIGTERM; a store that is away is waited for.",
)
@click.option("--wait", "wait_seconds", default=0.0, metavar="SECONDS", help="Wait until the runs have ended.")
@OUTPUT
def enqueue(
    orchestration_id: str,
    message: str,
    assignments: Sequence[str],
    tenant: str | None,
    session: str | None,
    priority: int,
    count: int | None,
    rate: float | None,
    wait_seconds: float,
    output: str,
) -> None:
    """Queue runs of ORCHESTRATION_ID and print their ids."""
    state = dict(_assignment(text) for text in assignments)

    async def work(settings: Settings) -> None:
        tenant_id = tenant or settings.default_tenant_id
        new = NewRun(orchestration_id, message, tenant_id, session, state or None, priority)
        most = count or (1 if rate is None else None)
        at_once = wait_seconds <= 0 and output == "table"
        ids: list[str] = []
        async with _traced(settings), _database(settings) as database, _redis(settings) as client:
            async with Producer(database, client, settings.topology, role=Role.PRODUCER) as producer:
                async for run_id in _enqueued(producer, database, new, most, rate):
                    if at_once:
                        click.echo(run_id)
                    else:
                        ids.append(run_id)
            views = await _wait_for(database, ids, wait_seconds) if wait_seconds > 0 else []
        if output == "json":
            _print_json([_as_json(view) for view in views] if wait_seconds > 0 else ids)
        elif wait_seconds > 0:
            _print_runs(views)
        if wait_seconds > 0 and not all(view.status == RunStatus.COMPLETED for view in views):
            sys.exit(1)

    _do(work)


@cli.group()
def runs() -> None:
    """Look at runs, cancel and resume them."""


@runs.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), default=None)
@OUTPUT
def list_runs(limit: int, status: str | None, output: str) -> None:
    """List the newest runs."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            found = await run_store.recent(database, limit=limit, status=status)
        if output == "json":
            _print_json([_as_json(view) for view in found])
        elif found:
            _print_runs(found)
        else:
            click.echo("no runs")

    _do(work)


@runs.command("show")
@click.argument("run_id")
@OUTPUT
def show_run(run_id: str, output: str) -> None:
    """Show one run: its steps and its state."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            found = await run_store.get(database, [run_id])
        if not found:
            raise _no_run(run_id)
        view = found[0]
        if output == "json":
            _print_json(_as_json(view))
            return
        _print_runs([view])
        for entry in view.history:
            click.echo(f"  {entry.get('step_name')!s:32} {entry.get('status')!s:10} {entry.get('duration_seconds')} s")
        if view.error:
            click.echo(f"error: {view.error}")
        if view.human_prompt is not None:
            click.echo(f"waits for a human at step {view.current_step_id}: {view.human_prompt}")
        for field in view.human_fields:
            click.echo(f"  --field {field.get('name')}=...  {field.get('label') or ''}".rstrip())
        _print_json(view.state)

    _do(work)


@runs.command("cancel")
@click.argument("run_id")
@OUTPUT
def cancel(run_id: str, output: str) -> None:
    """Cancel a run: at once when it waits, within a second when a worker has it."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database, _redis(settings) as client:
            was = await cancel_run(database, client, run_id)
            if was == RunStatus.PAUSED:
                await say_ended(database, client, run_id, "cancelled", ttl_seconds=settings.event_ttl)
        if not was:
            raise _no_run(run_id)
        if was not in (RunStatus.QUEUED, RunStatus.PAUSED, RunStatus.RUNNING):
            raise SynapseError(f"run {run_id!r} is {was}; only queued, running and paused runs can be cancelled")
        now = "cancelling" if was == RunStatus.RUNNING else RunStatus.CANCELLED.value
        if output == "json":
            _print_json({"run_id": run_id, "was": was, "now": now})
        else:
            click.echo(f"{run_id}: {'being cancelled' if was == RunStatus.RUNNING else 'cancelled'}")

    _do(work)


@runs.command("resume")
@click.argument("run_id")
@click.option("--answer", metavar="TEXT", default=None, help="What a run that waits for a human is told.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="NAME=VALUE",
    help="The same field by field; a value that is JSON is taken as such. Repeatable.",
)
@OUTPUT
def resume(run_id: str, answer: str | None, fields: Sequence[str], output: str) -> None:
    """Continue a failed or cancelled run at the step that did not finish, or answer one that waits for a human."""
    if answer is not None and fields:
        raise click.UsageError("--answer and --field cannot be used together; a run is told a text or fields")
    told: object = dict(_assignment(text, "--field") for text in fields) if fields else answer

    async def work(settings: Settings) -> None:
        async with _traced(settings), _database(settings) as database, _redis(settings) as client:
            now_ms = int(time.time() * 1000)
            by = settings.topology
            if told is None:
                was, job_id = await resume_run(database, client, run_id, now_ms=now_ms, without_row=by)
            else:
                was, job_id = await answer_run(database, client, run_id, told, now_ms=now_ms, without_row=by)
        if not was:
            raise _no_run(run_id)
        if not job_id and was == RunStatus.PAUSED:
            raise SynapseError(f"run {run_id!r} waits for a human; give --answer TEXT, or --field NAME=VALUE")
        if not job_id and told is not None:
            raise SynapseError(f"run {run_id!r} is {was}; only paused runs wait for an answer")
        if not job_id:
            raise SynapseError(f"run {run_id!r} is {was}; only failed and cancelled runs can be resumed")
        if output == "json":
            _print_json({"run_id": run_id, "was": was, "now": RunStatus.QUEUED.value, "job_id": job_id})
        else:
            click.echo(f"{run_id}: was {was}, queued as job {job_id}")

    _do(work)


@runs.command("logs")
@click.argument("run_id")
def show_log(run_id: str) -> None:
    """Print the newest log of a run: JSON lines, of the run and of each step."""
    from synapse_worker.run_logs import newest_log
    from synapse_worker.store.run_logs import is_due

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            found = await run_store.get(database, [run_id])
            due = await is_due(database, run_id)
        tenant_id = found[0].tenant_id if found else settings.default_tenant_id
        async with _blobs(settings) as blobs, aclosing(newest_log(blobs, tenant_id, run_id)) as chunks:
            try:
                async for chunk in chunks:
                    click.echo(chunk, nl=False)
            except BlobNotFound:
                if due:
                    raise SynapseError(f"the log of run {run_id!r} is not written yet; workers do so soon") from None
                if not found:
                    raise _no_run(run_id) from None
                raise SynapseError(
                    f"there is no log of run {run_id!r}, which is {found[0].status}; a log is written when a run ends"
                    " or pauses, in the bucket, or on the worker's own disk where there is none"
                ) from None

    _do(work)


@cli.group()
def keys() -> None:
    """Make, list and revoke keys of the V2 API."""


@keys.command("create")
@click.argument("name")
@click.option("--tenant", default=None, help="The only tenant that the key may speak for [default: any].")
@OUTPUT
def create_key(name: str, tenant: str | None, output: str) -> None:
    """Make a key called NAME and print it: this once, only a hash of it is kept."""
    if not 0 < len(name) <= 255 or (tenant is not None and not 0 < len(tenant) <= TENANT_ID_MAX_LENGTH):
        raise click.BadParameter("NAME and --tenant have 1 to 255 characters")

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            key, token = await api_keys.create(database, name=name, tenant_id=tenant)
        if output == "json":
            _print_json({**_key_json(key), "key": token.get_secret_value()})
        else:
            click.echo(token.get_secret_value())

    _do(work)


@keys.command("list")
@OUTPUT
def list_keys(output: str) -> None:
    """List the keys, without the keys themselves."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            found = await api_keys.list_all(database)
        if output == "json":
            _print_json([_key_json(key) for key in found])
        elif found:
            rows = [("ID", "NAME", "TENANT", "FROM", "CREATED")]
            for key in found:
                created = key.created_at.strftime("%Y-%m-%d %H:%M:%S") if key.created_at else "-"
                source = f"SynapseScale {key.managed_by}" if key.managed_by else "command line"
                rows.append((key.key_id, key.name, key.tenant_id or "any", source, created))
            _print_table(rows)
        else:
            click.echo("no keys")

    _do(work)


@keys.command("revoke")
@click.argument("key_id")
@OUTPUT
def revoke_key(key_id: str, output: str) -> None:
    """Revoke the key whose id `keys list` shows; requests with it are refused within seconds."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            if not await api_keys.revoke(database, key_id):
                raise SynapseError(
                    f"there is no key {key_id!r} that was made here; `synapse-worker keys list` shows the ids, and"
                    " the keys of a SynapseScale are in its keysSecretRef"
                )
        if output == "json":
            _print_json({"id": key_id})
        else:
            click.echo(f"{key_id}: revoked")

    _do(work)


@cli.group()
def dlq() -> None:
    """Look at the dead-letter queue: jobs that failed for good."""


@dlq.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000))
@OUTPUT
def list_letters(limit: int, output: str) -> None:
    """List the newest letters that nobody has dealt with."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            letters = await dead_letters.unresolved(database, limit=limit)
        if output == "json":
            _print_json([_letter_json(letter) for letter in letters])
        elif letters:
            rows = [("ID", "RUN", "ORCHESTRATION", "TRIES", "FAILED", "ERROR")]
            for letter in letters:
                failed = letter.failed_at.strftime("%Y-%m-%d %H:%M:%S") if letter.failed_at else "-"
                run, orchestration = letter.run_id or "-", letter.orchestration_id or "-"
                rows.append((letter.id, run, orchestration, str(letter.attempts), failed, letter.error[:100]))
            _print_table(rows)
        else:
            click.echo("the dead-letter queue is empty")

    _do(work)


@dlq.command("show")
@click.argument("letter_id")
@OUTPUT
def show_letter(letter_id: str, output: str) -> None:
    """Show one letter with its job's arguments."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:
            letter = await _letter(database, letter_id)
        if output == "json":
            _print_json(_letter_json(letter))
            return
        shown = {
            "run": letter.run_id or "-",
            "orchestration": letter.orchestration_id or "-",
            "function": letter.function,
            "tries": letter.attempts,
            "failed": letter.failed_at.isoformat(" ", "seconds") if letter.failed_at else "-",
            "dealt with": "yes" if letter.resolved else "no",
            "error": letter.error,
        }
        for name, value in shown.items():
            click.echo(f"{name + ':':15}{value}")
        _print_json(letter.shown_payload)

    _do(work)


@dlq.command("retry")
@click.argument("letter_ids", nargs=-1, required=True)
@OUTPUT
def retry(letter_ids: Sequence[str], output: str) -> None:
    """Queue the jobs of letters again; their runs go on behind their last checkpoints."""

    async def work(settings: Settings) -> None:
        async with _traced(settings), _database(settings) as database, _redis(settings) as client:

            async def one(letter: Letter) -> tuple[dict[str, object], str] | None:
                now_ms = int(time.time() * 1000)
                job_id = await retry_letter(database, client, letter, now_ms=now_ms, without_row=settings.topology)
                if job_id is None:
                    return None
                done: dict[str, object] = {"id": letter.id, "run_id": letter.run_id, "job_id": job_id}
                return done, f"{letter.id}: queued as job {job_id} of run {letter.run_id}"

            await _deal_with(database, letter_ids, output, one)

    _do(work)


@dlq.command("discard")
@click.argument("letter_ids", nargs=-1, required=True)
@OUTPUT
def discard(letter_ids: Sequence[str], output: str) -> None:
    """Mark letters as dealt with; their rows stay in PostgreSQL."""

    async def work(settings: Settings) -> None:
        async with _database(settings) as database:

            async def one(letter: Letter) -> tuple[dict[str, object], str] | None:
                if not await dead_letters.discard(database, letter.id):
                    return None
                return {"id": letter.id, "run_id": letter.run_id}, f"{letter.id}: discarded"

            await _deal_with(database, letter_ids, output, one)

    _do(work)


@cli.group()
def vault() -> None:
    """List, read and write vault files: in the bucket, or in SYNAPSE_DATA_DIR where there is none."""


TENANT = click.option("--tenant", default=None, help="Tenant whose files they are [default: DEFAULT_TENANT_ID].")


@vault.command("ls")
@click.argument("folder", default="")
@TENANT
@OUTPUT
def list_vault(folder: str, tenant: str | None, output: str) -> None:
    """List the files below FOLDER (default: all)."""

    async def work(settings: Settings) -> None:
        async with _blobs(settings) as blobs:
            root = vault_folder(tenant or settings.default_tenant_id)
            below = f"{root}{checked_path(folder.rstrip('/'))}/" if folder.rstrip("/") else root
            found = [blob async for blob in blobs.walk(below)]
        if output == "json":
            _print_json(
                [
                    {"path": blob.key.removeprefix(root), "size": blob.size, "modified": blob.modified.isoformat()}
                    for blob in found
                ]
            )
        elif found:
            rows = [("PATH", "BYTES", "MODIFIED")]
            for blob in found:
                modified = f"{blob.modified:%Y-%m-%d %H:%M:%S}"
                rows.append((blob.key.removeprefix(root), str(blob.size), modified))
            _print_table(rows)
        else:
            click.echo("no files")

    _do(work)


@vault.command("get")
@click.argument("path")
@click.argument("file", default="-", type=click.Path(path_type=Path, allow_dash=True))
@TENANT
def get_from_vault(path: str, file: Path, tenant: str | None) -> None:
    """Write the vault file PATH to FILE (default: standard output)."""

    async def work(settings: Settings) -> None:
        key = vault_key(tenant or settings.default_tenant_id, path)
        async with _blobs(settings) as blobs, aclosing(blobs.get(key)) as chunks:
            try:
                first = await anext(chunks, b"")
            except BlobNotFound:
                raise SynapseError(f"there is no vault file {path!r}; `synapse-worker vault ls` shows them") from None
            with click.open_file(str(file), "wb") as target:  # made only now, when there is something to write
                target.write(first)
                async for chunk in chunks:
                    target.write(chunk)

    _do(work)


@vault.command("put")
@click.argument("path")
@click.argument("file", default="-", type=click.File("rb"))
@TENANT
@OUTPUT
def put_into_vault(path: str, file: BinaryIO, tenant: str | None, output: str) -> None:
    """Write FILE (default: standard input) to the vault file PATH, in place of what it held."""

    async def content() -> AsyncIterator[bytes]:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk

    async def work(settings: Settings) -> None:
        key = vault_key(tenant or settings.default_tenant_id, path)
        async with _blobs(settings) as blobs:
            size = await blobs.put(key, content())
        if output == "json":
            _print_json({"path": path, "size": size})
        else:
            click.echo(f"{path}: {size} bytes written")

    _do(work)


def main() -> None:
    """Run the command line."""
    try:
        cli(standalone_mode=True)
    except SynapseError as error:
        click.echo(f"synapse-worker: {error}", err=True)
        sys.exit(1)


def _do(work: Callable[[Settings], Coroutine[None, None, None]]) -> None:
    settings = settings_module.load()
    set_up_logging(level="warning", form="console")
    asyncio.run(work(settings))


def _traced(settings: Settings) -> AbstractAsyncContextManager[None]:
    """Trace what a command enqueues; the worker goes on with it."""
    return tracing.exporting(settings.otlp_endpoint, service="synapse-producer", instance=settings.worker_id)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = open_database(
        settings.postgres_url, pgbouncer=settings.pgbouncer_mode, pool_size=2, ca_file=settings.postgres_ca_file
    )
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _redis(settings: Settings) -> AsyncIterator[Redis]:
    client = open_redis(settings.redis_url, ca_file=settings.redis_ca_file)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _blobs(settings: Settings) -> AsyncIterator[Blobs]:
    """Open the store of artifacts that the workers use: what is stored in PostgreSQL counts too."""
    async with _database(settings) as database:
        whole = settings.with_stored(await stored_settings(database))
    blobs = open_blobs(whole.s3, whole.data_dir)
    try:
        yield blobs
    finally:
        await blobs.close()


async def _enqueued(
    producer: Producer, database: Database, run: NewRun, most: int | None, rate: float | None
) -> AsyncIterator[str]:
    """Enqueue runs, yielding the ids; with a rate evenly over the time, until SIGTERM, whatever stores do meanwhile."""
    if rate is None:
        for _ in range(most or 0):
            yield await _enqueue_one(producer, database, run)
        return
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        began = time.monotonic()
        for done in itertools.count() if most is None else range(most):
            await _wait_until(began + done / rate, stop)
            if stop.is_set():
                return
            try:
                yield await _enqueue_one(producer, database, run, until=stop)
            except StoreUnavailable:
                return  # SIGTERM came first
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):  # what comes next, a --wait, ends as any command does
            loop.remove_signal_handler(number)


async def _enqueue_one(
    producer: Producer, database: Database, run: NewRun, *, until: asyncio.Event | None = None
) -> str:
    """Enqueue one run; with `until`, a store that is away is waited for until that is set.

    Raises:
        StoreUnavailable: a store is away.
        SynapseError: the tenant is being deleted.
    """
    now_ms = int(time.time() * 1000)
    run_id = new_run_id(now_ms)
    said = ""
    while True:
        try:
            quota = await tenants.quota_of(database, run.tenant_id)
            if quota is not None and quota.deleting:
                raise SynapseError(tenants.DELETING)
            return await producer.enqueue(run, run_id=run_id, now_ms=now_ms)  # the same id again: queued once
        except StoreUnavailable as error:
            if until is None:
                raise
            if str(error) != said:
                said = str(error)
                click.echo(f"waiting: {said}", err=True)
            await _wait_until(time.monotonic() + _AWAY_SECONDS, until)
            if until.is_set():
                raise


async def _wait_until(moment: float, or_until: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(0.0, moment - time.monotonic())):
            await or_until.wait()


async def _wait_for(database: Database, ids: Sequence[str], seconds: float) -> list[RunView]:
    deadline = time.monotonic() + seconds
    while True:
        views = await run_store.get(database, ids)
        if all(view.status in _ENDED for view in views) or time.monotonic() > deadline:
            return sorted(views, key=lambda view: ids.index(view.run_id))
        await asyncio.sleep(_POLL_SECONDS)


def _assignment(text: str, option: str = "--set") -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", param_hint=option)
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _print_runs(views: Sequence[RunView]) -> None:
    rows = [("RUN", "ORCHESTRATION", "STATUS", "STEPS", "SECONDS", "WORKER", "ERROR")]
    for view in views:
        seconds = (
            f"{(view.ended_at - view.started_at).total_seconds():.2f}" if view.started_at and view.ended_at else "-"
        )
        rows.append(
            (
                view.run_id,
                view.orchestration_id,
                view.status,
                str(view.steps_done),
                seconds,
                view.worker_id or "-",
                (view.error or (f"waits: {view.human_prompt}" if view.human_prompt else ""))[:80],
            )
        )
    _print_table(rows)


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


async def _letter(database: Database, letter_id: str) -> Letter:
    letter = await dead_letters.get(database, letter_id)
    if letter is None:
        raise SynapseError(f"there is no dead letter {letter_id!r}; `synapse-worker dlq list` shows them")
    return letter


async def _deal_with(
    database: Database,
    letter_ids: Sequence[str],
    output: str,
    one: Callable[[Letter], Coroutine[None, None, tuple[dict[str, object], str] | None]],
) -> None:
    """Do one thing with each letter; what was done before an error is printed too.

    Args:
        one: returns what to print, as JSON and as a line; None = somebody has dealt with the letter already.
    """
    done: list[dict[str, object]] = []
    try:
        for letter_id in letter_ids:
            said = await one(await _letter(database, letter_id))
            if said is None:
                raise SynapseError(f"letter {letter_id} was retried or discarded already")
            done.append(said[0])
            if output == "table":
                click.echo(said[1])
    finally:
        if output == "json":
            _print_json(done)


def _no_run(run_id: str) -> SynapseError:
    return SynapseError(f"there is no run {run_id!r}; `synapse-worker runs list` shows the newest")


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _letter_json(letter: Letter) -> dict[str, object]:
    failed = letter.failed_at.isoformat() if letter.failed_at else None
    return {**asdict(letter), "payload": letter.shown_payload, "failed_at": failed}


def _key_json(key: ApiKey) -> dict[str, object]:
    created = key.created_at.isoformat() if key.created_at else None
    return {"id": key.key_id, "name": key.name, "tenant_id": key.tenant_id, "created_at": created}


def _as_json(view: RunView) -> dict[str, object]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in asdict(view).items()}
