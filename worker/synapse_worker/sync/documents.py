"""What the documents of a text are and how each is stored; pure: a text in, rows and problems out.

A source is one file of a folder, or one key of a ConfigMap or Secret. It may hold single documents, lists of them,
export bundles (`synapse_export: true`) and, in YAML, several documents. What is wrong with one keeps none of the
others back, and no problem of a Secret shows a word of its text. Whether an orchestration can run
is judged by `judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from synapse_worker.contract import VARIABLES, Kind, Variable
from synapse_worker.store.definitions import AGENTS, MCP_SERVERS, MCP_TOKEN, ORCHESTRATIONS, SETTINGS, TOOLS, Document
from synapse_worker.sync.text import Located, Unreadable, read_json, read_yaml

MAX_BYTES = 16 * 1024 * 1024
MAX_KEY_LENGTH = 255
MAX_NAME_LENGTH = 500
_REDACTED_TOKEN = "xxxxxxxxx"  # noqa: S105  # what an export writes in the place of a token

MAIN_SETTINGS_FILE = "settings.json"
"""A main instance's own file, most of which is not ours: what we do not know there is passed over."""

SUFFIXES = (".json", ".yaml", ".yml")


def _place(name: str, key: str) -> str:
    return "/".join(filter(None, (name, key)))


@dataclass(frozen=True, slots=True)
class Source:
    """One text.

    Attributes:
        name: the object that holds it, such as `ConfigMap team`; "" = a file of a folder.
        key: its key, or the file's name; the suffix says how it is read.
        text: what it holds; None = bytes that are no text.
        takes_secrets: whether model keys and tokens may be in it.
        shown: whether a problem may show words of it.
    """

    name: str
    key: str
    text: str | None
    takes_secrets: bool
    shown: bool

    @property
    def place(self) -> str:
        """The source in one word, as the notes keep it."""
        return _place(self.name, self.key)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something was not stored.

    Attributes:
        name: as in `Source`.
        key: as in `Source`; "" = the object as a whole.
        line: where it is, from 1; None = no line is to blame.
        sentence: what is wrong and what is accepted.
    """

    name: str
    key: str
    line: int | None
    sentence: str

    @property
    def place(self) -> str:
        """The source, as `Source.place` says it."""
        return _place(self.name, self.key)

    def __str__(self) -> str:
        return f"{self.place}{f':{self.line}' if self.line else ''}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Item:
    """One definition or setting.

    Attributes:
        source: where it comes from.
        line: where it begins.
        document: how it is stored.
        token: the setting that is stored with it, of an MCP server with a token.
    """

    source: Source
    line: int
    document: Document
    token: Document | None = None

    def problem(self, sentence: str) -> Problem:
        """Return a problem at its place."""
        return Problem(self.source.name, self.source.key, self.line, sentence)

    @property
    def documents(self) -> tuple[Document, ...]:
        """All that is stored for it."""
        return (self.document,) if self.token is None else (self.document, self.token)


def read(source: Source) -> tuple[list[Item], list[Problem]]:
    """Return what a source holds, and what is wrong with the rest; blank texts hold nothing."""
    items: list[Item] = []
    problems: list[Problem] = []
    for found in _located(source):
        if isinstance(found, Unreadable):
            problems.append(_problem(source, found.line, found.shown if source.shown else found.plain))
        elif found.value is not None:
            for each in _Reader(source, found).read():
                (items if isinstance(each, Item) else problems).append(each)  # type: ignore[arg-type]  # sorted here
    return items, problems


def _located(source: Source) -> list[Located | Unreadable]:
    if source.text is None:
        sentence = "it is not text (UTF-8)"
        return [Unreadable(None, sentence, sentence)]
    text = source.text.removeprefix("\ufeff")
    if len(text) > MAX_BYTES:
        sentence = f"it is longer than {MAX_BYTES} characters"
        return [Unreadable(None, sentence, sentence)]
    lower = source.key.lower()
    is_json = lower.endswith(".json") or (not lower.endswith(SUFFIXES) and text.lstrip()[:1] in ("{", "["))
    return read_json(text) if is_json and text.strip() else read_yaml(text)


_BUNDLE = {"orchestrations": ORCHESTRATIONS, "agents": AGENTS, "mcp_servers": MCP_SERVERS, "custom_tools": TOOLS}
"""Part of an export bundle -> table."""

_TITLES = {ORCHESTRATIONS: "orchestration", AGENTS: "agent", MCP_SERVERS: "MCP server", TOOLS: "tool"}

_NAMED_FOR = {
    "orchestrations": ORCHESTRATIONS,
    "user_agents": AGENTS,
    "agents": AGENTS,
    "custom_tools": TOOLS,
    "tools": TOOLS,
    "mcp_servers": MCP_SERVERS,
    "settings": SETTINGS,
}
"""Name of a key or file without its suffix -> what its documents are where they do not say it themselves."""

_TELLING = (
    (ORCHESTRATIONS, ("steps",)),
    (MCP_SERVERS, ("server_type",)),
    (TOOLS, ("tool_type", "inputSchema", "generalName")),
    (AGENTS, ("system_prompt",)),
)
"""Fields that only one kind of definition has."""

_ACCEPTED = (
    "accepted are an orchestration (steps), an agent (system_prompt), a tool (tool_type), an MCP server (server_type), "
    "settings, or an export bundle (synapse_export: true); a key named agents, custom_tools or mcp_servers says the "
    "kind too"
)


class _Reader:
    """Reads one document of a source."""

    def __init__(self, source: Source, located: Located) -> None:
        self._source = source
        self._located = located

    def read(self) -> Iterator[Item | Problem]:
        value = self._located.value
        if not isinstance(value, Mapping):
            yield self._problem(self._located.line, f"a definition is an object, not {_kind_of(value)}")
        elif value.get("synapse_export") is True:
            yield from self._bundle(value)
        else:
            table = self._table(value)
            if table is None:
                yield self._problem(self._located.line, f"what the document is cannot be told: {_ACCEPTED}")
            elif table == SETTINGS:
                yield from self._settings(value)
            else:
                yield self._definition(table, value, self._located.line, f"the {_TITLES[table]}")

    def _table(self, value: Mapping[str, object]) -> str | None:
        stem = self._source.key.lower()
        for suffix in SUFFIXES:
            stem = stem.removesuffix(suffix)
        for table, fields in _TELLING:
            if any(field in value for field in fields):
                return table
        if stem in _NAMED_FOR:
            return _NAMED_FOR[stem]
        return SETTINGS if any(key in SETTING_RULES for key in value) else None

    def _bundle(self, bundle: Mapping[str, object]) -> Iterator[Item | Problem]:
        for part, table in _BUNDLE.items():
            entries = bundle.get(part) or []
            if not isinstance(entries, list):
                yield self._problem(self._located.line_of(part), f"{part} of the export bundle is no list")
                continue
            for number, entry in enumerate(entries):
                line = self._located.line_of(part, number)
                title = f"item {number + 1} of {part} in the export bundle"
                if isinstance(entry, Mapping):
                    yield self._definition(table, entry, line, title)
                else:
                    yield self._problem(line, f"{title} is no object")

    def _definition(self, table: str, value: Mapping[str, object], line: int, title: str) -> Item | Problem:
        wanted, article = ("name", "a") if table == MCP_SERVERS else ("id", "an")
        key = _text(value.get(wanted)) or _text(value.get("id")) or (table == TOOLS and _text(value.get("name"))) or ""
        if not key:
            return self._problem(line, f"{title} has no {wanted}")
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            limits = f"has at most {MAX_KEY_LENGTH} characters and no control characters"
            return self._problem(line, f"{title} has {article} {wanted} that cannot be stored: it {limits}")
        if table == MCP_SERVERS:
            return self._mcp_server(key, value, line)
        name = _text(value.get("name")) or key
        description = value.get("description") if table == ORCHESTRATIONS else ""
        text = description if isinstance(description, str) else ""
        return self._item(line, Document(table, key, name[:MAX_NAME_LENGTH], text, dict(value), self._source.place))

    def _mcp_server(self, name: str, value: Mapping[str, object], line: int) -> Item | Problem:
        """The token is kept apart from the definition, which a run stores and shows."""
        token = value.get("token")
        given = token not in (None, "", _REDACTED_TOKEN)
        if given and not self._source.takes_secrets:
            return self._problem(line, f"MCP server {name!r} holds a token: put the document into a Secret")
        if given and not isinstance(token, str):
            return self._problem(line, f"the token of MCP server {name!r} is no text")
        if given and len(MCP_TOKEN + name) > MAX_KEY_LENGTH:
            longest = MAX_KEY_LENGTH - len(MCP_TOKEN)
            return self._problem(line, f"an MCP server with a token has a name of at most {longest} characters")
        # `status` is a main instance's note on its own connection.
        definition = {field: each for field, each in value.items() if field not in ("token", "status")}
        label = _text(value.get("label")) or name
        document = Document(MCP_SERVERS, name, label[:MAX_NAME_LENGTH], "", definition, self._source.place)
        return self._item(line, document, self._setting_row(MCP_TOKEN + name, token) if given else None)

    def _settings(self, value: Mapping[str, object]) -> Iterator[Item | Problem]:
        for key, setting in value.items():
            line = self._located.line_of(str(key))
            rule = SETTING_RULES.get(str(key))
            if rule is None:
                if self._source.key != MAIN_SETTINGS_FILE:
                    yield self._problem(line, f"there is no setting {str(key)!r}; known are {', '.join(SETTING_RULES)}")
            elif setting is not None and setting != "":  # a main instance writes "" for what is not set
                if rule.secret and not self._source.takes_secrets:
                    yield self._problem(line, f"the setting {key} is a secret: put it into a Secret")
                elif not rule.takes(setting):
                    yield self._problem(line, f"the setting {key} is not accepted as it is; it takes {rule.accepts}")
                else:
                    yield self._item(line, self._setting_row(str(key), setting))

    def _setting_row(self, key: str, value: object) -> Document:
        return Document(SETTINGS, key, "", "", value, self._source.place)

    def _item(self, line: int, document: Document, token: Document | None = None) -> Item:
        return Item(self._source, line, document, token)

    def _problem(self, line: int, sentence: str) -> Problem:
        return _problem(self._source, line, sentence)


def _problem(source: Source, line: int | None, sentence: str) -> Problem:
    return Problem(source.name, source.key, line, f"{sentence[0].upper()}{sentence[1:]}.")


def _text(value: object) -> str | None:
    """An id or name: text, or a number that a tool wrote without quotes; empty counts as missing."""
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


def _kind_of(value: object) -> str:
    if isinstance(value, list):
        return "a list"
    return "a text" if isinstance(value, str) else "a single value"


# ---- settings


@dataclass(frozen=True, slots=True)
class SettingRule:
    """What a setting may be.

    Attributes:
        takes: whether a value is accepted.
        accepts: the same as the end of a sentence.
        secret: whether only a source that may hold secrets may set it.
    """

    takes: Callable[[object], bool]
    accepts: str
    secret: bool = False


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_names(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


def _number(variable: Variable) -> SettingRule:
    low, high = variable.minimum or 0, variable.maximum or 0

    def takes(value: object) -> bool:
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
        return text.isdecimal() and len(text) < len(str(high)) + 2 and low <= int(text) <= high

    return SettingRule(takes, variable.accepts)


_TEXT = SettingRule(_is_text, "text")
_SECRET = SettingRule(_is_text, "text", secret=True)
_NAMES = SettingRule(_are_names, "a list of names, or a text")

SETTING_RULES: Mapping[str, SettingRule] = {
    "model": _TEXT,
    "mode": _TEXT,
    **{f"{provider}_key": _SECRET for provider in ("openai", "anthropic", "gemini", "grok", "deepseek")},
    **{
        f"{kind}_compatible_{field}": rule
        for kind in ("openai", "local")
        for field, rule in (("key", _SECRET), ("base_url", _TEXT), ("models", _NAMES))
    },
    "s3_bucket": _TEXT,
    "s3_region": _TEXT,
    "s3_prefix": _TEXT,
    "s3_endpoint_url": _TEXT,
    "s3_access_key_id": _SECRET,
    "s3_secret_access_key": _SECRET,
    **{each.stored: _number(each) for each in VARIABLES if each.stored and each.kind is Kind.INTEGER},
}
"""Every setting that a sync may write: the model providers', the storage's, and those that stand in for variables."""
