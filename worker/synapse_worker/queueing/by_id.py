"""A queue of which only chosen jobs are claimed: those that this process has enqueued for itself.

All else of a lease is as for any other: it is prolonged, lost, given back and ended in the same way, and when this
process dies it runs out and the job goes to whoever serves the queue.
"""

from __future__ import annotations

from redis.asyncio import Redis

from synapse_worker.connections import redis_errors_as_ours
from synapse_worker.queueing.lease import Lease, LeaseQueue, load_script


class ChosenJobs(LeaseQueue):
    """The calls on one queue, for chosen jobs."""

    def __init__(self, client: Redis, queue_key: str, *, worker_id: str, lease_seconds: int) -> None:
        super().__init__(client, queue_key, worker_id=worker_id, lease_seconds=lease_seconds)
        self._due = load_script(client, "due")
        self._chosen: dict[str, None] = {}

    def choose(self, job_id: str) -> None:
        """Claim a job whenever it waits and is due, until `forget`."""
        self._chosen[job_id] = None
        self.drained = False

    def forget(self, job_id: str) -> None:
        """Claim a job no more."""
        self._chosen.pop(job_id, None)

    async def claim(self, want: int, now: float) -> list[Lease]:
        """Take up to `want` of the chosen jobs; as `LeaseQueue.claim`."""
        if not self._chosen:
            return []
        with redis_errors_as_ours():
            due: list[bytes] = await self._due(keys=[self.queue_key, self._again], args=list(self._chosen))
            candidates = [
                (0.0, due[at].decode(errors="surrogateescape"), due[at + 1].decode()) for at in range(0, len(due), 2)
            ]
            return await self._take(candidates, want, now, self._again) if candidates else []
