"""Definitions from files into Postgres: what `synapse-worker sync` does.

A folder holds JSON and YAML files (a mounted ConfigMap is one); a file holds single orchestrations or export
bundles, YAML several documents. Each document is checked as a run would check it; what is wrong is reported
with its file and line and keeps nothing else from being stored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from synapse_worker.engine.checks import check_code
from synapse_worker.engine.errors import EngineError
from synapse_worker.engine.model import ORCHESTRATIONS, Definition, definition_documents
from synapse_worker.engine.sandbox import Sandbox
from synapse_worker.errors import ConfigurationError
from synapse_worker.store import definitions
from synapse_worker.store.claims import State
from synapse_worker.store.database import Database

_SUFFIXES = frozenset({".json", ".yaml", ".yml"})
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class SyncReport:
    """What a sync did: documents per kind that are stored now, how many of them changed, and what was refused."""

    counts: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def total_synced(self) -> int:
        """Documents that Postgres now holds as the files say."""
        return sum(self.counts.values())

    def as_json(self) -> dict[str, object]:
        """Return the report in the shape of upstream's Sync Now."""
        return {
            "total_synced": self.total_synced,
            "changed": self.changed,
            "counts": dict(self.counts),
            "errors": self.errors,
        }


async def sync_folder(database: Database, judge: Sandbox, folder: Path, *, tenant_id: str) -> SyncReport:
    """Store every definition of a folder; `judge` checks their code.

    Raises:
        ConfigurationError: the folder cannot be read, or holds no definition file.
    """
    report = SyncReport()
    documents: dict[tuple[str, str], definitions.Document] = {}
    sources: dict[tuple[str, str], str] = {}
    for path in _files(folder):
        for source, document in _documents(path, report):
            try:
                items = definition_documents(document, source=source)
            except EngineError as error:
                report.errors.append(str(error))
                continue
            for kind, key, item in items:
                problem = await _problem(kind, item, source, judge)
                if problem:
                    report.errors.append(problem)
                elif (kind, key) in documents:
                    report.errors.append(
                        f"{source}: {kind} {key!r} was read from {sources[kind, key]} already; ids are unique."
                    )
                else:
                    sources[kind, key] = source
                    documents[kind, key] = _stored(kind, key, dict(item))
    report.changed = await definitions.upsert(database, list(documents.values()), tenant_id=tenant_id)
    report.counts = Counter(document.table for document in documents.values())
    return report


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            # A mounted ConfigMap keeps its own bookkeeping in names that begin with two dots.
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("..") and path.is_file()
        )
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be read: {error.strerror}.") from None
    if not found:
        raise ConfigurationError(f"the folder {folder} holds no .json, .yaml or .yml file.")
    return found


def _documents(path: Path, report: SyncReport) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (file:line, document) for every object in a file; a list counts as its items."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            report.errors.append(f"{path.name}: the file is larger than {_MAX_BYTES} bytes.")
            return
        text = path.read_text(encoding="utf-8")
        parsed = _parse_json(text) if path.suffix.lower() == ".json" else _parse_yaml(text)
    except json.JSONDecodeError as error:
        report.errors.append(f"{path.name}:{error.lineno}: not JSON: {error.msg}.")
        return
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        report.errors.append(f"{path.name}:{line}: not YAML: {error.problem}.")
        return
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        report.errors.append(f"{path.name}: cannot be read ({type(error).__name__}).")
        return
    for line, value in parsed:
        for document in value if isinstance(value, list) else [value]:
            if isinstance(document, dict):
                yield f"{path.name}:{line}", document
            elif document is not None:
                report.errors.append(f"{path.name}:{line}: a definition is an object, not a {type(document).__name__}.")


def _parse_json(text: str) -> list[tuple[int, object]]:
    return [(1, json.loads(text))]


def _parse_yaml(text: str) -> list[tuple[int, object]]:
    loader = yaml.SafeLoader(text)
    found: list[tuple[int, object]] = []
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                break
            found.append((node.start_mark.line + 1, loader.construct_document(node)))
    finally:
        loader.dispose()
    return found


async def _problem(kind: str, item: Mapping[str, object], source: str, judge: Sandbox) -> str:
    """Return why a definition cannot be run, "" when it can."""
    if kind != ORCHESTRATIONS:
        return ""
    try:
        await check_code(Definition.parse(item), judge)
    except EngineError as error:
        return f"{source}: {error}"
    return ""


def _stored(kind: str, key: str, item: State) -> definitions.Document:
    name = item.get("name") if isinstance(item.get("name"), str) else key
    description = item.get("description")
    return definitions.Document(
        table=kind,
        key=key,
        name=str(name)[:500],
        description=description if isinstance(description, str) else "",
        definition=item,
    )
