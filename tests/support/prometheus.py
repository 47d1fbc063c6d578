"""A real Prometheus for tests, which scrapes what it is given once a second, and its promtool."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.servers import Server, program

PACKAGE = "prometheus"


def check_rules(file: Path) -> None:
    """Have promtool read a file of rules.

    Raises:
        AssertionError: it finds something wrong; with its words.
    """
    done = subprocess.run(
        [program("promtool", PACKAGE), "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True, slots=True)
class Target:
    """What is scraped: a port of the loopback address, with the labels that its series get and a bearer token."""

    port: int
    labels: Mapping[str, str]
    path: str = "/metrics"
    token: str = ""

    def job(self, name: str) -> dict[str, object]:
        """Return its part of the configuration."""
        where = {"targets": [f"127.0.0.1:{self.port}"], "labels": dict(self.labels)}
        found: dict[str, object] = {"job_name": name, "metrics_path": self.path, "static_configs": [where]}
        return found | ({"authorization": {"credentials": self.token}} if self.token else {})


class Prometheus(Server):
    """A Prometheus with rules; its data goes with it."""

    def __init__(self, rules: Path, *targets: Target) -> None:
        super().__init__("prometheus")
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [target.job(f"job-{number}") for number, target in enumerate(targets)],
        }
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))

    def command(self) -> list[str]:
        return [
            program("prometheus", PACKAGE),
            f"--config.file={self.folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **arguments: str) -> Any:
        """Return the data of an answer of its API, which must be a success."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{arguments}: {error.read().decode()}") from None

    def values(self, expression: str) -> list[float]:
        """Return the values of an expression's samples now."""
        found = self.ask("query", query=expression)["result"]
        return [float(each["value"][1]) for each in found]
