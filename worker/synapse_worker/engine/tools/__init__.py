"""What models may call: custom tools (HTTP, Python), tools of MCP servers and of the vault, behind one `Toolbox`."""

from __future__ import annotations

from synapse_worker.engine.tools.opening import ToolSecrets, open_tools
from synapse_worker.engine.tools.toolbox import Toolbox
from synapse_worker.engine.tools.vault import Vault

__all__ = ["ToolSecrets", "Toolbox", "Vault", "open_tools"]
