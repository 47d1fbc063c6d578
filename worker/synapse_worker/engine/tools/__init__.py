"""What models may call: custom tools over HTTP and in Python, and the tools of MCP servers, behind one `Toolbox`."""

from __future__ import annotations

from synapse_worker.engine.tools.opening import ToolSecrets, open_tools
from synapse_worker.engine.tools.toolbox import Toolbox

__all__ = ["ToolSecrets", "Toolbox", "open_tools"]
