"""The reference of the API's figures: a handler that writes what a run of ours needs, and does nothing else.

FastAPI and uvicorn, the same statement and the same scripts by the same clients, one after another: no key, no limits
looked up, no orchestration or topology read, nothing counted for metrics. Run as a module it is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, SecretStr

from synapse_worker.connections import open_database, open_redis
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION, new_run_id, put
from synapse_worker.queueing.payload import JobPayload, encode
from synapse_worker.queueing.quotas import Quotas
from synapse_worker.store import runs
from tests.support.servers import free_port, wait_until

NO_LIMIT = 1_000_000
_PORT = "BENCH_API_PORT"
_REDIS = "BENCH_REDIS_URL"
_POSTGRES = "BENCH_POSTGRES_URL"
_POSTGRES_CONNECTIONS = 5
"""As many as an API process has."""


@contextmanager
def process(redis_url: str, postgres_url: str) -> Iterator[tuple[int, int]]:
    """Run it as a process; gives its port and its process id."""
    port = free_port()
    environment = {**os.environ, _PORT: str(port), _REDIS: redis_url, _POSTGRES: postgres_url}
    started = subprocess.Popen([sys.executable, "-m", __name__], env=environment)

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=5):
                return True
        except urllib.error.URLError:
            assert started.poll() is None, "the bare handler has ended"
            return False

    try:
        wait_until("the bare handler is ready", ready)
        yield port, started.pid
    finally:
        started.kill()
        started.wait()


class _Request(BaseModel):
    message: str
    tenant_id: str


class _Accepted(BaseModel):
    run_id: str
    status: str


def _application() -> FastAPI:
    app = FastAPI()
    client = open_redis(SecretStr(os.environ[_REDIS]))
    database = open_database(SecretStr(os.environ[_POSTGRES]), pool_size=_POSTGRES_CONNECTIONS)
    quotas = Quotas(client)
    queue = keys.queue("default")

    @app.post("/api/v2/orchestrations/{orchestration_id}/run", status_code=202)
    async def enqueue(orchestration_id: str, body: _Request) -> _Accepted:
        now_ms = int(time.time() * 1000)
        run_id, tenant_id = new_run_id(now_ms), body.tenant_id
        await quotas.request(tenant_id, NO_LIMIT)
        await quotas.take_place(tenant_id, run_id, NO_LIMIT)
        await quotas.admit(run_id, NO_LIMIT)
        arguments = {"run_id": run_id, "orch_id": orchestration_id, "initial_input": body.message}
        envelope = encode(JobPayload(RUN_FUNCTION, {**arguments, "tenant_id": tenant_id}, enqueued_ms=now_ms))
        row = runs.QueuedRun(run_id, orchestration_id, None, tenant_id, run_id, queue, envelope)
        await runs.create_queued(database, row, epoch=0)
        await put(client, queue, run_id, envelope)
        await quotas.settle(run_id, enqueued=True)
        return _Accepted(run_id=run_id, status="queued")

    return app


if __name__ == "__main__":
    uvicorn.run(_application(), host="127.0.0.1", port=int(os.environ[_PORT]), log_level="warning", access_log=False)
