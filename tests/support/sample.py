"""manifests/samples/quickstart.yaml for tests, and what it is tried on: its definitions, and the receiver."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.support.servers import free_port, wait_until

_ROOT = Path(__file__).parents[2]
RULES = _ROOT / "manifests/dev/model-server/rules.json"


def texts(kind: str, name: str) -> Mapping[str, str]:
    """Return key -> text of one ConfigMap or Secret of the sample."""
    documents = yaml.safe_load_all((_ROOT / "manifests/samples/quickstart.yaml").read_text(encoding="utf-8"))
    (found,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    held: Mapping[str, str] = found.get("data") or found["stringData"]
    return held


class Receiver:
    """The receiver of manifests/dev, as a process of its own."""

    def __init__(self, otlp_port: int, http_port: int) -> None:
        self.otlp = f"http://127.0.0.1:{otlp_port}"
        self.http = f"http://127.0.0.1:{http_port}"

    def lines(self, path: str) -> list[str]:
        """Return what it shows; [] while there is nothing."""
        try:
            with urllib.request.urlopen(self.http + path, timeout=5) as answer:  # noqa: S310 - http
                return list(answer.read().decode().splitlines())
        except (urllib.error.URLError, OSError):
            return []


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver until the block ends."""
    otlp_port, http_port = free_port(), free_port()
    script = _ROOT / "manifests/dev/receiver/receiver.py"
    with subprocess.Popen([sys.executable, str(script), str(otlp_port), str(http_port)]) as process:
        try:
            found = Receiver(otlp_port, http_port)
            wait_until("the receiver serves", lambda: found.lines("/") == ["ok"])
            yield found
        finally:
            process.terminate()
