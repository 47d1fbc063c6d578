"""The README's table of the settings page is complete and true: each field, call, command and annotation exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from fastapi.routing import APIRoute

from synapse_operator import naming
from synapse_operator.api.common import JsonObject
from synapse_worker.api.routes import chat, definitions, operations, probes, runs
from tests.contract.test_environment_page import PAGE_VARIABLES

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The settings page as fields\n")[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.partition("\n## ")[0].splitlines()
    if line.startswith("| ")
][2:]
"""What the page calls it, its variables, where it is here."""

PAGE_SETTINGS = (
    *("Save Scale Config", "Redis URL", "Enable Scale Mode", "Queue shards", "Worker concurrency", "Postgres URL"),
    *("PgBouncer mode", "Auto-sync on change", "Sync Now", "total_synced", "LLM Providers", "S3 bucket", "region"),
    *("key prefix", "Access key ID", "secret access key", "Endpoint URL", "IAM role", "OTLP endpoint", "Jaeger"),
    *("Metrics token", "Prometheus scrape", "Max global queue depth", "Rate limit per tenant", "Tenant isolation"),
    *("Add tenant", "tenant_id", "name", "max_queued_runs", "max_concurrent_runs", "V2 API calls", "pinned to a shard"),
)
"""What a user of the configuration page fills in, switches or presses, by the page's words."""

CALLS = {
    (method, re.sub(r"{[^}]+}", "{id}", route.path.removeprefix("/api/v2")))
    for router in (runs.router, chat.router, operations.router, definitions.router, probes.router)
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in route.methods or ()
}
COMPOSE_PROFILES = {
    profile
    for service in yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    for profile in service.get("profiles", ())
}


def schema(kind: str) -> JsonObject:
    """The schema of a kind's present version."""
    crd = yaml.safe_load((ROOT / "crds" / f"scale.synapseorch.com_{kind}.yaml").read_text(encoding="utf-8"))
    found: JsonObject = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


SCALE, TENANT = schema("synapsescales"), schema("synapsetenants")


def has(node: JsonObject, path: str) -> bool:
    """Whether a schema has a field: names with dots between them, `[]` behind a list."""
    for name in path.split("."):
        node = node.get("properties", {}).get(name.removesuffix("[]"), {})
        if name.endswith("[]"):
            node = node.get("items", {})
    return bool(node)


def test_every_setting_of_the_page_has_a_row() -> None:
    for wanted in PAGE_SETTINGS:
        assert any(wanted.lower() in setting.lower() for setting, _, _ in ROWS), wanted
    assert {name for _, variables, _ in ROWS for name in re.findall(r"`(\w+)`", variables)} == PAGE_VARIABLES


@pytest.mark.parametrize(("setting", "here"), [(setting, here) for setting, _, here in ROWS])
def test_a_row_leads_somewhere(setting: str, here: str) -> None:
    """Each field is one of the kind, each call one of the API; commands have their annotation and profile."""
    for path in re.findall(r"`((?:spec|status)\.[\w.\[\]]+)", here):
        assert has(TENANT if "a SynapseTenant" in here else SCALE, path), path
    assert set(re.findall(r"`(GET|POST) /api/v2(/[^`]+)`", here)) <= CALLS
    assert set(re.findall(r"scale\.synapseorch\.com/[\w-]+", here)) <= {naming.SYNC_NOW_ANNOTATION}
    assert set(re.findall(r"--profile (\w+)", here)) <= COMPOSE_PROFILES
    assert re.search(r"`(spec\.|status\.|GET |POST |kubectl |docker )|all pods", here), f"{setting}: nothing to do"
