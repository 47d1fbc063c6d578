"""Taking a job in: the limits in their order, the write that makes it durable, and what is said when a store goes away.

Routes say what the job is and how it is written. A job counts as accepted once PostgreSQL has it: from there on the
sweep of the workers brings it into its queue, whatever happens to this process or to Redis.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastapi import Request

from synapse_worker.api import admission
from synapse_worker.api.context import Context, refuse
from synapse_worker.api.problems import Problem, store_problem
from synapse_worker.errors import StoreRefused, StoreUnavailable
from synapse_worker.queueing.client import known_queues
from synapse_worker.store import idempotency, ledger

log = logging.getLogger(__name__)


async def same_request(context: Context, tenant_id: str, key: str | None, body: object, job_id: str) -> str:
    """Return the id that a request's job has: that of the first request with its Idempotency-Key, else `job_id`.

    Args:
        body: all that makes the request what it is, as JSON.

    Raises:
        Problem: 409, the key came with another request before.
    """
    if key is None:
        return job_id
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    found = await idempotency.remember(
        context.database,
        tenant_id,
        key,
        request_hash=hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
        job_id=job_id,
    )
    if not found.same:
        raise Problem(409, "this Idempotency-Key came with another request within the last 24 hours; use a new one")
    return found.job_id


async def submit(
    request: Request, context: Context, tenant_id: str, job_id: str, enqueue: Callable[[], Awaitable[object]]
) -> None:
    """Enqueue a job that its tenant's rate has let pass, if the limits on jobs do so too.

    A job that was accepted meanwhile, by another request with the same Idempotency-Key, is not refused any more.

    Args:
        enqueue: makes it durable and queues it; may be called again with the same id.

    Raises:
        Problem: a limit is reached, or a store is away and the job was not accepted.
    """
    limits = await context.limits_of(tenant_id)
    refuse(request, admission.being_deleted(limits))
    if limits.queued is not None and not await context.quotas.take_place(tenant_id, job_id, limits.queued):
        if await _is_durable(context, job_id):
            return
        refuse(request, admission.tenant_full(limits.queued))
    depth = context.settings.max_queue_depth
    admitted = await context.quotas.admit(job_id, depth)
    while admitted is None:  # an empty Redis
        await context.quotas.rebase(await known_queues(context.database))
        admitted = await context.quotas.admit(job_id, depth)
    if not admitted:
        if await _is_durable(context, job_id):
            return
        await context.quotas.leave_place(tenant_id, [job_id])
        refuse(request, admission.all_full(depth))
    try:
        await enqueue()
    except (StoreUnavailable, StoreRefused) as error:
        if not await _is_durable(context, job_id):
            request.state.refusal = admission.Reason.STORE.value
            raise _unaccepted(error, job_id) from None
        log.warning("job %s is accepted and comes into its queue later: %s", job_id, error)
        return
    except Exception:
        await _take_back(context, tenant_id, job_id)
        raise
    with suppress(StoreUnavailable, StoreRefused):  # what is never settled is forgotten in time
        await context.quotas.settle(job_id, enqueued=True)


async def _is_durable(context: Context, job_id: str) -> bool:
    try:
        return await ledger.knows(context.database, job_id)
    except (StoreUnavailable, StoreRefused):
        return False


async def _take_back(context: Context, tenant_id: str, job_id: str) -> None:
    with suppress(StoreUnavailable, StoreRefused):
        await context.quotas.settle(job_id, enqueued=False)
        await context.quotas.leave_place(tenant_id, [job_id])


def _unaccepted(error: StoreUnavailable | StoreRefused, job_id: str) -> Problem:
    problem = store_problem(error)
    sentence = (
        f"{error}; {job_id} may have been accepted if the answer of PostgreSQL alone got lost: ask for it, or send"
        " the request again with the same Idempotency-Key"
    )
    return Problem(problem.status, sentence, problem.headers)
