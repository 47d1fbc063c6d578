"""Transforms that need all of Python, in the worker as it runs: its own loop, its own process, its own limits."""

from __future__ import annotations

from redis.asyncio import Redis

from synapse_worker.store.database import Database
from tests.support.runs import enqueue, store, until
from tests.support.workers import StartWorker, chain

MEAN = """
import statistics

class Empty(ValueError):
    pass

def prices():
    yield from (1.5, 2.5)

result = {"mean": statistics.mean(prices()), "input": state["user_input"]}
"""
HARM = "import ctypes\nclass A(Exception):\n    pass\nctypes.string_at(0)\n"


def transform(orchestration_id: str, code: str) -> dict[str, object]:
    """Return a definition of one transform."""
    return chain(orchestration_id, [{"id": "t", "type": "transform", "transform_code": code, "output_key": "out"}])


async def test_they_run_and_harm_fails_its_own_run_only(
    database: Database, redis_client: Redis, start_worker: StartWorker
) -> None:
    await store(database, transform("mean", MEAN), transform("harm", HARM))
    worker = start_worker().wait_ready()
    harmful = await enqueue(database, redis_client, "harm")
    good = [await enqueue(database, redis_client, "mean", str(number)) for number in range(5)]
    failed = await until(database, harmful, "failed", "completed")
    assert failed.error is not None
    assert "The code ended its process (Segmentation fault)" in failed.error
    for number, run_id in enumerate(good):
        done = await until(database, run_id, "completed")
        assert done.state["out"] == {"mean": 2.0, "input": str(number)}
    assert not worker.has_ended
