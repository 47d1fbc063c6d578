"""What models may call: custom tools over HTTP and in Python, the tools of MCP servers and those
that the worker itself brings, behind one `Toolbox`."""

from __future__ import annotations

from synapse_worker.engine.tools.opening import ToolSecrets, open_tools
from synapse_worker.engine.tools.toolbox import Toolbox

__all__ = ["ToolSecrets", "Toolbox", "open_tools"]
