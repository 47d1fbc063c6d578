"""How the installation stands: workers, queues, tenants, and what failed for good."""

from __future__ import annotations

import time

from fastapi import APIRouter

from synapse_worker.api.auth import Caller
from synapse_worker.api.context import Context, ContextDep, PassedDep, UnboundDep
from synapse_worker.api.models import (
    MOST_LISTED,
    LetterDone,
    LetterState,
    Limit,
    PathId,
    QueueState,
    QueueStats,
    TenantState,
    WorkerState,
)
from synapse_worker.api.problems import Problem, answers
from synapse_worker.queueing import keys
from synapse_worker.queueing.client import QueueFigures, known_queues, readable_figures
from synapse_worker.store import dead_letters, tenants, workers
from synapse_worker.store.dead_letters import Letter

router = APIRouter(tags=["operations"])

_PAGE = 500


@router.get("/workers", responses=answers())
async def list_workers(context: ContextDep, caller: UnboundDep, limit: Limit = MOST_LISTED) -> list[WorkerState]:
    """List workers, those that were heard last first."""
    rows = await workers.list_all(context.database, limit=limit)
    return [WorkerState.model_validate(row, from_attributes=True) for row in rows]


@router.get("/queue/stats", responses=answers())
async def queue_stats(context: ContextDep, caller: UnboundDep) -> QueueStats:
    """Return how full the queues are."""
    figures = await queues_with_jobs(context)
    return QueueStats(
        queued=sum(queue.queued for queue in figures.values()),
        active=sum(queue.active for queue in figures.values()),
        max_depth=context.settings.max_queue_depth,
        queues=[
            QueueState(
                name=keys.shard_of(name),
                queued=queue.queued,
                active=queue.active,
                parked=queue.parked,
                oldest_seconds=queue.oldest_seconds,
            )
            for name, queue in figures.items()
        ],
    )


async def queues_with_jobs(context: Context) -> dict[str, QueueFigures]:
    """Return the figures of all queues that hold jobs, by key."""
    names = await known_queues(context.database)
    found: dict[str, QueueFigures] = {}
    for start in range(0, len(names), _PAGE):
        figures = await readable_figures(context.client, names[start : start + _PAGE])
        found |= {name: queue for name, queue in figures.items() if not queue.empty}
    return found


@router.get("/tenants", responses=answers())
async def list_tenants(context: ContextDep, caller: PassedDep, limit: Limit = MOST_LISTED) -> list[TenantState]:
    """List tenants that have limits of their own, by id; with a key of a tenant that one."""
    rows = await tenants.list_rows(context.database, only=caller.tenant_id, limit=limit)
    standing = await tenants.standing(context.database, [row.tenant_id for row in rows])
    return [
        TenantState.model_validate(
            {
                **{name: getattr(row, name) for name in TenantState.model_fields if hasattr(row, name)},
                "queued": standing[row.tenant_id].queued,
                "active": standing[row.tenant_id].active,
            }
        )
        for row in rows
    ]


@router.get("/dlq", responses=answers())
async def list_letters(context: ContextDep, caller: PassedDep, limit: Limit = 100) -> list[LetterState]:
    """List the newest jobs that failed for good and that nobody has dealt with; with a key of a tenant its own."""
    letters = await dead_letters.unresolved(context.database, limit=limit, tenant_id=caller.tenant_id)
    return [_shown(letter) for letter in letters]


@router.post("/dlq/{letter_id}/retry", status_code=202, responses=answers(404, 409))
async def retry(context: ContextDep, caller: PassedDep, letter_id: PathId) -> LetterDone:
    """Queue a letter's job again; its run goes on behind its last checkpoint."""
    letter = await _letter(context, caller, letter_id)
    job_id = await context.producer.retry_letter(letter, now_ms=int(time.time() * 1000))
    if job_id is None:
        raise _dealt_with()
    return LetterDone(id=letter.id, run_id=letter.run_id, job_id=job_id)


@router.post("/dlq/{letter_id}/discard", responses=answers(404, 409))
async def discard(context: ContextDep, caller: PassedDep, letter_id: PathId) -> LetterDone:
    """Mark a letter as dealt with."""
    letter = await _letter(context, caller, letter_id)
    if not await dead_letters.discard(context.database, letter.id):
        raise _dealt_with()
    return LetterDone(id=letter.id, run_id=letter.run_id)


async def _letter(context: Context, caller: Caller, letter_id: str) -> Letter:
    letter = await dead_letters.get(context.database, letter_id)
    if letter is None or caller.tenant_id not in (None, letter.tenant_id):
        raise Problem(404, f"there is no dead letter {letter_id!r}")
    return letter


def _dealt_with() -> Problem:
    return Problem(409, "the letter was retried or discarded already")


def _shown(letter: Letter) -> LetterState:
    return LetterState.model_validate(
        {
            **{name: getattr(letter, name) for name in LetterState.model_fields},
            "payload": letter.shown_payload,
        }
    )
