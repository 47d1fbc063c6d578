"""Run logs: one object of JSON lines for each end or pause of a run, written beside the runs.

A run's end only notes that its log is due (`store.run_logs`). Any worker takes such notes in small batches, reads the
steps from PostgreSQL and writes the objects; what a store of artifacts does not take now is tried again later, and
nobody waits for it. A key carries the claim, so a later end of the run never writes over an earlier one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import groupby

from synapse_worker.errors import BlobNotFound, BlobRefused, StoreRefused, StoreUnavailable
from synapse_worker.gate import StoreGate
from synapse_worker.store import run_logs
from synapse_worker.store.blobs import Blobs, logs_folder
from synapse_worker.store.database import Database
from synapse_worker.store.run_logs import DueLog, StepLine

log = logging.getLogger(__name__)

BATCH = 50
_AT_ONCE = 8
_LEASE_SECONDS = 120.0
_PAUSE_SECONDS = 0.5
_SHORT_PAUSE_SECONDS = 0.05
_BUSY_PAUSE_SECONDS = 2.0
_LATE_SECONDS = 60.0
"""A log that has been due for so long is written however busy the process is."""
_IDLE_SECONDS = 15.0
_GIVE_UP_DAYS = 30


class RunLogs:
    """Writes the logs that are due. Run `keep` as a task."""

    def __init__(
        self, database: Database, blobs: Blobs, gate: StoreGate, *, busy: Callable[[], bool] = lambda: False
    ) -> None:
        """Make a writer.

        Args:
            database: where it is noted what is due.
            blobs: where logs go.
            gate: whether the stores answer.
            busy: whether runs need all that this process has; logs then go slowly, unless they are late.
        """
        self._busy = busy
        self._database = database
        self._blobs = blobs
        self._gate = gate
        self._said = ""
        self._late = False

    async def keep(self) -> None:
        """Write what is due for ever: at once while there is much, else looking now and then."""
        pause = _PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311 - spreads the workers
            done = 0
            if self._gate.is_open:
                try:
                    done = await self.write_due()
                except (StoreUnavailable, StoreRefused) as error:  # PostgreSQL's; the loop that claims meets it too
                    self._gate.trip(error)
                except Exception:
                    log.exception("writing run logs met an unexpected error; it goes on")
            pause = next_pause(pause, done, busy=self._busy(), late=self._late)

    async def write_due(self) -> int:
        """Write one batch; returns how many logs."""
        due = await run_logs.lease(self._database, limit=BATCH, seconds=_LEASE_SECONDS)
        if not due:
            return 0
        # Clocks that differ by seconds do no harm.
        self._late = (datetime.now(UTC) - min(one.ended_at for one in due)).total_seconds() > _LATE_SECONDS
        page = await run_logs.steps(self._database, [one.run_id for one in due])
        known = {run_id: list(lines) for run_id, lines in groupby(page, key=lambda step: step.run_id)}
        # The page may have ended inside the last of these runs; of those behind it there is nothing yet.
        whole = {run_id for run_id in known if run_id != page[-1].run_id}
        slots = asyncio.Semaphore(_AT_ONCE)

        async def write(one: DueLog) -> bool:
            async with slots:
                return await self._write(one, known.get(one.run_id, ()), whole=one.run_id in whole)

        done = await asyncio.gather(*map(write, due))
        written = [one for one, is_written in zip(due, done, strict=True) if is_written]
        if written:
            await run_logs.settle(self._database, written)
        if len(written) < len(due):
            await run_logs.give_up(self._database, older_than_days=_GIVE_UP_DAYS)
        elif self._said:
            log.info("run logs are written again")
            self._said = ""
        return len(written)

    async def _write(self, due: DueLog, first: Sequence[StepLine], *, whole: bool) -> bool:
        try:
            await self._blobs.put(log_key(due), self._chunks(due, first, whole=whole))
        except (StoreUnavailable, StoreRefused, BlobRefused) as error:
            if str(error) != self._said:
                self._said = str(error)
                log.warning("run logs wait: %s", error)
            return False
        except Exception:  # of one log: the others of its batch are settled all the same
            log.exception("the log of run %s met an unexpected error; it is tried again", due.run_id)
            return False
        return True

    async def _chunks(self, due: DueLog, first: Sequence[StepLine], *, whole: bool) -> AsyncIterator[bytes]:
        """Yield a log: a line on the run, then one for each step that it had done by then.

        Args:
            due: which log.
            first: the run's first steps, as far as they are known.
            whole: there are no more.
        """
        yield _heading(due)
        page = first
        while True:
            if page:
                yield "".join([step.line for step in page if step.claim <= due.claim]).encode()
            if whole:
                return
            page = await run_logs.steps(self._database, [due.run_id], after=page[-1].ordinal if page else 0)
            if not page:
                return


def next_pause(before: float, done: int, *, busy: bool, late: bool) -> float:
    """Return for how many seconds to leave the logs alone.

    Args:
        before: the pause before this one.
        done: logs that were written since.
        busy: whether runs need all that the process has.
        late: whether a log has been due for long; then they are written however busy it is.
    """
    if not done:
        return min(_IDLE_SECONDS, max(before, _PAUSE_SECONDS) * 2)
    if busy and not late:
        return _BUSY_PAUSE_SECONDS
    return _SHORT_PAUSE_SECONDS if done == BATCH else _PAUSE_SECONDS


def log_key(due: DueLog) -> str:
    """Return the key of a log; those of one run sort by the time of what they end with."""
    moment = f"{due.ended_at:%Y%m%dT%H%M%S.%fZ}"
    return f"{logs_folder(due.tenant_id, due.run_id)}{due.claim:020d}-{moment}-{due.status}.jsonl"


async def newest_log(blobs: Blobs, tenant_id: str, run_id: str) -> AsyncGenerator[bytes]:
    """Yield the content of a run's newest log.

    Raises:
        BlobNotFound: there is none.
    """
    newest = None
    async with aclosing(blobs.walk(logs_folder(tenant_id, run_id))) as found:
        async for blob in found:
            newest = blob.key
    if newest is None:
        raise BlobNotFound(logs_folder(tenant_id, run_id))
    async with aclosing(blobs.get(newest)) as chunks:
        async for chunk in chunks:
            yield chunk


def _heading(due: DueLog) -> bytes:
    facts = json.loads(due.facts) if due.facts else {}
    heading = {
        "type": "run",
        "run_id": due.run_id,
        "tenant_id": due.tenant_id,
        "status": due.status,
        "error": due.error,
        "claim": due.claim,
        "ended_at": due.ended_at.isoformat(),
        **facts,
    }
    return json.dumps(heading, ensure_ascii=False).encode(errors="replace") + b"\n"
