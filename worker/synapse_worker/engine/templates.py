"""Filling `{state.key}` in texts.

Only that form is a placeholder: `{{x}}`, JSON, code and any other brace stay as written, since users paste all of
them into texts. A key that is unknown or null stays as written too, so that a typing error is seen in the output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_PLACEHOLDER = re.compile(r"\{state\.(\w+(?:\.\w+)*)\}")


def fill(template: str, state: Mapping[str, object]) -> str:
    """Return `template` with each `{state.a.b}` replaced by that value as text (`str()` of it)."""
    return _PLACEHOLDER.sub(lambda match: _value(match, state), template)


def _value(match: re.Match[str], state: Mapping[str, object]) -> str:
    value: object = state
    for key in match[1].split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return match[0] if value is None else str(value)
