"""What can go wrong in the engine, and whether trying again can help.

Each error's text is one sentence for the person who wrote the definition. The job loop reads `final` and nothing
else; it never looks into messages.
"""

from __future__ import annotations

from typing import ClassVar

from synapse_worker.errors import SynapseError


class EngineError(SynapseError):
    """Base of the engine's errors.

    Attributes:
        final: True = the same definition and state fail again, so no retry is spent.
    """

    final: ClassVar[bool] = True


class DefinitionError(EngineError):
    """A definition that this release cannot run; names the orchestration, the step and what is accepted."""


class CodeRefused(EngineError):
    """An expression or transform uses what the sandbox does not have; found without running it."""


class CodeFailed(EngineError):
    """The user's code raised an exception, or its result is not JSON that can be stored."""


class CodeLimit(EngineError):
    """The user's code, the state that it reads or its result passed a limit of time, memory, depth or size."""


class StepFailed(EngineError):
    """The step cannot do its work with the state that it finds."""


class SandboxCrashed(EngineError):
    """The sandbox process went away without a verdict on the code: another try may succeed."""

    final: ClassVar[bool] = False


class NewerCursor(EngineError):
    """The run's cursor was written by a newer engine: hand the job back untouched, do not fail it."""

    final: ClassVar[bool] = False
