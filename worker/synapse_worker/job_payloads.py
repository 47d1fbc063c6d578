"""What a job's payload asks for, and the result that is left for whoever waits on it.

Reading bytes is `queueing.payload`'s; here the arguments of our functions get their names and are checked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from synapse_worker.errors import PayloadError
from synapse_worker.queueing.client import ANSWER_FUNCTION, CHAT_FUNCTION, RESUME_FUNCTION, RUN_FUNCTION
from synapse_worker.queueing.lease import Lease
from synapse_worker.queueing.payload import JobPayload, encode_result
from synapse_worker.store.claims import ClaimRequest

MAX_ID = 255
MAX_URL = 8192
"""Characters of a webhook_url, and of a webhook_secret."""

PARAMETERS = {
    RUN_FUNCTION: (
        "run_id",
        "orch_id",
        "initial_input",
        "session_id",
        "initial_state",
        "webhook_url",
        "webhook_secret",
        "tenant_id",
        "api_key_id",
    ),
    RESUME_FUNCTION: ("run_id",),
    ANSWER_FUNCTION: ("run_id", "human_response", "webhook_url", "webhook_secret"),
    CHAT_FUNCTION: ("session_id", "agent_id", "message", "images", "webhook_url", "webhook_secret", "tenant_id"),
}
"""The functions of this release, each with its arguments in the order of upstream's function."""


def named(payload: JobPayload) -> JobPayload:
    """Return the job with its positional arguments under their names; what a name is given for wins."""
    if not payload.positional:
        return payload
    names = PARAMETERS.get(payload.function, ())
    given = dict(zip(names, payload.positional, strict=False))
    arguments = {**given, **payload.arguments}
    return payload._replace(arguments=arguments, positional=payload.positional[len(names) :])


def retried_as(payload: JobPayload) -> tuple[str, Mapping[str, object]]:
    """Return the function and its arguments by which a failed job's run goes on.

    A job that brought an answer finds no paused run any more; its run goes on as every failed one does.
    """
    if payload.function == ANSWER_FUNCTION:
        return RESUME_FUNCTION, {"run_id": payload.arguments.get("run_id")}
    return payload.function, payload.arguments


def storable(text: str, most: int = MAX_ID) -> bool:
    """Whether PostgreSQL can hold a text in a column of so many characters, and a key of Redis name it."""
    try:
        return len(text.encode()) > 0 and len(text) <= most and "\x00" not in text
    except UnicodeEncodeError:
        return False


def usable(arguments: Mapping[str, object], name: str, most: int = MAX_ID) -> str | None:
    """Return a text among the arguments of a job that is not run, as far as a column can hold it; else None."""
    value = arguments.get(name)
    return value if isinstance(value, str) and storable(value, most) else None


def is_a_sessions(payload: JobPayload) -> bool:
    """Whether a job is a turn of a chat and names a session that can have a stream."""
    session_id = payload.arguments.get("session_id")
    return payload.function == CHAT_FUNCTION and isinstance(session_id, str) and _streams(session_id)


def _streams(name: str) -> bool:
    """Whether a run or a session of this id can have a stream.

    With braces in it, on a Redis Cluster, the stream and the claim on it would live in different hash slots.
    """
    return storable(name) and not set("{}") & set(name)


def claim_request(lease: Lease, envelope: bytes, payload: JobPayload, default_tenant: str) -> ClaimRequest:
    """Check a job's arguments and return what it asks for; a chat's turn runs under its job's id.

    Raises:
        PayloadError: the function is not run by this release, or an argument is missing or of the wrong kind.
    """
    if payload.function not in PARAMETERS:
        raise PayloadError(
            f"unknown job function {payload.function[:80]!r}; this release runs {' and '.join(PARAMETERS)}"
        )
    arguments = payload.arguments
    chat = payload.function == CHAT_FUNCTION
    streamed = "session_id" if chat else "run_id"
    if set("{}") & set(str(arguments.get(streamed))):
        raise PayloadError(f"the job's argument {streamed} must not hold braces")

    def text(name: str, *, required: bool = False, most: int = MAX_ID) -> str | None:
        value = arguments.get(name)
        if value in (None, "") and not required:
            return None
        if not isinstance(value, str) or not storable(value, most):
            raise PayloadError(f"the job's argument {name} must be a text of 1 to {most} characters")
        return value

    if arguments.get("initial_state") is not None and not isinstance(arguments["initial_state"], dict):
        raise PayloadError("the job's argument initial_state must be a mapping of state keys")
    if payload.function == ANSWER_FUNCTION and arguments.get("human_response") is None:
        raise PayloadError("the job's argument human_response is missing; it is a text, or an object of the fields")
    started = {RUN_FUNCTION: "orch_id", CHAT_FUNCTION: "agent_id"}.get(payload.function)
    if chat and not isinstance(arguments.get("message"), str):
        raise PayloadError("the job's argument message must be a text")
    images = arguments.get("images")
    if chat and not (images is None or (isinstance(images, list) and all(isinstance(image, str) for image in images))):
        raise PayloadError("the job's argument images must be a list of texts")
    return ClaimRequest(
        job_id=lease.job_id,
        run_id=lease.job_id if chat else str(text("run_id", required=True)),
        queue=lease.queue_key,
        envelope=envelope,
        enqueued_ms=payload.enqueued_ms or (int(lease.score) if 0 < lease.score < 2**42 else 0),
        orchestration_id="" if started is None else str(text(started, required=True)),
        session_id=text("session_id", required=chat),
        tenant_id=text("tenant_id") or default_tenant,
        webhook_url=text("webhook_url", most=MAX_URL),
        webhook_secret=text("webhook_secret", most=MAX_URL),
        alone=lease.alone,
        answers=payload.function == ANSWER_FUNCTION,
    )


def result(lease: Lease, payload: JobPayload | None, *, success: bool, text: str | BaseException) -> bytes:
    return encode_result(
        payload or JobPayload("unknown", {}),
        job_id=lease.job_id,
        queue_key=lease.queue_key,
        success=success,
        result=text,
        now_ms=int(time.time() * 1000),
    )
