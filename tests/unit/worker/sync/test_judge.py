"""What a sync refuses, with the sentence that a run would end with, and what it takes beside that."""

from __future__ import annotations

import pytest

from synapse_worker.sync.documents import Source, read
from synapse_worker.sync.judge import judge

GOOD = "id: good\nname: Good\nsystem_prompt: Be kind.\nmax_turns: '4'\ntools: [search, null]\navatar: x\n"


def a_source(text: str, *, key: str = "agents.yaml", shown: bool = True) -> Source:
    return Source("ConfigMap team", key, text, takes_secrets=not shown, shown=shown)


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        (
            "agents.yaml",
            "id: ada\nname: Ada\nsystem_prompt: x\nmax_turns: many\n",
            "Agent 'Ada' (ada) has max_turns 'many', which is no number.",
        ),
        ("agents.yaml", "id: ada\nsystem_prompt: x\ntools: search\n", "Agent 'ada' (ada) has tools that are no list."),
        (
            "custom_tools.yaml",
            "name: look_up\ntool_type: http\nurl: example.com\n",
            "Tool 'look_up' has no http:// or https:// url.",
        ),
    ],
)
async def test_agents_and_tools_that_cannot_be_used_are_refused(key: str, text: str, problem: str) -> None:
    items, unread = read(a_source(f"{text}---\n{GOOD}", key=key))
    assert unread == []
    good, problems = await judge(items)
    assert [item.document.key for item in good] == ["good"]
    assert [str(each) for each in problems] == [f"ConfigMap team/{key}:1: {problem}"]


async def test_what_stands_in_a_secret_is_not_shown() -> None:
    items, _ = read(a_source("id: ada\nsystem_prompt: x\nmax_turns: hidden\n", shown=False))
    _, (problem,) = await judge(items)
    assert problem.sentence == "'ada' cannot run as it is written; why is not shown, since it stands in a Secret."
