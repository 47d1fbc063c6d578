"""Why a step stops without having finished or failed: the run stays as it stands, and the step is done again later.

An executor that runs something inside itself lets these pass.
"""

from __future__ import annotations

from synapse_worker.engine.steps.human import Question


class Suspended(Exception):
    """Base of both."""


class Halted(Suspended):
    """The run is to be given back at the next boundary, and this is one."""


class AsksHuman(Suspended):
    """Something inside the step waits for a human.

    Attributes:
        run_id: the nested run whose step asks; `orchestration_id` is its definition's.
    """

    def __init__(self, question: Question, *, run_id: str, orchestration_id: str, since: float) -> None:
        super().__init__(question.prompt)
        self.question = question
        self.run_id = run_id
        self.orchestration_id = orchestration_id
        self.since = since
