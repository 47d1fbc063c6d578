"""Who may enqueue what, in the order in which it is checked, and what a refusal says; pure.

The numbers come from `queueing.quotas` and `store.tenants`; the order of the checks is that of the functions here:
the tenant, its rate, its queued jobs, all jobs. Nothing is written for a job before all of them have let it pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from synapse_worker.queueing.quotas import Rate
from synapse_worker.routing import why_no_queue
from synapse_worker.store.tenants import DELETING

FULL_SECONDS = 1
"""Retry-After where room comes with the next job that is taken up."""
DELETING_SECONDS = 60
STREAMS_SECONDS = 5
MOST_STREAMS = 2_000
"""Streams that the clients of one process may follow at once: each is read ten times a second."""


class Reason(StrEnum):
    """Why a request is refused, as the metric says it."""

    UNAUTHENTICATED = "unauthenticated"
    OTHER_TENANT = "other_tenant"
    BAD_TENANT = "bad_tenant"
    RATE = "rate"
    TENANT_QUEUE = "tenant_queue"
    TENANT_DELETING = "tenant_deleting"
    DEPTH = "depth"
    STORE = "store"
    STREAMS = "streams"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is answered instead."""

    reason: Reason
    status: int
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use.

    Attributes:
        rate: requests per second.
        queued: jobs that wait; None = no limit of its own.
        deleting: it only finishes what it has.
    """

    rate: int
    queued: int | None
    deleting: bool


def tenant_of(asked: str | None, *, bound_to: str | None, default: str) -> str | Refusal:
    """Return the tenant of a request.

    Args:
        asked: its tenant_id, if it names one.
        bound_to: the only tenant of its key; None = any.
    """
    if bound_to is not None and asked is not None and asked != bound_to:
        return Refusal(Reason.OTHER_TENANT, 403, f"this key is bound to another tenant than {asked[:60]!r}")
    return asked or bound_to or default


def bad_tenant(tenant_id: str, *, isolation: bool) -> Refusal | None:
    """Refuse a tenant that cannot have the queue that it would need."""
    if isolation and (reason := why_no_queue(tenant_id)):
        sentence = f"tenant_id {tenant_id[:60]!r} cannot have a queue of its own: {reason}"
        return Refusal(Reason.BAD_TENANT, 400, sentence)
    return None


def rate_headers(rate: Rate) -> dict[str, str]:
    """Return what every answer says of the tenant's rate."""
    return {"X-RateLimit-Limit": str(rate.limit), "X-RateLimit-Remaining": str(rate.remaining)}


def over_rate(rate: Rate) -> Refusal | None:
    """Refuse a request beyond its tenant's rate."""
    if rate.allowed:
        return None
    return Refusal(
        Reason.RATE,
        429,
        f"the tenant's limit of {rate.limit} requests per second is used up",
        {**rate_headers(rate), **retry_after(math.ceil(rate.wait_ms / 1000))},
    )


def being_deleted(limits: Limits) -> Refusal | None:
    """Refuse new jobs of a tenant that goes."""
    if not limits.deleting:
        return None
    return Refusal(Reason.TENANT_DELETING, 429, DELETING, retry_after(DELETING_SECONDS))


def tenant_full(limit: int) -> Refusal:
    """Refuse a job over its tenant's max_queued_runs."""
    sentence = f"the tenant has {limit} queued jobs, as many as it may (max_queued_runs)"
    return Refusal(Reason.TENANT_QUEUE, 429, sentence, retry_after(FULL_SECONDS))


def all_full(limit: int) -> Refusal:
    """Refuse a job over the global depth."""
    sentence = f"{limit} jobs are queued or active, as many as there may be (MAX_GLOBAL_QUEUE_DEPTH)"
    return Refusal(Reason.DEPTH, 503, sentence, retry_after(FULL_SECONDS))


def too_many_streams(followed: int) -> Refusal | None:
    """Refuse a client that would follow one stream more than a process can serve."""
    if followed < MOST_STREAMS:
        return None
    sentence = f"the clients of this process follow {followed} streams, as many as it serves; ask for /status instead"
    return Refusal(Reason.STREAMS, 503, sentence, retry_after(STREAMS_SECONDS))


def retry_after(seconds: int) -> dict[str, str]:
    """Return the header that says when to come back, in whole seconds."""
    return {"Retry-After": str(max(1, seconds))}
