"""What a run keeps of the definitions that it reaches: agents, tools, MCP servers and nested orchestrations.

A run that is handed over must not meet other agents than it began with, so they are kept with its first checkpoint,
inside the orchestration's own document (a key of ours that no reader of orchestrations knows). Secrets are not: tokens
and headers are joined at each job's start.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.fields import Fields, text_of
from synapse_worker.engine.model import Definition, Step, StepType

Document: TypeAlias = dict[str, object]

KEY = "synapse_scale_reached"
"""Where the snapshot is in the stored document of its orchestration."""

ALL_TOOLS = "all"
"""An agent with this among its tools has all tools of its tenant."""

_SECRET = frozenset({"headers", "token", "env"})


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent; `tools` are names of custom tools, of MCP tools (`server__tool` or bare), or ALL_TOOLS."""

    id: str
    name: str
    system_prompt: str
    tools: tuple[str, ...]
    model: str | None
    provider: str | None
    max_turns: int | None
    orchestration_id: str | None

    @classmethod
    def parse(cls, agent_id: str, document: Mapping[str, object]) -> Agent:
        """Read an agent as users write it.

        Raises:
            DefinitionError: a field of it cannot be used; one sentence with the agent and what is accepted.
        """
        name = text_of(document.get("name")) or agent_id
        fields = Fields(document, f"agent {name!r} ({agent_id})")
        return cls(
            id=agent_id,
            name=name,
            system_prompt=fields.code("system_prompt"),
            tools=fields.texts("tools"),
            model=fields.text("model"),
            provider=fields.text("provider"),
            max_turns=fields.whole("max_turns", 0, minimum=0) or None,
            orchestration_id=fields.text("orchestration_id"),
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Documents by their ids or names, without secrets."""

    agents: Mapping[str, Document] = field(default_factory=dict)
    tools: Mapping[str, Document] = field(default_factory=dict)
    mcp_servers: Mapping[str, Document] = field(default_factory=dict)
    orchestrations: Mapping[str, Document] = field(default_factory=dict)

    def agent_of(self, step: Step) -> Agent:
        """Return the agent that a step names.

        Raises:
            DefinitionError: there is none of that id.
        """
        if step.agent_id not in self.agents:
            raise DefinitionError(
                f"{step.title[0].upper()}{step.title[1:]} names the agent {step.agent_id!r}, which does not exist; "
                "sync it, then enqueue the run again"
            )
        return Agent.parse(step.agent_id, self.agents[step.agent_id])

    def kept_in(self, document: Mapping[str, object]) -> dict[str, object]:
        """Return an orchestration's document with the snapshot in it."""
        kinds = {
            "agents": self.agents,
            "tools": self.tools,
            "mcp_servers": self.mcp_servers,
            "orchestrations": self.orchestrations,
        }
        return {**document, KEY: {kind: dict(documents) for kind, documents in kinds.items()}}

    @classmethod
    def found_in(cls, document: Mapping[str, object]) -> Snapshot | None:
        """Return the snapshot in a stored document; None when it holds none."""
        stored = document.get(KEY)
        if not isinstance(stored, Mapping):
            return None
        return cls(**{kind: cast(Mapping[str, Document], stored.get(kind) or {}) for kind in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Near:
    """Ids of the agents and orchestrations that a run reaches; tools and MCP servers are those of their tenants."""

    agents: Collection[str]
    orchestrations: Collection[str]


class Definitions(Protocol):
    """Where definitions are read; each call answers with what exists, by id or name."""

    async def orchestrations(self, ids: Collection[str]) -> Mapping[str, Document]:
        """The active orchestrations among `ids`."""

    async def agents(self, ids: Collection[str]) -> Mapping[str, Document]:
        """The agents among `ids`."""

    async def tools(self, names: Collection[str] | None, near: Near) -> Mapping[str, Document]:
        """The custom tools of these ids or names that the tenants of `near` or all tenants have; None = all of them.

        Names are not unique: another tenant's tool may have the same one, and with it come that tenant's secrets.
        """

    async def mcp_servers(self, names: Collection[str] | None, near: Near) -> Mapping[str, Document]:
        """The same for MCP servers."""


async def collect(definition: Definition, read: Definitions) -> Snapshot:
    """Return what an orchestration reaches, through agents that are orchestrations too.

    Raises:
        DefinitionError: a step names an agent that does not exist, or an agent an orchestration that cannot be run.
    """
    agents: dict[str, Document] = {}
    nested: dict[str, Document] = {}
    wanted: set[str] = set()
    pending = [definition]
    while pending:
        steps = [step for each in pending for step in each.steps.values()]
        wanted |= {step.forced_tool for step in steps if step.type is StepType.TOOL}
        named = {step.agent_id for step in steps if step.type is StepType.AGENT} - agents.keys()
        agents |= await read.agents(sorted(named)) if named else {}
        reached = Snapshot(agents)
        used = [reached.agent_of(step) for step in steps if step.type is StepType.AGENT]
        inner = {agent.orchestration_id for agent in used if agent.orchestration_id} - nested.keys()
        found = await read.orchestrations(sorted(inner)) if inner else {}
        for agent in used:
            if agent.orchestration_id in inner and agent.orchestration_id not in found:
                raise DefinitionError(
                    f"The agent {agent.name!r} ({agent.id}) names the orchestration {agent.orchestration_id!r}, "
                    "which does not exist; sync it, then enqueue the run again"
                )
        nested |= found
        pending = [Definition.parse(document) for document in found.values()]
    for agent_id, document in agents.items():
        wanted.update(Agent.parse(agent_id, document).tools)
    near = Near(sorted(agents), sorted({definition.id, *nested}))
    tools = await _tools(wanted, near, read)
    servers = await _servers(wanted, tools, near, read)
    return Snapshot(agents, tools, servers, nested)


async def _tools(wanted: set[str], near: Near, read: Definitions) -> dict[str, Document]:
    if not wanted:
        return {}
    found = await read.tools(None if ALL_TOOLS in wanted else sorted(wanted), near)
    return {name: _without_secrets(document) for name, document in found.items()}


async def _servers(
    wanted: set[str], tools: Mapping[str, Document], near: Near, read: Definitions
) -> dict[str, Document]:
    """The servers that MCP tools are of; a bare name may be any server's."""
    others = wanted - tools.keys()
    if not others:
        return {}
    bare = any("__" not in name for name in others)
    prefixes = {name[:at] for name in others for at in range(1, len(name)) if name.startswith("__", at)}
    found = await read.mcp_servers(None if bare else sorted(prefixes), near)
    return {name: _without_secrets(document) for name, document in found.items()}


def _without_secrets(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in _SECRET}
