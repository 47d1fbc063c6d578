"""Statements of the configuration page whose reader comes later, each with the letter of the issue that brings it.

What a user sets for one of them must not vanish silently: it is refused with a sentence, or docs/environment.md says
that it is not read yet. Which of the two is given with each statement, and test_not_built_yet.py checks it. Whoever
builds one takes it from here and writes its tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NotBuiltYet:
    """One statement, and what stands in for its reader; at least one of the last three is given.

    Attributes:
        section: the page's heading.
        statement: the page's words, shortened.
        issue: letter of the issue that builds it.
        variables: documented as not read yet in docs/environment.md.
        field: dotted path of the SynapseScale field that a manifest may not have yet.
        command: word that `synapse-worker` does not know yet.
    """

    section: str
    statement: str
    issue: str
    variables: tuple[str, ...] = ()
    field: str = ""
    command: str = ""


NOT_BUILT_YET: tuple[NotBuiltYet, ...] = (
    NotBuiltYet(
        "Enable Scale Mode",
        "All V2 API calls route jobs through the queue and return 202 Accepted with a run_id",
        "E",
        field="api",
    ),
    NotBuiltYet(
        "Enable Scale Mode",
        "When disabled, the V2 API falls back to inline execution and blocks until the run completes",
        "E",
        field="api",
    ),
    NotBuiltYet(
        "Max global queue depth",
        "When this limit is exceeded, new job submissions return 503 Service Unavailable",
        "E",
        field="queue.maxDepth",
    ),
    NotBuiltYet(
        "Rate limit per tenant",
        "Requests above this limit return 429 Too Many Requests",
        "E",
        field="tenancy.rateLimitRps",
    ),
)
