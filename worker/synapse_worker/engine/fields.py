"""Reads the fields of one object that users wrote; tolerant where their files differ, strict where it would go astray.

Any field may be null or missing, and numbers may be text. What fields there are and what they mean is said by `model`
and `snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping

from synapse_worker.engine.errors import DefinitionError


def text_of(value: object) -> str | None:
    """Return an id or name: text, or a number that a tool wrote without quotes; empty counts as missing."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


class Fields:
    """The fields of one object of a document.

    Each method raises a DefinitionError when the field is not what it returns; the sentence names the object.
    """

    def __init__(self, document: Mapping[str, object], title: str) -> None:
        self._document = document
        self.title = title

    def error(self, predicate: str) -> DefinitionError:
        """Return an error about the object; `predicate` is what its sentence says of it."""
        return DefinitionError(f"{self.title[0].upper()}{self.title[1:]} {predicate}.")

    def text(self, field: str) -> str | None:
        """Return an id, a name or a choice; None = none is given."""
        value = self._document.get(field)
        if value is None or value == "":
            return None
        text = text_of(value)
        if text is None and not isinstance(value, str):
            raise self.error(f"has {_article(field)} {field} that is no text")
        return text

    def code(self, field: str) -> str:
        """Return a text of any form, such as code or a prompt; "" = none is given."""
        value = self._document.get(field)
        if value is None:
            return ""
        # `if_condition: true` in YAML is a condition too.
        if isinstance(value, bool | int | float):
            return str(value)
        if not isinstance(value, str):
            raise self.error(f"has {_article(field)} {field} that is no text")
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        """Return a list of ids or names, without its empty items."""
        values = self.sequence(field)
        texts = tuple(text for value in values if (text := text_of(value)) is not None)
        if len(texts) != len([value for value in values if value not in (None, "")]):
            raise self.error(f"has {field} with an item that is no text")
        return texts

    def sequence(self, field: str) -> list[object]:
        """Return a list of anything."""
        value = self._document.get(field)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"has {field} that are no list")
        return value

    def mapping(self, field: str) -> Mapping[str, object]:
        """Return an object."""
        value = self._document.get(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(f"has {field} that is no object")
        return value

    def whole(self, field: str, default: int, *, minimum: int) -> int:
        """Return a whole number of at least `minimum`."""
        value = self._number(field)
        if value is None:
            return default
        if not value.is_integer() or value < minimum:
            raise self.error(f"has {field} {self._document.get(field)!r}; it is a whole number of at least {minimum}")
        return int(value)

    def positive(self, field: str) -> float | None:
        """Return a duration or an amount; 0 means, as in a main instance, that none is set."""
        value = self._number(field)
        if value is not None and value < 0:
            raise self.error(f"has {field} {self._document.get(field)!r}; it is a number above 0")
        return value or None

    def _number(self, field: str) -> float | None:
        value = self._document.get(field)
        if value is None or value == "":
            return None
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                raise ValueError(value)
            number = float(value)
            if number != number or number in (float("inf"), float("-inf")):
                raise ValueError(value)
        except (ValueError, OverflowError):
            raise self.error(f"has {field} {value!r}, which is no number") from None
        return number


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
