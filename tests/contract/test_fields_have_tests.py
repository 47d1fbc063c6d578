"""Every field of the definitions has a test that runs it in a worker, whose name says which field it is about.

`test_<subject>_<field>...` in tests/services/fields; the subject is a step type, `every_type`, or what the other fields
are of. A field that is new in a model fails here until it is in a table, and then until it has its test.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

from synapse_worker.engine.model import ASKS_MODELS, Definition, Step, StepType
from synapse_worker.engine.snapshot import Agent
from synapse_worker.job_payloads import PARAMETERS
from synapse_worker.queueing.client import RUN_FUNCTION

ROOT = Path(__file__).resolve().parents[2]

COMMON = ("id", "name", "type", "output_key", "next_step_id", "max_iterations", "timeout_seconds", "input_keys")
"""What steps of every type have."""

OWN: Mapping[str, Collection[str]] = {
    StepType.AGENT: ("agent_id", "prompt_template", "model", "max_turns", "allowed_tools"),
    StepType.LLM: ("prompt_template", "model"),
    StepType.TOOL: ("forced_tool", "prompt_template", "model"),
    StepType.EVALUATOR: ("route_map", "route_descriptions", "evaluator_prompt", "prompt_template", "model"),
    StepType.PARALLEL: ("parallel_branches",),
    StepType.MERGE: ("input_keys", "merge_strategy"),
    StepType.LOOP: ("loop_count", "loop_step_ids"),
    StepType.HUMAN: ("human_prompt", "human_fields", "human_timeout_seconds", "input_keys"),
    StepType.TRANSFORM: ("transform_code",),
    StepType.EXTRACT_JSON: ("input_keys",),
    StepType.IF_ELSE: ("if_condition", "if_true_step_id", "if_false_step_id"),
    StepType.SWITCH: ("switch_expression", "switch_cases", "switch_default_step_id"),
    StepType.PRINT: ("print_content",),
    StepType.END: (),
}
"""What steps of one type have besides, or read in a way of their own."""

OTHERS: Mapping[str, Collection[str]] = {
    "orchestrations": tuple(field.name for field in dataclasses.fields(Definition)),
    "agents": tuple(field.name for field in dataclasses.fields(Agent)),
    "chats": ("system_prompt", "tools", "model", "provider", "max_turns", "orchestration_id", "message", "images"),
    # Documents that no model reads.
    "tools": (
        *("name", "description", "tool_type", "code", "inputSchema", "schema", "parameters"),
        *("url", "method", "headers"),
    ),
    "servers": ("name", "server_type", "url", "transport", "token"),
    "inputs": PARAMETERS[RUN_FUNCTION],
}

ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("every_type", "name"): "services/fields/test_every_type.py::test_every_type_id_name_and_type",
    ("every_type", "type"): "services/fields/test_every_type.py::test_every_type_id_name_and_type",
    ("agents", "id"): "services/fields/test_models.py::test_agent_agent_id",
    ("tools", "code"): "services/fields/test_models.py::test_tools_tool_type_and_code",
    ("tools", "inputSchema"): "services/fields/test_models.py::test_tools_input_schema",
    ("tools", "schema"): "services/fields/test_models.py::test_tools_input_schema",
    ("tools", "parameters"): "services/fields/test_models.py::test_tools_input_schema",
    ("servers", "url"): "services/fields/test_models.py::test_servers_name_and_url",
    ("chats", "images"): "services/fields/test_chats.py::test_chats_message_and_images",
    ("orchestrations", "name"): "services/fields/test_runs.py::test_orchestrations_id_and_name",
    # It is not for the worker but for listings.
    ("orchestrations", "description"): "services/test_definitions.py::test_what_is_stored_of_each_kind",
    ("inputs", "run_id"): "services/test_runs.py::test_a_stock_arq_producer_is_served",
    ("inputs", "orch_id"): "services/test_runs.py::test_a_stock_arq_producer_is_served",
    ("inputs", "api_key_id"): "services/test_runs.py::test_a_stock_arq_producer_is_served",
    ("inputs", "webhook_url"): "services/test_webhooks.py::test_every_end_of_a_run_is_told",
    ("inputs", "webhook_secret"): "services/test_webhooks.py::test_every_end_of_a_run_is_told",
    ("inputs", "tenant_id"): "services/test_reservations.py::test_a_tenant_over_its_limit_holds_nobody_up",
}
"""Fields whose test has another name."""


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


HERE = set().union(*(names_in(path) for path in (ROOT / "tests/services/fields").glob("test_*.py")))


def all_fields() -> Iterator[tuple[str, str]]:
    subjects: dict[str, Collection[str]] = {"every_type": COMMON, **OWN, **OTHERS}
    for subject, fields in subjects.items():
        yield from ((subject, field) for field in fields)


@pytest.mark.parametrize(("subject", "field"), list(all_fields()))
def test_the_field_has_a_test(subject: str, field: str) -> None:
    if (subject, field) in ELSEWHERE:
        path, _, name = ELSEWHERE[subject, field].partition("::")
        assert name in names_in(ROOT / "tests" / path)
        return
    name = f"test_{subject}_{field}"
    assert [test for test in HERE if test == name or test.startswith(f"{name}_")], f"nothing is named {name}"


def test_the_tables_are_complete() -> None:
    assert set(OWN) == set(StepType)
    assert {*COMMON}.union(*OWN.values()) == {field.name for field in dataclasses.fields(Step)}
    assert all("prompt_template" in OWN[kind] and "model" in OWN[kind] for kind in ASKS_MODELS)
    assert set(ELSEWHERE) <= set(all_fields())
