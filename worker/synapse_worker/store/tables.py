"""The schema: upstream's tables with our additive columns, and the tables that are ours.

Only names, types and keys; `migrate` brings a database there, the modules beside it hold the statements.
Upstream's columns keep upstream's types and stay nullable where upstream leaves them to its own defaults.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

metadata = MetaData()

CLAIM_SEQUENCE = Sequence("claim_seq", metadata=metadata)
"""Source of all claim numbers; it outlives any Redis, so a number never comes twice."""


def _id(name: str) -> Column[str]:
    return Column(name, String(255), primary_key=True)


def _name(name: str) -> Column[str]:
    return Column(name, String(255))


def _tenant() -> Column[str]:
    return Column("tenant_id", String(255), nullable=False)


def _time(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True))


orchestrations = Table(
    "orchestrations",
    metadata,
    _id("id"),
    Column("name", String(500), nullable=False),
    Column("description", Text),
    Column("definition", JSONB, nullable=False),
    _tenant(),
    _time("created_at"),
    _time("updated_at"),
    Column("is_active", Boolean),
    Index("idx_orchestrations_tenant", "tenant_id"),
    Index("idx_orchestrations_updated", "updated_at"),
)

agents = Table(
    "agents",
    metadata,
    _id("id"),
    Column("name", String(500), nullable=False),
    Column("definition", JSONB, nullable=False),
    _tenant(),
    _time("updated_at"),
    Index("idx_agents_tenant", "tenant_id"),
)

tools = Table(
    "tools",
    metadata,
    _id("id"),
    Column("name", String(500), nullable=False),
    Column("definition", JSONB, nullable=False),
    _tenant(),
    _time("updated_at"),
    Index("idx_tools_tenant", "tenant_id"),
)

mcp_servers = Table(
    "mcp_servers",
    metadata,
    _id("name"),
    Column("label", String(500)),
    Column("definition", JSONB, nullable=False),
    _tenant(),
    _time("updated_at"),
)

scale_settings = Table(
    "scale_settings",
    metadata,
    _id("key"),
    Column("value", Text, nullable=False),
    _time("updated_at"),
)

orchestration_runs = Table(
    "orchestration_runs",
    metadata,
    _id("run_id"),
    Column("orchestration_id", String(255), nullable=False),
    _name("session_id"),
    _tenant(),
    Column("status", String(50), nullable=False),
    Column("shared_state", JSONB, nullable=False),
    Column("step_history", JSONB, nullable=False),
    _name("current_step_id"),
    Column("waiting_for_human", Boolean),
    Column("human_prompt", Text),
    Column("human_fields", JSONB),
    _name("nested_run_id"),
    _name("nested_orch_id"),
    Column("total_tokens_used", Integer),
    Column("total_cost_usd", Float),
    Column("cache_read_tokens", Integer),
    Column("cache_write_tokens", Integer),
    Column("cache_hit_count", Integer),
    Column("estimated_savings_usd", Float),
    _time("started_at"),
    _time("ended_at"),
    _time("created_at"),
    _name("worker_id"),
    _name("job_id"),
    Column("webhook_url", Text),
    Column("webhook_secret", Text),
    # Ours: who may write, where the run stands, the definition it keeps until it ends, when it has to have ended, and
    # until when a human may answer; for a run inside another one's job, that one.
    Column("claim", BigInteger),
    Column("cursor", JSONB),
    Column("folded_steps", Integer),
    Column("definition_snapshot", JSONB),
    Column("engine_version", Integer),
    Column("error", Text),
    _time("deadline"),
    _time("human_deadline"),
    _name("root_run_id"),
    Index("idx_runs_tenant_status", "tenant_id", "status", "created_at"),
)

Index(
    "idx_runs_open",
    orchestration_runs.c.status,
    orchestration_runs.c.run_id,
    postgresql_where=text("status IN ('queued', 'running', 'paused')"),
)

Index(
    "idx_runs_deadline",
    orchestration_runs.c.deadline,
    postgresql_where=text("deadline IS NOT NULL AND status IN ('queued', 'paused')"),
)

Index(
    "idx_runs_ended",
    orchestration_runs.c.status,
    orchestration_runs.c.ended_at,
    postgresql_where=text("status IN ('completed', 'failed', 'cancelled')"),
)

Index(
    "idx_runs_root",
    orchestration_runs.c.root_run_id,
    postgresql_where=text("root_run_id IS NOT NULL"),
)

Index(
    "idx_runs_human_deadline",
    orchestration_runs.c.human_deadline,
    postgresql_where=text("human_deadline IS NOT NULL AND status = 'paused'"),
)

chat_sessions = Table(
    "chat_sessions",
    metadata,
    _id("session_id"),
    _name("agent_id"),
    _tenant(),
    Column("status", String(50)),
    Column("messages", JSONB, nullable=False),
    _time("last_message_at"),
    _name("worker_id"),
    _name("job_id"),
    _time("created_at"),
    Column("webhook_url", Text),
    Column("webhook_secret", Text),
    Column("claim", BigInteger),
    Index("idx_chat_tenant_time", "tenant_id", "last_message_at"),
)

workers = Table(
    "workers",
    metadata,
    _id("worker_id"),
    Column("hostname", String(500)),
    Column("address", String(500)),
    Column("status", String(50)),
    Column("capabilities", JSONB),
    Column("active_jobs", Integer),
    Column("max_jobs", Integer),
    _time("last_heartbeat"),
    _time("registered_at"),
    Column("mcp_disabled", JSONB),
    # Ours: what a process that enqueues is (NULL = a worker), and the epoch of the topology that it goes by.
    Column("role", String(50)),
    Column("topology_epoch", BigInteger),
)

dead_letter_queue = Table(
    "dead_letter_queue",
    metadata,
    Column("id", UUID, primary_key=True),
    _name("run_id"),
    _name("orchestration_id"),
    _name("job_function"),
    Column("job_payload", JSONB, nullable=False),
    Column("error_message", Text),
    Column("error_traceback", Text),
    Column("attempt_count", Integer),
    _time("first_failed_at"),
    _time("last_failed_at"),
    Column("resolved", Boolean),
    Index("idx_dlq_resolved", "resolved", "last_failed_at"),
    Index("idx_dlq_run", "run_id"),
)

tenants = Table(
    "tenants",
    metadata,
    _id("tenant_id"),
    Column("name", String(500)),
    Column("max_concurrent_runs", Integer),
    Column("max_queued_runs", Integer),
    Column("priority", Integer),
    _time("created_at"),
    # Ours: UID of the SynapseTenant behind the row (NULL = nobody's, such as a settings page's), whether it has
    # workers of its own, requests a second (NULL = as everybody), and whether it only finishes what it has.
    _name("managed_by"),
    Column("dedicated", Boolean, nullable=False, server_default="false"),
    Column("rate_limit_rps", Integer),
    Column("deleting", Boolean, nullable=False, server_default="false"),
)

job_ledger = Table(
    "job_ledger",
    metadata,
    _id("job_id"),
    _name("run_id"),
    _name("session_id"),
    Column("queue", Text, nullable=False),
    Column("claim", BigInteger),
    _name("owner"),
    Column("suspect", Boolean, nullable=False, server_default="false"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("active_seconds", Float, nullable=False, server_default="0"),
    Column("envelope", LargeBinary),
    Column("outcome", String(50)),
    _time("enqueued_at"),
    _time("claimed_at"),
    _time("ended_at"),
)
"""One row per job, of a run or of a chat session; `owner` is set at claim and cleared by every orderly end, so a row
with an owner and no outcome whose lease has expired is a crash. `outcome`: completed, failed, cancelled, paused,
superseded, expired."""

Index("idx_ledger_open", job_ledger.c.enqueued_at, postgresql_where=job_ledger.c.outcome.is_(None))

Index(
    "idx_ledger_session",
    job_ledger.c.session_id,
    job_ledger.c.enqueued_at,
    postgresql_where=text("session_id IS NOT NULL AND outcome IS NULL"),
)

Index("idx_ledger_ended", job_ledger.c.ended_at, postgresql_where=job_ledger.c.outcome.is_not(None))

run_steps = Table(
    "run_steps",
    metadata,
    _id("run_id"),
    _id("step_id"),
    Column("visit", Integer, primary_key=True),
    Column("ordinal", Integer, nullable=False),
    Column("claim", BigInteger, nullable=False),
    Column("delta", JSONB, nullable=False),
    Column("entry", JSONB, nullable=False),
    Column("events", JSONB, nullable=False),
    Column("tokens", Integer),
    Column("cost_usd", Float),
    _time("started_at"),
    _time("ended_at"),
)
"""One appended row per finished step: its changes to the state, its step_history entry and its events."""

Index("idx_run_steps_order", run_steps.c.run_id, run_steps.c.ordinal, unique=True)

run_turns = Table(
    "run_turns",
    metadata,
    _id("run_id"),
    _id("step_id"),
    Column("visit", Integer, primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("message", JSONB, nullable=False),
    Column("tokens", Integer),
    Column("cost_usd", Float),
    Column("claim", BigInteger, nullable=False),
)
"""One appended row per model answer or tool result inside a step that has not finished: the next owner of the run
continues the conversation behind the last of them."""

webhook_outbox = Table(
    "webhook_outbox",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("run_id", String(255), nullable=False),
    Column("orchestration_id", String(255), nullable=False),
    _tenant(),
    Column("status", String(50), nullable=False),
    Column("error", Text),
    Column("url", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    _time("created_at"),
    _time("next_attempt_at"),
    _time("delivered_at"),
    _name("host"),
    Column("last_error", Text),
    _time("given_up_at"),
)
"""One row per end of a run, or of a chat's turn, that has a webhook_url; `status` is how it ended then. A turn's row
has the id of its job as `run_id`, that of its agent as `orchestration_id`, and, if it completed, its answer as `error`.
Settled rows (`delivered_at` or `given_up_at` is set) have no `next_attempt_at`."""

Index("idx_outbox_due", webhook_outbox.c.next_attempt_at, postgresql_where=webhook_outbox.c.delivered_at.is_(None))

Index(
    "idx_outbox_pending",
    webhook_outbox.c.run_id,
    postgresql_where=webhook_outbox.c.next_attempt_at.is_not(None),
)
Index(
    "idx_outbox_settled",
    func.coalesce(webhook_outbox.c.delivered_at, webhook_outbox.c.given_up_at),
    postgresql_where=webhook_outbox.c.next_attempt_at.is_(None),
)
run_logs = Table(
    "run_logs",
    metadata,
    _id("run_id"),
    Column("claim", BigInteger, primary_key=True),
    Column("status", String(50), primary_key=True),
    _tenant(),
    Column("error", Text),
    Column("ended_at", DateTime(timezone=True), nullable=False),
    Column("next_at", DateTime(timezone=True), nullable=False),
    Index("idx_run_logs_due", "next_at"),
)
"""One row per end or pause of a run whose log object is still to be written."""

scale_topology = Table(
    "scale_topology",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("shards", Integer, nullable=False),
    Column("isolation", Boolean, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("routes", JSONB, nullable=False),
    _name("owner_uid"),
    _time("owner_seen_at"),
)
"""One row, id 1. `routes`: list of {shard, tenants, minPriority}; the first that matches a job wins. `owner_uid` is the
SynapseScale that the database belongs to, `owner_seen_at` when it was last there."""

api_keys = Table(
    "api_keys",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("name", String(255), nullable=False),
    _name("tenant_id"),
    _name("managed_by"),
    _time("created_at"),
    Index("idx_api_keys_managed_by", "managed_by"),
)
"""Keys of the V2 API, as sha256 of the token only; bound to one tenant, or to none (NULL). `managed_by` is the UID of
the SynapseScale whose Secret names the key, NULL for one made by the command line."""

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _id("tenant_id"),
    _id("key"),
    Column("request_hash", String(64), nullable=False),
    Column("run_id", String(255), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Index("idx_idempotency_created", "created_at"),
)
"""Idempotency-Key headers of the V2 API, remembered for a day: the same request again is answered with `run_id`."""

synced_definitions = Table(
    "synced_definitions",
    metadata,
    Column("owner", String(500), primary_key=True),
    Column("kind", String(50), primary_key=True),
    _id("key"),
    Column("source", Text, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("synced_at", DateTime(timezone=True), nullable=False),
)
"""What each syncing owner (a SynapseScale, a folder) has written: `kind` is the table, `key` the row, `source` the file
or object that it came from, `hash` its content. `synced_at` is the `updated_at` that the row got, so that a row which
somebody else wrote later is told apart."""

schema_version = Table(
    "synapse_scale_schema",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    _time("migrated_at"),
)
