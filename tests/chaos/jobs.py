"""What other producers and workers do to the queue: a stock arq worker as a peer, payloads that nobody can run."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping

from arq.connections import RedisSettings, create_pool

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION
from tests.chaos import stock_worker
from tests.chaos.evidence import Expected
from tests.chaos.processes import hit_something
from tests.chaos.stage import Q, Stage

_ROUNDS = 2


async def stock_peer(stage: Stage, *, jobs: int, kills: int) -> None:
    """A stock worker and two of ours on one queue, a stock producer; ours are killed, one after another."""
    await stage.store(_ROUNDS)
    pool = await create_pool(RedisSettings(port=stage.redis.port), default_queue_name=Q)
    stage.resources.push_async_callback(pool.aclose)
    for _ in range(jobs):
        run_id = f"run_{secrets.token_hex(6)}_{time.time_ns() // 1_000_000}"
        stage.expect(run_id, _ROUNDS)
        await pool.enqueue_job(
            RUN_FUNCTION, _job_id=run_id, run_id=run_id, orch_id=f"rounds-{_ROUNDS}", initial_input="0.1"
        )
    workers = await stage.start_workers(2, WORKER_CONCURRENCY="5")
    command = [sys.executable, "-m", stock_worker.__name__, str(stage.redis.port), stage.postgres_url, "0.9"]
    peer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    stage.resources.callback(peer.wait)
    stage.resources.callback(peer.kill)
    for number in range(kills):
        place = number % len(workers)
        await stage.steps_begun(10)
        stage.fault()
        await asyncio.to_thread(workers[place].kill)
        (workers[place],) = await stage.start_workers(1, WORKER_CONCURRENCY="5")
    await stage.ended(seconds=120)
    hit_something(stage)
    rows = await stage.database.fetch("SELECT run_id FROM orchestration_runs WHERE worker_id = $1", stock_worker.BY)
    theirs = {row["run_id"] for row in rows}
    ours = {execution.run_id for execution in stage.executions()}
    stage.problems += [f"doubled: {run_id}: both kinds of workers ran it" for run_id in theirs & ours]
    if not theirs or not ours:
        stage.problems.append(f"the stock worker ran {len(theirs)} and ours {len(ours)}: they were no peers")
    for run_id in theirs:
        stage.expected[run_id] = Expected("completed")
    stage.say(f"the stock worker ran {len(theirs)} of {jobs}, ours {len(ours)}")


def _job(function: object, arguments: object, **more: object) -> bytes:
    return pickle.dumps({"t": None, "f": function, "a": (), "k": arguments, "et": 1, **more})


class _Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a payload was executed",))


_TIMELESS = "run_without_a_time"


def malformed() -> Mapping[str, bytes | None]:
    """Return kind -> a payload that no worker can run; None stands for a queue entry without one."""
    good = {"run_id": "run_of_nobody", "orch_id": f"rounds-{_ROUNDS}", "initial_input": "0"}
    return {
        "garbage": b"\x80\x04garbage",
        "empty": b"",
        "text": b"hello",
        "half-json": b'{"f": "run_orch',
        "list": json.dumps([1, 2]).encode(),
        "hostile": _job(RUN_FUNCTION, {"x": _Hostile()}),
        "stranger": _job("delete_everything", {}),
        "long-stranger": _job("f" * 5_000, {}),
        "no-function": _job(None, {}),
        "nameless": _job(RUN_FUNCTION, {"orch_id": "x"}),
        "number": _job(RUN_FUNCTION, {**good, "run_id": 7}),
        "long-run-id": _job(RUN_FUNCTION, {**good, "run_id": "r" * 3_000}),
        "nul-run-id": _job(RUN_FUNCTION, {**good, "run_id": "r\x00r"}),
        "surrogate": _job(RUN_FUNCTION, {**good, "orch_id": "\ud800"}),
        "surrogate-run-id": _job(RUN_FUNCTION, {**good, "run_id": "r\ud800"}),
        "bytes": _job(RUN_FUNCTION, {**good, "initial_state": b"x"}),
        "list-state": _job(RUN_FUNCTION, {**good, "initial_state": [1]}),
        "not-a-number": _job(RUN_FUNCTION, {**good, "initial_state": {"x": float("nan")}}),
        "huge-number": _job(RUN_FUNCTION, {**good, "initial_state": {"x": 10**5000}}),
        "deep": b'{"f": "%s", "k": {"x": %s}}' % (RUN_FUNCTION.encode(), b"[" * 500 + b"]" * 500),
        "argument-list": _job(RUN_FUNCTION, [1, 2]),
        "without": None,
    }


_STRANGE_IDS: Mapping[str, bytes] = {
    "a job id that is no UTF-8": b"\xff\xfe",
    "a job id of 400 characters": b"j" * 400,
    "a job id with a NUL": b"j\x00j",
    "an empty job id": b"",
}


async def malformed_payloads(stage: Stage, *, count: int, good: int) -> None:
    """Payloads that nobody can run, good runs in between and behind; each bad one ends with a sentence."""
    kinds = malformed()
    pipeline = stage.client.pipeline(transaction=False)
    bad_ids: dict[str, str] = {}
    for number, (kind, raw) in zip(range(count), itertools.cycle(kinds.items()), strict=False):
        bad_ids[job_id := f"bad_{number}"] = kind
        if raw is not None:
            pipeline.set(keys.job(job_id), raw)
        pipeline.zadd(Q, {job_id: 1_000 + number})
    for place, strange in enumerate(_STRANGE_IDS.values()):
        pipeline.set(keys.job("").encode() + strange, _job(RUN_FUNCTION, {"run_id": f"strange_{place}"}))
        pipeline.zadd(Q, {strange: 1_000 + place})
    await stage.store(_ROUNDS)
    stage.expect(_TIMELESS, _ROUNDS)
    arguments = {"run_id": _TIMELESS, "orch_id": f"rounds-{_ROUNDS}", "initial_input": "0"}
    pipeline.set(keys.job(_TIMELESS), _job(RUN_FUNCTION, arguments, et=10**30))
    pipeline.zadd(Q, {_TIMELESS: float("-inf")})
    await pipeline.execute()
    run_ids = await stage.enqueue(good // 2, rounds=_ROUNDS)
    # Younger by their own clock than all others, these stand in front of the bad ones.
    await stage.client.zadd(Q, {run_id: 1 + place for place, run_id in enumerate(run_ids)})
    stage.fault()
    began = time.monotonic()
    await stage.start_workers(2, WORKER_CONCURRENCY="10")
    await stage.enqueue(good - good // 2, rounds=_ROUNDS)
    await stage.ended(seconds=60 + count / 50)
    stage.say(f"the last good run ended {time.monotonic() - began:.0f} s after the start")
    deadline = time.monotonic() + 60 + count / 50
    while time.monotonic() < deadline:
        rows = await stage.database.fetch("SELECT job_id FROM job_ledger WHERE outcome IN ('failed', 'expired')")
        if set(bad_ids) <= {row["job_id"] for row in rows}:
            break
        await asyncio.sleep(0.3)
    missing = set(bad_ids) - {row["job_id"] for row in rows}
    if missing:
        kinds_left = ", ".join(sorted({bad_ids[job_id] for job_id in missing}))
        stage.problems.append(f"{len(missing)} payloads have not ended: {kinds_left}")
    letters = await stage.database.fetch("SELECT error_message FROM dead_letter_queue")
    said = sum(1 for row in letters if row["error_message"])
    if said != len(bad_ids) + len(_STRANGE_IDS):
        stage.problems.append(f"{said} dead letters with a sentence, not {len(bad_ids) + len(_STRANGE_IDS)}")
    if ended := [worker for worker in stage.workers if worker.has_ended]:
        stage.problems.append(f"{len(ended)} workers ended: {ended[0].log[-300:]}")
