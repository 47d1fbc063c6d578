"""The alert rules and the dashboard of manifests/observability, as tests read them: rules, panels, expressions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "manifests" / "observability"
GROUPS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))


def of_the_rules() -> Iterator[tuple[str, str]]:
    """Name and expression of each rule."""
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def of_the_dashboard(*, namespace: str, scale: str) -> Iterator[tuple[str, str]]:
    """Title and expressions of each panel, with the variables that Grafana fills in."""
    variables = {"$__rate_interval": "5m", "$namespace": namespace, "$scale": scale}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in variables.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression
