"""The documents in a JSON or YAML text, each with the line that it begins at; pure.

A text is not trusted: what could exhaust memory or stack before anybody has looked at it (references that multiply,
deep nesting) is refused here. What the documents mean is said in `documents`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml

from synapse_worker.engine.json_values import MAX_DEPTH, NotJson, depth_exceeds, dumps

MAX_NODES = 500_000
"""Values that a YAML text may unfold to with its references."""


class Place(NamedTuple):
    """A member of an object, or an item of a member that is a list (`item` -1 = the member itself)."""

    member: str
    item: int = -1


@dataclass(frozen=True, slots=True)
class Located:
    """One document.

    Attributes:
        line: where it begins, from 1.
        value: what it says.
        lines: where its members begin, and the items of those that are lists.
    """

    line: int
    value: object
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line_of(self, member: str, item: int = -1) -> int:
        """Return the line of a member or of one of its items, as far as it is known."""
        return self.lines.get(Place(member, item), self.line)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A document, or the rest of a text, that cannot be read.

    Attributes:
        line: where, None = no line is to blame.
        shown: the reason, with words of the text in it.
        plain: the reason without them, for texts that hold secrets.
    """

    line: int | None
    shown: str
    plain: str


def read_json(text: str) -> list[Located | Unreadable]:
    """Return the document of a JSON text, or the items of the list that it is."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return [_unreadable(error.lineno, f"not JSON: {error.msg}")]
    except (ValueError, RecursionError):
        return [_unreadable(None, "not JSON that can be read: it nests too deeply, or a number is too long")]
    return [_storable(each) for each in _JsonLines(text).documents(value)]


def read_yaml(text: str) -> list[Located | Unreadable]:
    """Return the documents of a YAML text; of one that is a list, its items."""
    found: list[Located | Unreadable] = []
    try:
        _check_depth(text)
        found.extend(_yaml_documents(text))
    except _TooMuch as error:
        found.append(_unreadable(error.line, str(error)))
    except yaml.MarkedYAMLError as error:
        found.append(_marked(error))
    except yaml.YAMLError:
        found.append(_unreadable(None, "not YAML: it holds a character that YAML does not allow"))
    return found


def _unreadable(line: int | None, sentence: str) -> Unreadable:
    return Unreadable(line, sentence, sentence)


def _storable(located: Located) -> Located | Unreadable:
    """Refuse what Postgres cannot hold as JSON."""
    try:
        dumps(located.value)
    except NotJson as error:
        return Unreadable(located.line, f"it holds what JSON cannot: {error}", "it holds what JSON cannot")
    if depth_exceeds(located.value, MAX_DEPTH):  # type: ignore[arg-type]  # JSON, as was just seen
        return _unreadable(located.line, f"it nests deeper than {MAX_DEPTH} levels")
    return located


# ---- JSON


_SPACE = re.compile(r"[ \t\r\n]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")


class _JsonLines:
    """Finds lines in a text that is known to be JSON: the decoder tells none."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decode = json.JSONDecoder().raw_decode
        self._at, self._line = 0, 1

    def documents(self, value: object) -> list[Located]:
        start = self._after(_SPACE, 0)
        if isinstance(value, list):
            return [self._document(item, at) for item, at in zip(value, self._items(start), strict=True)]
        return [self._document(value, start)]

    def _document(self, value: object, start: int) -> Located:
        line = self._line_at(start)
        return Located(line, value, dict(self._members(start)) if isinstance(value, dict) else {})

    def _members(self, start: int) -> Iterator[tuple[Place, int]]:
        at = self._after(_SPACE, start + 1)
        while self._text[at] != "}":
            name, end = self._decode(self._text, at)
            yield Place(name), self._line_at(at)
            at = self._after(_COLON, end)
            if self._text[at] == "[":
                for number, item in enumerate(self._items(at)):
                    yield Place(name, number), self._line_at(item)
            at = self._after_comma(self._decode(self._text, at)[1])

    def _items(self, start: int) -> Iterator[int]:
        at = self._after(_SPACE, start + 1)
        while self._text[at] != "]":
            yield at
            at = self._after_comma(self._decode(self._text, at)[1])

    def _after_comma(self, at: int) -> int:
        comma = _COMMA.match(self._text, at)
        return comma.end() if comma else self._after(_SPACE, at)

    def _after(self, pattern: re.Pattern[str], at: int) -> int:
        found = pattern.match(self._text, at)
        return found.end() if found else at

    def _line_at(self, position: int) -> int:
        """Counted on from the last place that was asked for; places come in order."""
        self._line += self._text.count("\n", self._at, position)
        self._at = position
        return self._line


# ---- YAML


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one where there is one
    """Plain YAML, but dates stay the text that they are in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as the base class declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _TooMuch(Exception):
    """The text would exhaust what reads it."""

    def __init__(self, node: yaml.Node | yaml.Event, sentence: str) -> None:
        super().__init__(sentence)
        self.line = _line(node)


def _check_depth(text: str) -> None:
    """Refuse deep nesting before anything recursive reads the text."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _TooMuch(event, f"it nests deeper than {MAX_DEPTH} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError:
        return  # whoever reads it meets the same, behind the documents that are good


def _yaml_documents(text: str) -> Iterator[Located | Unreadable]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            _check_size(node, {})
            try:
                value = loader.construct_document(node)
            except yaml.MarkedYAMLError as error:
                yield _marked(error)
                continue
            except (ValueError, TypeError):  # a value that says by its tag what it is, and is not
                yield _unreadable(_line(node), "not YAML: a value does not fit its type")
                continue
            values, nodes = [value], [node]
            if isinstance(node, yaml.SequenceNode) and isinstance(value, list):
                values, nodes = value, node.value
            for each, where in zip(values, nodes, strict=True):
                yield _storable(Located(_line(where), each, dict(_yaml_lines(where))))
    finally:
        loader.dispose()


def _line(node: yaml.Node | yaml.Event) -> int:
    return node.start_mark.line + 1 if node.start_mark is not None else 1


def _marked(error: yaml.MarkedYAMLError) -> Unreadable:
    line = error.problem_mark.line + 1 if error.problem_mark else None
    return Unreadable(line, f"not YAML: {error.problem or error.context}", "not YAML")


def _yaml_lines(node: yaml.Node) -> Iterator[tuple[Place, int]]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        yield Place(str(key.value)), _line(key)
        if isinstance(value, yaml.SequenceNode):
            for number, item in enumerate(value.value):
                yield Place(str(key.value), number), _line(item)


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node unfolds to; `sizes` holds what is known by the node's identity."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    known = sizes.get(id(node))
    if known is not None:
        if known == 0:
            raise _TooMuch(node, "a reference leads back to itself")
        return known
    sizes[id(node)] = 0
    inner = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
    size = 1 + sum(_check_size(each, sizes) for each in inner)
    if size > MAX_NODES:
        raise _TooMuch(node, f"its references unfold to more than {MAX_NODES} values")
    sizes[id(node)] = size
    return size
