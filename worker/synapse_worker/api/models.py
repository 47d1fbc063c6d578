"""The bodies of requests and answers. Requests are read strictly: `false` is no number, `1` no text."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, SecretStr

from synapse_worker.api.sse import STREAM_ID
from synapse_worker.contract import TENANT_ID_MAX_LENGTH
from synapse_worker.errors import PayloadError
from synapse_worker.queueing.payload import check_values
from synapse_worker.routing import HIGHEST_PRIORITY

MOST_LISTED = 1_000
MOST_EVENTS = 10_000


def _storable(text: str) -> str:
    """Refuse what PostgreSQL cannot hold in a column."""
    if "\x00" in text or not _encodable(text):
        raise ValueError("it must be text without NUL and without lone surrogates")
    return text


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nameable(text: str) -> str:
    if set("{}/") & set(text):
        raise ValueError("it must not hold braces or slashes")
    return text


def _web_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        raise ValueError("it must be an http or https URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it must be an http or https URL")
    return text


def _plain(state: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        check_values(state)
    except PayloadError as error:
        raise ValueError(str(error).replace("the payload's arguments", "it").replace("it hold ", "it holds ")) from None
    return state


def _stream_place(text: str) -> str:
    if text not in ("-", "+") and not STREAM_ID.fullmatch(text):
        raise ValueError("it must be the id of an event, - or +")
    return text


def _whole(value: object) -> object:
    """JSON knows numbers only: 2.0 is the integer 2."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _described(pattern: str) -> dict[str, JsonValue]:
    """Say in the document, as far as a pattern can, what a validator refuses with a better sentence."""
    return {"pattern": pattern}


_NO_NUL = r"^[^\u0000]*$"
_WEB_ADDRESS = r"^https?://[A-Za-z0-9.-]*[A-Za-z0-9](:[0-9]{1,4})?(/[!-~]*)?$"
_Storable = AfterValidator(_storable)
Text = Annotated[str, Field(json_schema_extra=_described(_NO_NUL)), _Storable]
Id = Annotated[str, Field(min_length=1, max_length=255, json_schema_extra=_described(_NO_NUL)), _Storable]
SessionId = Annotated[
    str,
    Field(min_length=1, max_length=255, json_schema_extra=_described(r"^[^\u0000{}/]*$")),
    _Storable,
    AfterValidator(_nameable),
]
TenantId = Annotated[
    str, Field(min_length=1, max_length=TENANT_ID_MAX_LENGTH, json_schema_extra=_described(_NO_NUL)), _Storable
]
WebhookUrl = Annotated[
    str,
    Field(min_length=1, max_length=8192, json_schema_extra=_described(_WEB_ADDRESS)),
    _Storable,
    AfterValidator(_web_address),
]

PathId = Annotated[Id, Path()]
Limit = Annotated[int, Query(ge=1, le=MOST_LISTED, description="Most rows of the answer")]
_PLACE = _described(r"^(-|\+|[0-9]{1,19}(-[0-9]{1,19})?)$")
_Place = AfterValidator(_stream_place)
Start = Annotated[str, Query(description="Id of the first event, - = the oldest", json_schema_extra=_PLACE), _Place]
End = Annotated[str, Query(description="Id of the last event, + = the newest", json_schema_extra=_PLACE), _Place]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="Remembered for 24 hours: the same request again is answered with the job of the first one",
    ),
    AfterValidator(lambda key: key if key is None else _storable(key)),
]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Job(_Request):
    tenant_id: TenantId | None = Field(None, description="Whose job it is. Default: the key's tenant, else `default`.")
    webhook_url: WebhookUrl | None = Field(None, description="Told how it ended.")
    webhook_secret: Annotated[SecretStr, Field(max_length=8192)] | None = Field(None, description="Signs the webhook.")


class RunRequest(_Job):
    """A run to enqueue."""

    message: Text = Field("", description="The run's input, in its state as user_input.")
    session_id: Id | None = None
    priority: Annotated[int, BeforeValidator(_whole)] = Field(
        0, ge=0, le=HIGHEST_PRIORITY, description="For routes of the SynapseScale."
    )
    initial_state: Annotated[dict[str, JsonValue], AfterValidator(_plain)] | None = Field(
        None, description="Merged over the defaults of the orchestration's state_schema."
    )


class ResumeRequest(_Request):
    """The answer that a paused run waits for."""

    response: Text | Annotated[dict[str, JsonValue], AfterValidator(_plain)] = Field(
        description="What the human answers: a text, or an object of the fields that were asked for."
    )


class ChatRequest(_Job):
    """One turn of a chat with an agent."""

    message: Annotated[str, Field(min_length=1, json_schema_extra=_described(_NO_NUL)), _Storable]
    agent_id: Id
    session_id: SessionId | None = Field(None, description="Default: a new session.")
    images: list[Text] | None = None


class RunAccepted(BaseModel):
    """A run that is durable and will be run."""

    run_id: str
    status: str
    stream_url: str
    status_url: str


class ChatAccepted(BaseModel):
    """A chat turn that is durable and will be run."""

    session_id: str
    job_id: str
    status: str
    stream_url: str
    status_url: str


class RunState(BaseModel):
    """Where a run stands; state and history are whole only once it waits or has ended."""

    run_id: str
    orchestration_id: str
    session_id: str | None
    tenant_id: str
    status: str
    current_step_id: str | None
    human_prompt: str | None
    human_fields: list[JsonValue]
    worker_id: str | None
    error: str | None
    steps_done: int
    total_tokens_used: int
    total_cost_usd: float
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    shared_state: dict[str, JsonValue]
    step_history: list[dict[str, JsonValue]]


class Changed(BaseModel):
    """What became of a run that was cancelled or resumed."""

    run_id: str
    was: str
    status: str
    job_id: str | None = None


class ChatState(BaseModel):
    """Where a chat session stands."""

    session_id: str
    agent_id: str | None
    tenant_id: str
    status: str | None
    messages: list[JsonValue]
    worker_id: str | None
    job_id: str | None
    created_at: datetime | None
    last_message_at: datetime | None


class ChatCancelled(BaseModel):
    """A turn that is being cancelled."""

    session_id: str
    status: str


class StoredEvent(BaseModel):
    """One event, and its place in the stream."""

    id: str
    event: dict[str, JsonValue]


class StoredEvents(BaseModel):
    """Events of a stream, oldest first, 10,000 at most."""

    events: list[StoredEvent]


class Definition(BaseModel):
    """An orchestration or agent in a listing."""

    id: str
    name: str
    description: str | None
    tenant_id: str
    updated_at: datetime | None


class WholeDefinition(Definition):
    """An orchestration or agent."""

    definition: dict[str, JsonValue]


class WorkerState(BaseModel):
    """A worker process."""

    worker_id: str
    hostname: str | None
    address: str | None
    status: str
    queues: list[str]
    active_jobs: int
    max_jobs: int
    last_heartbeat: datetime | None
    registered_at: datetime | None


class QueueState(BaseModel):
    """How full a queue is; `parked` of the queued ones are over their tenants' max_concurrent_runs."""

    name: str
    queued: int
    active: int
    parked: int
    oldest_seconds: float | None


class QueueStats(BaseModel):
    """All queues that hold jobs, and their sums."""

    queued: int
    active: int
    max_depth: int
    queues: list[QueueState]


class TenantState(BaseModel):
    """A tenant that has a row, and how it stands."""

    tenant_id: str
    name: str | None
    max_concurrent_runs: int | None
    max_queued_runs: int | None
    rate_limit_rps: int | None
    priority: int | None
    dedicated: bool
    deleting: bool
    managed: bool
    queued: int
    active: int


class LetterState(BaseModel):
    """A job that failed for good; secrets in its arguments are hidden."""

    id: str
    run_id: str | None
    orchestration_id: str | None
    function: str
    payload: dict[str, JsonValue]
    error: str
    attempts: int
    failed_at: datetime | None
    resolved: bool


class LetterDone(BaseModel):
    """What became of a letter."""

    id: str
    run_id: str | None
    job_id: str | None = None


class SyncDone(BaseModel):
    """What a sync did."""

    total_synced: int
    changed: int
    counts: dict[str, int]
    errors: list[str]
    synced_at: datetime
