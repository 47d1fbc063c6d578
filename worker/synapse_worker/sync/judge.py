"""Whether what was read can run: the same verdict, in the same words, that a run would meet at its start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from synapse_worker.engine.checks import check_code, check_tool
from synapse_worker.engine.errors import DefinitionError, SandboxCrashed
from synapse_worker.engine.locked_python import LockedPython
from synapse_worker.engine.model import Definition
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.store.claims import State
from synapse_worker.store.definitions import ORCHESTRATIONS, TOOLS
from synapse_worker.sync.documents import Item, Problem


async def judge(items: Sequence[Item]) -> tuple[list[Item], list[Problem]]:
    """Return the items that can run, and what is wrong with the others.

    The sandbox, some processes, is only started when there is something for it to judge.
    """
    good: list[Item] = []
    problems: list[Problem] = []
    if not any(_has_code(item) for item in items):
        return list(items), problems
    async with LockedPython(processes=1) as whole, Sandbox(processes=1, whole=whole) as sandbox:
        for item in items:
            sentence = await _verdict(item, sandbox) if _has_code(item) else ""
            if sentence:
                problems.append(item.problem(sentence))
            else:
                good.append(item)
    return good, problems


def _has_code(item: Item) -> bool:
    return item.document.table in (ORCHESTRATIONS, TOOLS)


async def _verdict(item: Item, sandbox: Sandbox) -> str:
    definition = cast(State, item.document.definition)
    try:
        if item.document.table == ORCHESTRATIONS:
            await check_code(Definition.parse(definition), sandbox)
        else:
            await check_tool(definition, sandbox)
    except DefinitionError as error:
        if not item.source.shown:
            return f"{item.document.key!r} cannot run as it is written; why is not shown, since it stands in a Secret."
        return str(error)
    except SandboxCrashed as error:
        return f"{item.document.key!r} could not be judged: {error}"
    return ""
