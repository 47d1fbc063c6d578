"""Runs and chats of the tests of fields, in the one worker that all of them share, each with ids of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from redis.asyncio import Redis

from synapse_worker.queueing import keys
from synapse_worker.queueing.client import (
    NewRun,
    NewTurn,
    answer_run,
    enqueue_run,
    enqueue_turn,
    new_run_id,
    new_turn_id,
)
from synapse_worker.store import chats, definitions
from synapse_worker.store.chats import SessionView
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import Document
from synapse_worker.store.runs import RunView
from tests.support.model_server import ModelServer, call
from tests.support.runs import Event, events_of, eventually, outcome, said_done, store, until
from tests.support.workers import chain

AGENT = "helper"
"""An agent without tools, which every test may use."""

TOOL = "double"
"""A tool that doubles `n`, which every test may use."""

CALL_IT = call(TOOL, n=2)
"""What a script says to have it called."""

DONE: dict[str, object] = {"say": "at last $last"}
"""What a script says to end with the last result."""

PRICED = "claude-haiku-5-5"
"""A model whose price is known."""

FOREVER = {"type": "transform", "transform_code": "while True: pass"}


_numbers = count(1)


def a_print(identity: str, content: str = "", **fields: object) -> dict[str, object]:
    """Return a print step that stores what it prints, "<id>" if nothing is said, under its id."""
    text = content or identity
    name = identity.title()
    return {"id": identity, "name": name, "type": "print", "print_content": text, "output_key": identity, **fields}


class Asked(Protocol):
    """A request that a model got."""

    path: str
    headers: dict[str, str]
    body: dict[str, object]
    prompt: str
    system: str
    tools: list[str]


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that has ended or waits, and all that its stream says."""

    run_id: str
    view: RunView
    events: Sequence[Event]

    @property
    def state(self) -> Mapping[str, object]:
        """Its state, without what it was given."""
        return {key: value for key, value in self.view.state.items() if key != "user_input"}

    @property
    def done(self) -> list[str]:
        """The ids of the steps that it finished, in order."""
        return [str(entry["step_id"]) for entry in self.view.history if entry["status"] == "completed"]

    @property
    def error(self) -> str:
        """Why it failed; it did."""
        assert self.view.status == "failed", (self.view.status, self.view.state)
        return str(self.view.error)

    def told(self, kind: str) -> list[Event]:
        """Return its events of one type."""
        return [event for event in self.events if event["type"] == kind]


class Bench:
    """What one test does in the worker that all of them share."""

    def __init__(self, database: Database, client: Redis, server: ModelServer) -> None:
        self.database = database
        self.client = client
        self._name = f"t{next(_numbers)}"
        """Unlike any other test's; ids begin with it."""
        self._server = server
        self._before = len(server.asked)
        self._number = 0

    @property
    def asked(self) -> list[str]:
        """What models were told by this test, the prompt of each request."""
        return [asked.prompt for asked in self.requests]

    @property
    def requests(self) -> list[Asked]:
        """The requests that models got by this test."""
        return self._server.asked[self._before :]

    def _new(self, kind: str) -> str:
        self._number += 1
        return f"{self._name}-{kind}{self._number}"

    async def agent(self, **fields: object) -> str:
        """Store an agent; returns its id."""
        identity = self._new("agent")
        document = {"id": identity, "name": "Helper", "system_prompt": "You help.", "tools": [], **fields}
        await self._write(definitions.AGENTS, identity, document)
        return identity

    async def tool(self, **fields: object) -> str:
        """Store a custom tool; returns its name."""
        identity = self._new("tool")
        await self._write(definitions.TOOLS, identity, {"id": identity, "name": identity, **fields})
        return identity

    async def mcp_server(self, **fields: object) -> str:
        """Store an MCP server; returns its name."""
        name = self._new("server")
        await self._write(definitions.MCP_SERVERS, name, {"name": name, **fields})
        return name

    async def close(self) -> None:
        """Remove the MCP servers: they are gone, and whoever wants a tool by its bare name asks all that there are."""
        await self.database.execute("DELETE FROM mcp_servers")

    async def setting(self, key: str, value: object) -> None:
        """Store a setting, for all tests."""
        await self._write(definitions.SETTINGS, key, value)

    async def orchestration(self, *steps: Mapping[str, object], **fields: object) -> str:
        """Store an orchestration; without a next_step_id of its own a step leads to the one behind it."""
        identity = self._new("orch")
        await store(self.database, {**chain(identity, steps), **fields, "id": identity})
        return identity

    async def _write(self, table: str, key: str, document: object) -> None:
        await definitions.upsert(self.database, [Document(table, key, key, "", document)], tenant_id="default")

    async def run(
        self,
        *steps: Mapping[str, object],
        message: str = "hi",
        state: Mapping[str, object] | None = None,
        answers: Iterable[object] = (),
        session: str | None = None,
        **fields: object,
    ) -> Ran:
        """Run steps to the end, or to the first question that `answers` has no answer for.

        Args:
            message: the run's input.
            state: the state that it is given.
            session: the session that it belongs to.
            fields: of the orchestration.
        """
        orchestration = await self.orchestration(*steps, **fields)
        new = NewRun(orchestration, message, "default", session_id=session, initial_state=state)
        now_ms = _now_ms()
        run_id = await enqueue_run(self.database, self.client, new, run_id=new_run_id(now_ms), now_ms=now_ms)
        for answer in answers:
            asked = await until(self.database, run_id, "paused", "completed", "failed")
            assert asked.status == "paused", asked
            await answer_run(self.database, self.client, run_id, answer, now_ms=_now_ms())
        return await self.ended(run_id)

    async def ended(self, run_id: str) -> Ran:
        """Wait until a run has ended, or waits, and has said so."""
        view = await until(self.database, run_id, "completed", "failed", "paused", "cancelled")
        if view.status == "paused":
            await eventually("the stream says that it waits", lambda: self._paused(run_id))
            events = await events_of(self.client, run_id)
        else:
            events = await said_done(self.client, run_id)
        ids = [str(event["event_id"]) for event in events]
        assert all(each.startswith(f"{run_id}:") for each in ids)
        assert len(set(ids)) == len(ids), ids  # who streams them drops an id that he has sent
        return Ran(run_id, view, events)

    async def _paused(self, run_id: str) -> bool:
        events = await events_of(self.client, run_id)
        return bool(events) and events[-1]["type"] == "paused"

    async def chat(
        self, agent: str, message: str, *, session: str = "", images: Sequence[str] | None = None
    ) -> tuple[SessionView, list[Event]]:
        """Have a turn of a chat answered; returns the session behind it, and what its stream has said so far."""
        session_id, now_ms = session or self._new("chat"), _now_ms()
        job_id = new_turn_id(session_id, now_ms)
        turn = NewTurn(session_id, agent, message, "default", images)
        await enqueue_turn(self.database, self.client, turn, job_id=job_id, now_ms=now_ms)
        await outcome(self.database, job_id)
        await eventually("the turn is done", lambda: self._said(session_id, f"{job_id}:done"))
        view = await chats.get(self.database, session_id)
        assert view is not None
        return view, await self._chat_events(session_id)

    async def _said(self, session_id: str, event_id: str) -> bool:
        return event_id in [event["event_id"] for event in await self._chat_events(session_id)]

    async def _chat_events(self, session_id: str) -> list[Event]:
        entries = await self.client.xrange(keys.chat_events(session_id))
        return [json.loads(fields[b"data"]) for _, fields in entries]


def _now_ms() -> int:
    return int(time.time() * 1000)
