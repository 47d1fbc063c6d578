"""The work of each step type, one module a type, and the register that the job loop looks them up in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from synapse_worker.engine.model import StepType
from synapse_worker.engine.steps import end, extract_json, if_else, merge, print_text, switch, transform
from synapse_worker.engine.steps.context import Executor, NestedResult, StepContext

EXECUTORS: Mapping[StepType, Executor] = MappingProxyType(
    {
        StepType.PRINT: print_text.execute,
        StepType.IF_ELSE: if_else.execute,
        StepType.SWITCH: switch.execute,
        StepType.TRANSFORM: transform.execute,
        StepType.END: end.execute,
        StepType.MERGE: merge.execute,
        StepType.EXTRACT_JSON: extract_json.execute,
    }
)
"""Step type -> its executor; the same types as `model.RUNNABLE`."""

__all__ = ["EXECUTORS", "Executor", "NestedResult", "StepContext"]
