"""A stock arq worker as a main instance runs one, in a process of its own: its runs are done in one go, without us.

It writes what upstream's function writes of a run that we can compare: a row, completed. Started as
`python -m tests.chaos.stock_worker PORT POSTGRES_URL SECONDS`; a job takes that many seconds.
"""

from __future__ import annotations

import asyncio
import sys

from arq import func
from arq.connections import RedisSettings, create_pool
from arq.worker import Worker
from pydantic import SecretStr

from synapse_worker.connections import open_database
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import RUN_FUNCTION

BY = "stock"
"""The worker_id of its runs."""


async def _main(port: int, postgres_url: str, seconds: float) -> None:
    database = open_database(SecretStr(postgres_url))

    async def run_orchestration_job(ctx: dict[str, object], run_id: str, **arguments: object) -> None:
        await asyncio.sleep(seconds)
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history,"
            " worker_id) VALUES ($1, $2, 'default', 'completed', '{}', '[]', $3)"
            " ON CONFLICT (run_id) DO UPDATE SET status = 'completed', worker_id = $3",
            run_id,
            arguments["orch_id"],
            BY,
        )

    worker = Worker(
        [func(run_orchestration_job, name=RUN_FUNCTION)],
        queue_name=keys.queue("default"),
        redis_pool=await create_pool(RedisSettings(port=port), default_queue_name=keys.queue("default")),
        poll_delay=0.05,
        max_jobs=10,
        keep_result=0,
        max_tries=1,
        log_results=False,
    )
    await worker.async_run()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
