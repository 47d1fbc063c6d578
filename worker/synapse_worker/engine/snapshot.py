"""What a run keeps of the definitions that it reaches: agents, tools, MCP servers and nested orchestrations.

A run that is handed over must not meet other agents than it began with, so they are kept with its first checkpoint,
inside the orchestration's own document (a key of ours that no reader of orchestrations knows). Secrets are not: tokens
and headers are joined at each job's start.

A definition reaches those of its own tenant and of the default tenant, and no others: with another tenant's tool would
come that tenant's secrets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, cast

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.fields import Fields, text_of
from synapse_worker.engine.model import Definition, Step, StepType

Document: TypeAlias = dict[str, object]

Owned: TypeAlias = tuple[Document, str]
"""A document and whose it is: a tenant's id, or EVERYBODY."""

EVERYBODY = ""
"""Owner of what the default tenant has: all may use it."""

AGENTS, ORCHESTRATIONS, TOOLS, MCP_SERVERS = "agents", "orchestrations", "tools", "mcp_servers"

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
    """Documents by their ids or names, without secrets; `owners` says of each kind by the same keys whose they are."""

    agents: Mapping[str, Document] = field(default_factory=dict)
    tools: Mapping[str, Document] = field(default_factory=dict)
    mcp_servers: Mapping[str, Document] = field(default_factory=dict)
    orchestrations: Mapping[str, Document] = field(default_factory=dict)
    owners: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def for_agent(self, agent_id: str) -> Snapshot:
        """Return it with no other tools and MCP servers than an agent may use."""
        return self._for(AGENTS, agent_id)

    def for_orchestration(self, orchestration_id: str) -> Snapshot:
        """Return it with no other tools and MCP servers than an orchestration's own steps may use."""
        return self._for(ORCHESTRATIONS, orchestration_id)

    def _for(self, kind: str, key: str) -> Snapshot:
        if not self.owners:  # kept by a release that did not know
            return self
        owner = self.owners[kind].get(key, EVERYBODY)
        return replace(
            self,
            tools=_permitted(self.tools, self.owners[TOOLS], owner),
            mcp_servers=_permitted(self.mcp_servers, self.owners[MCP_SERVERS], owner),
        )

    def owners_of(self, kind: str, keys: Collection[str]) -> dict[str, str | None]:
        """Return whose definitions of a kind are; None = kept by a release that did not know."""
        known = self.owners.get(kind, {})
        return {key: known.get(key) for key in keys}

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
            AGENTS: self.agents,
            TOOLS: self.tools,
            MCP_SERVERS: self.mcp_servers,
            ORCHESTRATIONS: self.orchestrations,
            "owners": self.owners,
        }
        return {**document, KEY: {kind: dict(documents) for kind, documents in kinds.items()}}

    @classmethod
    def found_in(cls, document: Mapping[str, object]) -> Snapshot | None:
        """Return the snapshot in a stored document; None when it holds none."""
        stored = document.get(KEY)
        if not isinstance(stored, Mapping):
            return None
        kinds = {
            kind: cast(Mapping[str, Document], stored.get(kind) or {})
            for kind in (AGENTS, TOOLS, MCP_SERVERS, ORCHESTRATIONS)
        }
        return cls(**kinds, owners=cast(Mapping[str, Mapping[str, str]], stored.get("owners") or {}))


class Definitions(Protocol):
    """Where definitions are read; each call answers with what exists, by id or name, and whose it is."""

    async def orchestrations(self, ids: Collection[str]) -> Mapping[str, Owned]:
        """The active orchestrations among `ids`."""

    async def agents(self, ids: Collection[str]) -> Mapping[str, Owned]:
        """The agents among `ids`."""

    async def tools(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, Owned]:
        """The custom tools of these ids or names that `owners` or EVERYBODY have, and all that those of `whole` have.

        Names are not unique: another tenant's tool may have the same one.
        """

    async def mcp_servers(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, Owned]:
        """The same for MCP servers."""


async def collect(definition: Definition, read: Definitions, *, owner: str | None = None) -> Snapshot:
    """Return what an orchestration reaches, through agents that are orchestrations too.

    Args:
        owner: whose the orchestration is, where it is none that is stored.

    Raises:
        DefinitionError: a step names an agent that it does not have, or an agent an orchestration that cannot be run.
    """
    agents: dict[str, Document] = {}
    nested: dict[str, Document] = {}
    owners: dict[str, dict[str, str]] = {AGENTS: {}, ORCHESTRATIONS: {}}
    wanted: defaultdict[str, set[str]] = defaultdict(set)
    if owner is None:
        _, owner = (await read.orchestrations([definition.id])).get(definition.id, ({}, EVERYBODY))
    owners[ORCHESTRATIONS][definition.id] = owner
    pending = [definition]
    while pending:
        named = {step.agent_id for each in pending for step in _agent_steps(each)} - agents.keys()
        _add(await read.agents(sorted(named)) if named else {}, agents, owners[AGENTS])
        used: list[Agent] = []
        for each in pending:
            of = owners[ORCHESTRATIONS][each.id]
            reached = Snapshot(_permitted(agents, owners[AGENTS], of))
            used += [reached.agent_of(step) for step in _agent_steps(each)]
            wanted[of] |= {step.forced_tool for step in each.steps.values() if step.type is StepType.TOOL}
        inner = {agent.orchestration_id for agent in used if agent.orchestration_id} - nested.keys()
        found = await read.orchestrations(sorted(inner)) if inner else {}
        _add(found, nested, owners[ORCHESTRATIONS])
        for agent in used:
            of = owners[AGENTS][agent.id]
            wanted[of] |= set(agent.tools)
            if agent.orchestration_id and agent.orchestration_id not in _permitted(nested, owners[ORCHESTRATIONS], of):
                raise DefinitionError(
                    f"The agent {agent.name!r} ({agent.id}) names the orchestration {agent.orchestration_id!r}, "
                    "which does not exist; sync it, then enqueue the run again"
                )
        pending = [Definition.parse(document) for document, _ in found.values()]
    tools = await _tools(wanted, read)
    servers = await _servers(wanted, tools, read)
    return Snapshot(
        agents,
        {name: _without_secrets(document) for name, (document, _) in tools.items()},
        {name: _without_secrets(document) for name, (document, _) in servers.items()},
        nested,
        {
            **owners,
            TOOLS: {name: of for name, (_, of) in tools.items()},
            MCP_SERVERS: {name: of for name, (_, of) in servers.items()},
        },
    )


def _agent_steps(definition: Definition) -> list[Step]:
    return [step for step in definition.steps.values() if step.type is StepType.AGENT]


def _add(found: Mapping[str, Owned], documents: dict[str, Document], owners: dict[str, str]) -> None:
    for key, (document, owner) in found.items():
        documents[key] = document
        owners[key] = owner


def _permitted(documents: Mapping[str, Document], owners: Mapping[str, str], owner: str) -> dict[str, Document]:
    """Return those that a definition of an owner may use."""
    return {key: document for key, document in documents.items() if owners[key] in (owner, EVERYBODY)}


async def _tools(wanted: Mapping[str, set[str]], read: Definitions) -> Mapping[str, Owned]:
    names = set().union(*wanted.values())
    if not names:
        return {}
    whole = sorted(owner for owner, of in wanted.items() if ALL_TOOLS in of)
    return await read.tools(sorted(names), sorted(wanted), whole)


async def _servers(
    wanted: Mapping[str, set[str]], tools: Mapping[str, Owned], read: Definitions
) -> Mapping[str, Owned]:
    """The servers that MCP tools are of; a bare name may be any server's of its owner."""
    prefixes: set[str] = set()
    whole: set[str] = set()
    for owner, names in wanted.items():
        for name in names - {key for key, (_, of) in tools.items() if of in (owner, EVERYBODY)}:
            if "__" not in name:
                whole.add(owner)
            prefixes |= {name[:at] for at in range(1, len(name)) if name.startswith("__", at)}
    if not prefixes and not whole:
        return {}
    return await read.mcp_servers(sorted(prefixes), sorted(wanted), sorted(whole))


def _without_secrets(document: Document) -> Document:
    return {key: value for key, value in document.items() if key not in _SECRET}
