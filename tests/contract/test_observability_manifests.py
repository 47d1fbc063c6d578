"""Alert rules and dashboard: every expression is read as Prometheus reads it, and asks only for what we expose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client import CollectorRegistry

from synapse_operator.telemetry import Metrics as OperatorMetrics
from synapse_worker.telemetry import ApiMetrics
from synapse_worker.telemetry import Metrics as WorkerMetrics
from tests.support.observability import DASHBOARD, RULES, of_the_dashboard, of_the_rules

TARGET_LABELS = {"namespace", "pod", "scale", "shard", "job", "instance"}
"""Labels that a series gets where it is scraped, by our PodMonitors or by the scrape_configs of docs/metrics.md."""


def labels_of(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Name of each sample -> its labels, whether or not there is one yet."""
    return {
        name: {*getattr(collector, "_labelnames", ()), *(["le"] if name.endswith("_bucket") else [])}
        for collector, names in registry._collector_to_names.items()
        for name in names
    }


EXPOSED = {
    name: labels
    for metrics in (WorkerMetrics(), ApiMetrics(), OperatorMetrics())
    for name, labels in labels_of(metrics.registry).items()
}


EXPRESSIONS = [*of_the_rules(), *of_the_dashboard(namespace="n", scale="s")]


def parts(expression: object) -> Iterator[object]:
    """An expression and all that is in it."""
    yield expression
    for name in ("lhs", "rhs", "expr", "param", "args", "vector_selector"):
        below = getattr(expression, name, None)
        for each in below if isinstance(below, list | tuple) else [below]:
            if each is not None:
                yield from parts(each)


def labels_carried(expression: object) -> set[str]:
    """Labels that the series below an expression have."""
    selected = [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]
    return TARGET_LABELS.union(*(EXPOSED[selector.name] for selector in selected))


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS)
def test_an_expression_asks_for_what_there_is(where: str, text: str) -> None:
    expression = promql.parse(text)
    selectors = [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]
    assert selectors
    for selector in selectors:
        assert selector.name in EXPOSED, selector.name
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked <= EXPOSED[selector.name] | TARGET_LABELS, selector.name
    for part in parts(expression):
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            assert set(part.modifier.labels) <= labels_carried(part.expr)
        if isinstance(part, promql.BinaryExpr) and part.modifier is not None and part.modifier.matching is not None:
            assert set(part.modifier.matching.labels) <= labels_carried(part.lhs) & labels_carried(part.rhs)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
    if "for" in rule:
        assert promql.parse_duration(rule["for"]).total_seconds() > 0
    shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    outermost = next(
        part for part in parts(promql.parse(rule["expr"])) if not isinstance(part, promql.BinaryExpr | promql.Call)
    )
    kept = set(outermost.modifier.labels) if isinstance(outermost, promql.AggregateExpr) else labels_carried(outermost)
    assert shown <= kept


def test_no_two_rules_fire_for_the_same() -> None:
    assert len({rule["expr"] for rule in RULES}) == len({rule["alert"] for rule in RULES}) == len(RULES)


def test_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
