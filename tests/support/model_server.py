"""The model provider of manifests/dev/model-server for tests: in a thread of this process, with what it was asked."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

_SOURCE = Path(__file__).parents[2] / "manifests/dev/model-server/server.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_server_of_the_demo", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_SERVER = _load()


class ModelServer:
    """A running server."""

    def __init__(self, host: str, port: int, log: Any) -> None:
        self.url = f"http://{host}:{port}"
        self._log = log

    @property
    def asked(self) -> list[Any]:
        """The requests so far (`Asked`), oldest first."""
        return list(self._log.asked)

    @property
    def turns(self) -> list[int]:
        """How many answers each request went on from."""
        return [asked.turn for asked in self.asked]

    def settings(self, **more: object) -> dict[str, object]:
        """Return stored settings that ask it for the model `scripted`, which is the default."""
        return {
            "model": "scripted",
            "openai_compatible_base_url": f"{self.url}/v1",
            "openai_compatible_key": "the-openai-compatible-key",
            "openai_compatible_models": ["scripted"],
            "anthropic_key": "the-anthropic-key",
            **more,
        }


@contextmanager
def model_server(rules: Path | None = None, host: str = "127.0.0.1") -> Iterator[ModelServer]:
    """A server at an address of this machine until the block ends.

    Args:
        rules: a file of rules, as its pod in manifests/dev is given one.
        host: the address.
    """
    server, log = _SERVER.serve(0, host, rules=_SERVER.read_rules(rules) if rules is not None else ())
    try:
        yield ModelServer(host, server.server_address[1], log)
    finally:
        server.shutdown()
        server.server_close()


def script(*entries: dict[str, object]) -> str:
    """Return the end of a prompt that makes the server answer so; see the server."""
    return f"{_SERVER.MARK} {json.dumps(list(entries))}"


def call(tool: str, **arguments: object) -> dict[str, object]:
    """Return the entry for one tool call."""
    return {"call": tool, "args": arguments}
