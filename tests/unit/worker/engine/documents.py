"""Small definitions for the engine's tests, as users would write them."""

from __future__ import annotations

from hypothesis import settings

from synapse_worker.engine.model import Definition

Document = dict[str, object]

searched = settings(deadline=None, max_examples=60)
"""For tests over generated values: no time limit of their own, which a busy machine would break."""


def a_print(identity: str, **fields: object) -> Document:
    return {"id": identity, "name": identity.upper(), "type": "print", "print_content": f"at {identity}", **fields}


def a_loop(identity: str, *body: str, **fields: object) -> Document:
    return {"id": identity, "name": identity.upper(), "type": "loop", "loop_step_ids": list(body), **fields}


def a_parallel(identity: str, *branches: list[str], **fields: object) -> Document:
    return {"id": identity, "name": identity.upper(), "type": "parallel", "parallel_branches": [*branches], **fields}


def an_orchestration(*steps: Document, **fields: object) -> Document:
    return {"id": "orch_1", "name": "Triage", "steps": list(steps), "entry_step_id": steps[0]["id"], **fields}


def a_definition(*steps: Document, **fields: object) -> Definition:
    return Definition.parse(an_orchestration(*steps, **fields))
