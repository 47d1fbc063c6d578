"""Brings a set of sources into Postgres: what is new or changed is written, what has vanished is taken back.

Whose sources they are says `owner`; the notes of `store.definitions` say what the owner wrote before. Content that is
noted already is neither judged nor written again. A text that cannot be read says nothing about what was in it, so
what came from there stays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import SETTINGS, Key, Synced
from synapse_worker.sync.documents import Item, Problem, Source, read
from synapse_worker.sync.judge import judge


@dataclass(frozen=True, slots=True)
class SyncReport:
    """What a sync did.

    Attributes:
        counts: definitions and settings that Postgres now holds as the sources say, by kind.
        changed: rows that were written.
        retired: rows that were taken back.
        problems: what was refused, in order of source and line.
    """

    counts: Mapping[str, int]
    changed: int
    retired: int
    problems: tuple[Problem, ...]

    @property
    def total_synced(self) -> int:
        """Definitions and settings that Postgres now holds as the sources say."""
        return sum(self.counts.values())

    def as_json(self) -> dict[str, object]:
        """Return the report in the shape of a main instance's Sync Now."""
        return {
            "total_synced": self.total_synced,
            "changed": self.changed,
            "retired": self.retired,
            "counts": dict(self.counts),
            "errors": [str(problem) for problem in self.problems],
        }


async def sync(
    database: Database,
    sources: Sequence[Source],
    *,
    tenant_id: str,
    owner: str = "",
    unread: Sequence[Problem] = (),
    everything: bool = False,
) -> SyncReport:
    """Store what the sources hold.

    Args:
        database: where, migrated.
        sources: all sources of the owner that can be read; where two define the same, the first one counts.
        tenant_id: tenant of the definitions.
        owner: whose sources they are; "" = nobody's, then nothing is noted and nothing is taken back.
        unread: sources, or whole objects (`key` ""), that are not among `sources`, since they could not be read.
        everything: also compare what is noted as unchanged with its row, and write it where somebody changed that.

    Raises:
        StoreUnavailable, StoreRefused: what was written up to then stays, the next sync goes on.
    """
    # Reading is work for the processor alone, and others share the loop.
    items, wrong = await asyncio.to_thread(_read_all, sources, tenant_id)
    problems = [*unread, *wrong]
    notes = await definitions.synced_by(database, owner) if owner else {}
    noted: list[Item] = []
    fresh: list[Item] = []
    for each in items:
        (noted if each.is_noted(notes) and not everything else fresh).append(each.item)
    good, refused = await judge(fresh)
    documents = [document for item in good for document in item.documents]
    changed = await definitions.upsert(database, documents, tenant_id=tenant_id, owner=owner)

    listed = {document.row for item in (*noted, *fresh) for document in item.documents}
    kept = {problem.place for problem in problems}
    gone = [
        row
        for row, note in notes.items()
        if row not in listed and not {note.source, note.source.partition("/")[0]} & kept
    ]
    retired = await definitions.retire(database, owner, gone) if gone else 0
    counts = Counter(_kind(item) for item in (*noted, *good))
    return SyncReport(counts, changed, retired, _in_order((*problems, *refused), sources))


@dataclass(frozen=True, slots=True)
class _Hashed:
    """An item with the hashes of its documents."""

    item: Item
    hashes: tuple[str, ...]

    def is_noted(self, notes: Mapping[Key, Synced]) -> bool:
        """Whether all of it was stored by this owner before, from the same place, and is still there."""
        found = [notes.get(document.row) for document in self.item.documents]
        place = self.item.source.place
        return all(
            note is not None and note.there and (note.hash, note.source) == (hash_, place)
            for note, hash_ in zip(found, self.hashes, strict=True)
        )


def _read_all(sources: Iterable[Source], tenant_id: str) -> tuple[list[_Hashed], list[Problem]]:
    found: dict[Key, Item] = {}
    problems: list[Problem] = []
    for source in sources:
        items, wrong = read(source)
        problems += wrong
        for item in items:
            first = found.setdefault(item.document.row, item)
            if first is not item:
                where = f"{first.source.place}:{first.line}"
                kind, key = item.document.row
                problems.append(item.problem(f"{kind} {key!r} was read from {where} already; ids are unique."))
    hashed = [_Hashed(each, tuple(doc.hash(tenant_id) for doc in each.documents)) for each in found.values()]
    return hashed, problems


def _kind(item: Item) -> str:
    table = item.document.table
    return "settings" if table == SETTINGS else table


def _in_order(problems: Iterable[Problem], sources: Sequence[Source]) -> tuple[Problem, ...]:
    order = {(source.name, source.key): number for number, source in enumerate(sources)}
    return tuple(sorted(problems, key=lambda each: (order.get((each.name, each.key), -1), each.line or 0)))
