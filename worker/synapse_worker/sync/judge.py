"""Whether what was read can run: the same verdict, in the same words, that a run would meet at its start."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import cast

from synapse_worker.engine.checks import check_code, check_tool
from synapse_worker.engine.errors import DefinitionError, SandboxCrashed
from synapse_worker.engine.locked_python import LockedPython
from synapse_worker.engine.model import Definition
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.snapshot import Agent
from synapse_worker.store.claims import State
from synapse_worker.store.definitions import AGENTS, ORCHESTRATIONS, TOOLS
from synapse_worker.sync.documents import Item, Problem


async def judge(items: Sequence[Item]) -> tuple[list[Item], list[Problem]]:
    """Return the items that can run, and what is wrong with the others.

    The sandbox, some processes, is only started when there is something for it to judge.
    """
    good: list[Item] = []
    problems: list[Problem] = []
    async with AsyncExitStack() as stack:
        sandbox: Sandbox | None = None
        if any(_has_code(item) for item in items):
            whole = await stack.enter_async_context(LockedPython(processes=1))
            sandbox = await stack.enter_async_context(Sandbox(processes=1, whole=whole))
        for item in items:
            sentence = await _verdict(item, sandbox)
            if sentence:
                problems.append(item.problem(sentence))
            else:
                good.append(item)
    return good, problems


def _has_code(item: Item) -> bool:
    return item.document.table in (ORCHESTRATIONS, TOOLS)


async def _verdict(item: Item, sandbox: Sandbox | None) -> str:
    definition = cast(State, item.document.definition)
    try:
        if item.document.table == AGENTS:
            Agent.parse(item.document.key, definition)
        elif sandbox is not None and item.document.table == ORCHESTRATIONS:
            await check_code(Definition.parse(definition), sandbox)
        elif sandbox is not None and item.document.table == TOOLS:
            await check_tool(definition, sandbox)
    except DefinitionError as error:
        if not item.source.shown:
            return f"{item.document.key!r} cannot run as it is written; why is not shown, since it stands in a Secret."
        return str(error)
    except SandboxCrashed as error:
        return f"{item.document.key!r} could not be judged: {error}"
    return ""
