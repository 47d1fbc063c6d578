"""Every Redis key of the product on one screen: the wire that an existing Synapse install shares with us.

Pure names, no client. What the values hold is said beside each; the scripts folder says who writes them.
"""

from __future__ import annotations

import hashlib

from arq.constants import (
    abort_jobs_ss,
    health_check_key_suffix,
    in_progress_key_prefix,
    job_key_prefix,
    result_key_prefix,
    retry_key_prefix,
)

QUEUE_PREFIX = "synapse:orchestrations:"
HEARTBEAT_CHANNEL = "synapse:workers:heartbeat"
OWNER = "synapse:owner"
"""string: UID of the SynapseScale that uses this Redis."""
ADMISSION = "synapse:admission"
"""hash: base = jobs in all queues when last counted and enqueued since, version, rebased = when (ms)."""
ADMISSION_PENDING = "{" + ADMISSION + "}:pending"
"""zset: job id -> since when (ms) it is counted and not enqueued yet."""
ABORT = abort_jobs_ss
"""zset: ids of the jobs that arq's `Job.abort()` wants ended, with the time in ms."""
ACTIVE_TENANTS = "synapse:tenants:active"
"""zset: tenant whose own queue holds jobs -> when that was last seen, in us of Redis time. Old ones are dropped."""
ACTIVE_TENANTS_TICK = ACTIVE_TENANTS + ":tick"
"""string: present = a worker of the tenant pool has looked through all tenants' queues within the last second."""
RUN_STREAM_MAX_LENGTH = 10_000
CHAT_STREAM_MAX_LENGTH = 5_000
JOB_TTL_MS = 8 * 86_400_000
"""How long we keep an envelope in Redis: arq's own 24 h is shorter than a full queue may take."""
RESULT_TTL_MS = 3_600_000
CANCEL_TTL_SECONDS = 3_600


def queue(shard: str) -> str:
    """zset: job id -> due time in ms (arq's queue). `shard` is `default`, an index or a tenant id."""
    return QUEUE_PREFIX + shard


def shard_of(queue_key: str) -> str:
    """The inverse of `queue`."""
    return queue_key.removeprefix(QUEUE_PREFIX)


def leases(queue_key: str) -> str:
    """zset: job id -> deadline of its lease, in ms of Redis time."""
    return "{" + queue_key + "}:leases"


def claims(queue_key: str) -> str:
    """hash: job id -> token|original score|worker id."""
    return "{" + queue_key + "}:claims"


def again(queue_key: str) -> str:
    """zset: jobs that we claimed once and gave back, out of reach of stock arq workers."""
    return "{" + queue_key + "}:again"


def suspects(queue_key: str) -> str:
    """zset: jobs whose owner crashed over them, until a worker with nothing else to do takes one; scores as above."""
    return "{" + queue_key + "}:suspects"


def isolating(queue_key: str) -> str:
    """zset: worker id -> until when (ms) it claims nothing, to be empty for a suspect."""
    return "{" + queue_key + "}:isolating"


def parked(queue_key: str) -> str:
    """hash: tenant -> how many of its jobs are parked, so that nobody has to look for keys."""
    return "{" + queue_key + "}:parked"


def parked_of(queue_key: str, tenant_id: str) -> str:
    """zset: jobs over their tenant's max_concurrent_runs; scores as above."""
    return "{" + queue_key + "}:parked:" + tenant_id


def tick(queue_key: str) -> str:
    """string: present = a worker has looked after the parked jobs within the last second."""
    return "{" + queue_key + "}:tick"


def parking(queue_key: str) -> str:
    """string: present = a worker is parking what waits in the queue over its tenant's limit."""
    return "{" + queue_key + "}:parking"


def running(tenant_id: str) -> str:
    """zset: job id -> deadline (ms) of the tenant's reservations; for a second it may be an ended job's id."""
    return _of_tenant(tenant_id, "running")


def queued(tenant_id: str) -> str:
    """zset: job id -> since when (ms) it is queued; only jobs that were admitted, of tenants with a limit."""
    return _of_tenant(tenant_id, "queued")


def rate(tenant_id: str) -> str:
    """hash: number of a slice of time -> requests of the tenant in it."""
    return _of_tenant(tenant_id, "rate")


def _of_tenant(tenant_id: str, what: str) -> str:
    """One slot for all of a tenant's keys. Hashed: braces in an id would move the slot."""
    return "synapse:tenant:{" + hashlib.sha256(tenant_id.encode()).hexdigest()[:16] + "}:" + what


def job(job_id: str) -> str:
    """string: arq's serialized job."""
    return job_key_prefix + job_id


def retry(job_id: str) -> str:
    """string: arq's try counter (ours live in the ledger; stock arq's is deleted with the job)."""
    return retry_key_prefix + job_id


def result(job_id: str) -> str:
    """string: arq's result, so that `Job.status()` and `Job.result_info()` of a producer answer."""
    return result_key_prefix + job_id


def in_progress(job_id: str) -> str:
    """string: present while somebody runs the job (stock arq, or we for its sake)."""
    return in_progress_key_prefix + job_id


def health(queue_key: str) -> str:
    """string: arq's health line of the workers of a queue."""
    return queue_key + health_check_key_suffix


def turn(task: str) -> str:
    """string: present while a task of housekeeping need not be done again by anybody."""
    return f"synapse:housekeeping:{task}"


def human_input(run_id: str) -> str:
    """string: an answer that a main instance leaves for an hour; never read, since the answer comes with its job."""
    return f"synapse:human_input:{run_id}"


def run_events(run_id: str) -> str:
    """stream: field `data` holds one JSON event."""
    return f"synapse:run:{run_id}:events"


def chat_events(session_id: str) -> str:
    """stream: the same for a chat session, all its turns."""
    return f"synapse:chat:{session_id}:events"


def event_claim(stream_key: str) -> str:
    """string: the highest claim that has written to the stream."""
    return "{" + stream_key + "}:claim"


def cancel(run_id: str) -> str:
    """string: present = cancel wanted."""
    return f"synapse:cancel:{run_id}"


def cancel_chat(session_id: str) -> str:
    """string: present = cancel of the session's turn wanted."""
    return f"synapse:cancel:chat:{session_id}"
