"""The errors of the operator's IO, and what each asks of whoever catches it.

`cluster` and `backends` raise these instead of their client's exceptions; the work queue turns them into
back-off. Pure modules raise none: there a problem is a value. No message holds a secret.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Base of our errors; `str()` is one sentence that a person understands."""


class ApiUnavailable(OperatorError):
    """The API server did not answer, or said "not now": try again later."""


class ApiRefused(OperatorError):
    """The API server said no to one request: repeating it unchanged repairs nothing by itself.

    Attributes:
        status: HTTP status, 400 to 499; 500 for an apply that the server cannot read.
        reason: machine-readable reason of the Status object ("" = none), such as `Forbidden` or `Conflict`.
        message: the server's own sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or f"the API server answered {status} {reason}".rstrip())
        self.status = status
        self.reason = reason
        self.message = message


class ApiNotFound(ApiRefused):
    """What was asked for does not exist: the object, its namespace, or the whole kind."""
