"""What an orchestration reaches, what of it is kept, and that no secret is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from synapse_worker.engine.errors import DefinitionError
from synapse_worker.engine.model import Definition
from synapse_worker.engine.snapshot import EVERYBODY, Agent, Owned, Snapshot, collect
from tests.unit.worker.engine.documents import Document, a_definition, a_print

HTTP: Document = {"name": "look_up", "url": "https://x.example", "headers": {"Authorization": "secret-header"}}
SERVER: Document = {"server_type": "remote", "url": "https://mcp.example/mcp", "token": "secret-token"}


class Stored:
    """Definitions in dicts; `owners` says whose one is, by its key, where it is not everybody's."""

    def __init__(self, owners: Mapping[str, str] | None = None, **kinds: Mapping[str, Document]) -> None:
        self._kinds = kinds
        self._owners = owners or {}

    def _of(
        self, kind: str, names: Collection[str], owners: Collection[str] | None = None, whole: Collection[str] = ()
    ) -> dict[str, Owned]:
        found = {key: (each, self._owners.get(key, EVERYBODY)) for key, each in self._kinds.get(kind, {}).items()}
        return {
            key: (each, owner)
            for key, (each, owner) in found.items()
            if ({key, each.get("name")} & set(names) and (owners is None or owner in (EVERYBODY, *owners)))
            or owner in whole
        }

    async def orchestrations(self, ids: Collection[str]) -> Mapping[str, Owned]:
        return self._of("orchestrations", ids)

    async def agents(self, ids: Collection[str]) -> Mapping[str, Owned]:
        return {key: each for key, each in self._of("agents", ids).items() if key in ids}

    async def tools(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, Owned]:
        return self._of("tools", names, owners, whole)

    async def mcp_servers(
        self, names: Collection[str], owners: Collection[str], whole: Collection[str]
    ) -> Mapping[str, Owned]:
        return self._of("servers", names, owners, whole)


def asks(agent: str) -> Document:
    return {"id": f"ask_{agent}", "type": "agent", "agent_id": agent}


ALL = Stored(
    orchestrations={"inner": {"id": "inner", "name": "Inner", "steps": [asks("c")]}},
    agents={
        "a": {"name": "A", "tools": ["look_up", "git_hub__search"]},
        "b": {"name": "B", "tools": ["bare"]},
        "c": {"name": "C", "tools": ["all"]},
        "o": {"name": "O", "orchestration_id": "inner"},
        "lost": {"name": "Lost", "orchestration_id": "gone"},
    },
    tools={"look_up": HTTP, "other": {"name": "other"}},
    servers={"git_hub": SERVER, "second": {"url": "https://second.example"}},
)


def an_orchestration_of(*agents: str) -> Definition:
    return a_definition(*(asks(agent) for agent in agents), a_print("p"))


@pytest.mark.parametrize(
    ("agents", "kept_agents", "tools", "servers", "inner"),
    [
        (["a"], ["a"], ["look_up"], ["git_hub"], []),
        (["a", "b"], ["a", "b"], ["look_up"], ["git_hub", "second"], []),  # a bare name may be any server's
        (["c"], ["c"], ["look_up", "other"], ["git_hub", "second"], []),
        (["o"], ["o", "c"], ["look_up", "other"], ["git_hub", "second"], ["inner"]),
    ],
)
async def test_what_is_reached(
    agents: list[str], kept_agents: list[str], tools: list[str], servers: list[str], inner: list[str]
) -> None:
    found = await collect(an_orchestration_of(*agents), ALL)
    assert (list(found.agents), list(found.tools)) == (kept_agents, tools)
    assert (list(found.mcp_servers), list(found.orchestrations)) == (servers, inner)
    assert "secret-" not in repr(found)


async def test_the_tool_of_a_tool_step() -> None:
    step: Document = {"id": "t", "type": "tool", "forced_tool": "git_hub__search"}
    found = await collect(a_definition(step), ALL)
    assert (list(found.tools), list(found.mcp_servers)) == ([], ["git_hub"])


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        ("nobody", "Step 'ask_nobody' (ask_nobody) names the agent 'nobody', which does not exist; sync it"),
        ("lost", "The agent 'Lost' (lost) names the orchestration 'gone', which does not exist; sync it"),
    ],
)
async def test_what_is_missing(agent: str, sentence: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        await collect(an_orchestration_of(agent), ALL)
    assert sentence in str(refused.value)


async def test_a_snapshot_is_kept_in_its_orchestrations_document() -> None:
    document: Document = {"id": "orch_1", "name": "Triage", "steps": [asks("a")]}
    snapshot = await collect(Definition.parse(document), ALL)
    kept = snapshot.kept_in(document)
    assert Snapshot.found_in(kept) == snapshot
    assert Definition.parse(kept) == Definition.parse(document)
    # A run that the previous release began has none.
    assert Snapshot.found_in(document) is None


def test_an_agent_as_users_write_it() -> None:
    agent = Agent.parse("a", {"tools": None, "model": "", "max_turns": None, "avatar": "x", "orchestration_id": ""})
    assert agent == Agent("a", "a", "", (), None, None, None, None)
    whole = Agent.parse("a", {"name": "Ada", "tools": ["t", None, 3], "max_turns": "4", "system_prompt": " Be kind. "})
    assert whole == Agent("a", "Ada", " Be kind. ", ("t", "3"), None, None, 4, None)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_turns": "many"}, "Agent 'Ada' (a) has max_turns 'many', which is no number."),
        ({"max_turns": -1}, "Agent 'Ada' (a) has max_turns -1; it is a whole number of at least 0."),
        ({"tools": "search"}, "Agent 'Ada' (a) has tools that are no list."),
        ({"tools": [{"name": "search"}]}, "Agent 'Ada' (a) has tools with an item that is no text."),
        ({"system_prompt": ["Be kind."]}, "Agent 'Ada' (a) has a system_prompt that is no text."),
        ({"model": {"name": "m"}}, "Agent 'Ada' (a) has a model that is no text."),
        ({"provider": True}, "Agent 'Ada' (a) has a provider that is no text."),
        ({"orchestration_id": []}, "Agent 'Ada' (a) has an orchestration_id that is no text."),
    ],
)
def test_an_agent_that_would_go_astray(fields: Document, sentence: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        Agent.parse("a", {"name": "Ada", **fields})
    assert str(refused.value) == sentence


OF_TWO = Stored(
    owners={"mine": "acme", "theirs": "other", "a1": "acme", "a2": "other", "s1": "acme", "s2": "other", "way": "acme"},
    orchestrations={
        "mine": {"id": "mine", "name": "Mine", "steps": [{"id": "t", "type": "tool", "forced_tool": "search"}]},
        "theirs": {"id": "theirs", "name": "Theirs", "steps": [asks("a2")]},
        "both": {"id": "both", "name": "Both", "steps": [asks("shared")]},
    },
    agents={
        "a1": {"name": "A1", "tools": ["search", "s2__find"]},
        "a2": {"name": "A2", "tools": ["all"]},
        "shared": {"name": "Shared", "tools": ["search"]},
        "way": {"name": "Way", "orchestration_id": "theirs"},
    },
    tools={
        "t1": {"name": "search"},
        "s1": {"name": "search"},
        "s2": {"name": "search"},
    },
    servers={"s2": {"url": "https://s2.example"}},
)


async def test_a_definition_reaches_its_own_tenants_and_everybodys() -> None:
    mine = Definition.parse({"id": "mine", "name": "Mine", "steps": [asks("a1"), asks("shared")]})
    found = Snapshot.found_in((await collect(mine, OF_TWO)).kept_in({}))
    assert found is not None
    assert (sorted(found.for_agent("a1").tools), list(found.for_agent("a1").mcp_servers)) == (["s1", "t1"], [])
    assert sorted(found.for_agent("shared").tools) == ["t1"]
    assert sorted(found.for_orchestration("mine").tools) == ["s1", "t1"]


async def test_tenants_that_meet_in_one_run_share_no_tools() -> None:
    # A chat's turn stands for an orchestration of its agent's tenant; here one of two tenants stands for both.
    theirs = await collect(Definition.parse({"id": "x", "name": "X", "steps": [asks("a2")]}), OF_TWO, owner="other")
    assert sorted(theirs.for_agent("a2").tools) == ["s2"]
    assert sorted(theirs.for_orchestration("x").tools) == ["s2"]
    assert list(theirs.for_agent("shared").tools) == []


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        ("a2", "names the agent 'a2', which does not exist; sync it"),
        ("way", "The agent 'Way' (way) names the orchestration 'theirs', which does not exist; sync it"),
    ],
)
async def test_another_tenants_agents_and_orchestrations_are_not_there(agent: str, sentence: str) -> None:
    mine = Definition.parse({"id": "mine", "name": "Mine", "steps": [asks(agent)]})
    with pytest.raises(DefinitionError) as refused:
        await collect(mine, OF_TWO)
    assert sentence in str(refused.value)
