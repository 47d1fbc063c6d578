"""From the names that a definition gives to a toolbox: which tools they are, connected and ready to be called."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from pydantic import SecretStr

from synapse_worker.engine.checks import PYTHON_TOOL
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.engine.snapshot import ALL_TOOLS, Snapshot
from synapse_worker.engine.tools.http_tool import http_tool
from synapse_worker.engine.tools.mcp_tools import is_stdio, mcp_tools
from synapse_worker.engine.tools.python_tool import python_tool
from synapse_worker.engine.tools.toolbox import Tool, Toolbox
from synapse_worker.engine.tools.vault import Vault, vault_tools

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ToolSecrets:
    """What a snapshot does not keep, read at each job's start.

    Attributes:
        mcp_tokens: name of the MCP server -> its token.
        headers: id of the custom tool -> its headers.
    """

    mcp_tokens: Mapping[str, SecretStr] = field(default_factory=dict)
    headers: Mapping[str, Mapping[str, SecretStr]] = field(default_factory=dict)


@asynccontextmanager
async def open_tools(
    names: Collection[str],
    allowed: Collection[str],
    snapshot: Snapshot,
    secrets: ToolSecrets,
    sandbox: Sandbox,
    vault: Vault,
) -> AsyncIterator[Toolbox]:
    """Open the tools of an agent for the time of one step.

    Args:
        names: of custom tools, of MCP tools (`server__tool` or bare), of the vault's, or ALL_TOOLS.
        allowed: narrows them; empty, or with ALL_TOOLS in it, = all of them.
        snapshot: the definitions that the run keeps.
        secrets: what those do without.
        sandbox: runs the tools that are scripts.
        vault: whose files the vault's tools are about; a custom tool of one of their names takes its place.

    Raises:
        DefinitionError: an MCP server that is named cannot be used by workers at all.
        ToolsUnavailable: one does not answer now.
    """
    everything = ALL_TOOLS in names
    wanted = set(names) - {ALL_TOOLS}
    if allowed and ALL_TOOLS not in allowed:
        # Of all tools the allowed ones, which may be named as the agent names them or by their other form.
        wanted = set(allowed) if everything else {name for name in wanted if _allows(allowed, name)}
        everything = False
    stack = AsyncExitStack()
    try:
        custom = [
            _custom(key, document, secrets, sandbox)
            for key, document in snapshot.tools.items()
            if everything or key in wanted or document.get("name") in wanted
        ]
        taken = {tool.name for tool in custom}
        ours = [tool for tool in vault_tools(vault) if (everything or tool.name in wanted) and tool.name not in taken]
        tools = [*custom, *ours]
        others = wanted - {tool.name for tool in tools} - snapshot.tools.keys()
        for server, document in snapshot.mcp_servers.items():
            named = {name for name in others if name.startswith(f"{server}__")}
            bare = {name for name in others if "__" not in name}
            if not named and is_stdio(document):
                continue  # nobody asks for one of its tools by name
            if everything or named or bare:
                tools += [
                    tool
                    for tool in await mcp_tools(server, document, secrets.mcp_tokens.get(server), stack)
                    if everything or tool.name in named or tool.bare_name in bare
                ]
        found = {tool.name for tool in tools} | {tool.bare_name for tool in tools}
        yield Toolbox(tools, sorted(others - found))
    finally:
        # Without the exception of the block: task groups in there would wrap it.
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await stack.aclose()
        except Exception as error:
            log.info("a connection to an MCP server did not end well: %s", type(error).__name__)


def _allows(allowed: Collection[str], name: str) -> bool:
    return (
        name in allowed
        or name.rpartition("__")[2] in allowed
        or any(each.rpartition("__")[2] == name for each in allowed)
    )


def _custom(key: str, document: Mapping[str, object], secrets: ToolSecrets, sandbox: Sandbox) -> Tool:
    name = document.get("name")
    title = name if isinstance(name, str) and name else key
    if document.get("tool_type") == PYTHON_TOOL:
        return python_tool(title, document, sandbox)
    headers = {field: value.get_secret_value() for field, value in secrets.headers.get(key, {}).items()}
    return http_tool(title, document, headers)
