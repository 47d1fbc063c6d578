"""Brings a set of sources into Postgres: what is new or changed is written, what has vanished is taken back.

Whose sources they are says `owner`; the notes of `store.definitions` say what the owner wrote before. Content that is
noted already is neither judged nor written again. A text that cannot be read says nothing about what was in it, so
what came from there stays.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from synapse_worker.store import definitions
from synapse_worker.store.database import Database
from synapse_worker.store.definitions import SETTINGS, Key, Synced
from synapse_worker.sync.documents import Item, Problem, Source, read
from synapse_worker.sync.judge import judge

PORTION_CHARACTERS = 1024 * 1024
"""Texts that are read, judged and stored together; a ConfigMap holds as much at most."""


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
    notes = await definitions.synced_by(database, owner) if owner else {}
    problems = [*unread]
    refusals: list[Problem] = []
    places: dict[Key, str] = {}
    counts: Counter[str] = Counter()
    changed = 0
    for some in _portions(sources):
        # Reading is work for the processor alone, and others share the loop.
        items, wrong = await asyncio.to_thread(_read_all, some, tenant_id, places)
        noted: list[Item] = []
        fresh: list[Item] = []
        for each in items:
            (noted if each.is_noted(notes) and not everything else fresh).append(each.item)
        good, refused = await judge(fresh)
        documents = [document for item in good for document in item.documents]
        changed += await definitions.upsert(database, documents, tenant_id=tenant_id, owner=owner)
        counts.update(_kind(item) for item in (*noted, *good))
        problems += wrong
        refusals += refused

    kept = {problem.place for problem in problems}
    gone = [
        row
        for row, note in notes.items()
        if row not in places and not {note.source, note.source.partition("/")[0]} & kept
    ]
    retired = await definitions.retire(database, owner, gone) if gone else 0
    return SyncReport(counts, changed, retired, _in_order((*problems, *refusals), sources))


def _portions(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Yield the sources in portions that are read and stored together: what is in memory at once is bounded."""
    portion: list[Source] = []
    characters = 0
    for source in sources:
        length = len(source.text or "")
        if portion and characters + length > PORTION_CHARACTERS:
            yield portion
            portion, characters = [], 0
        portion.append(source)
        characters += length
    if portion:
        yield portion


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


def _read_all(sources: Iterable[Source], tenant_id: str, places: dict[Key, str]) -> tuple[list[_Hashed], list[Problem]]:
    """Read sources; `places` holds where each row was read from, and is added to."""
    hashed: list[_Hashed] = []
    problems: list[Problem] = []
    for source in sources:
        items, wrong = read(source)
        problems += wrong
        for item in items:
            row = item.document.row
            if row in places:
                sentence = f"{row.table} {row.key!r} was read from {places[row]} already; ids are unique."
                problems.append(item.problem(sentence))
                continue
            places |= dict.fromkeys((document.row for document in item.documents), f"{source.place}:{item.line}")
            hashed.append(_Hashed(item, tuple(document.hash(tenant_id) for document in item.documents)))
    return hashed, problems


def _kind(item: Item) -> str:
    table = item.document.table
    return "settings" if table == SETTINGS else table


def _in_order(problems: Iterable[Problem], sources: Sequence[Source]) -> tuple[Problem, ...]:
    order = {(source.name, source.key): number for number, source in enumerate(sources)}
    return tuple(sorted(problems, key=lambda each: (order.get((each.name, each.key), -1), each.line or 0)))
