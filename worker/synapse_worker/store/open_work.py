"""Which of many runs, or of many chat sessions, are still to be worked on: what whoever waits for their ends asks."""

from __future__ import annotations

from collections.abc import Sequence

from synapse_worker.store.database import Database


async def open_runs(database: Database, run_ids: Sequence[str]) -> set[str]:
    """Return those of the runs that have not ended."""
    rows = await database.fetch(
        "SELECT run_id FROM orchestration_runs"
        " WHERE run_id = ANY($1::text[]) AND status IN ('queued', 'running', 'paused')",
        list(run_ids),
    )
    return {row["run_id"] for row in rows}


async def busy_sessions(database: Database, session_ids: Sequence[str]) -> set[str]:
    """Return those of the chat sessions that have a turn which waits or runs."""
    rows = await database.fetch(
        "SELECT session_id FROM chat_sessions WHERE session_id = ANY($1::text[]) AND status IN ('queued', 'running')",
        list(session_ids),
    )
    return {row["session_id"] for row in rows}
