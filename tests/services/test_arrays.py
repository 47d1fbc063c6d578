"""An array that is sent as a text holds in PostgreSQL what was put into it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from synapse_worker.store.database import Database, array

TEXTS: list[str | None] = [
    "",
    "a",
    "NULL",
    '"',
    "\\",
    '\\"',
    "{",
    "}",
    ",",
    '","',
    "a\nb",
    " a ",
    '{"a": "b\\\\n"}',
    "ß\u2028😀",
    "'",
    "$1",
]


@pytest.mark.parametrize("values", [TEXTS, [*TEXTS, None], [None, None], [None, "x"]], ids=str)
async def test_an_array_as_text_holds_what_was_put_into_it(database: Database, values: list[str | None]) -> None:
    rows = await database.fetch("SELECT value FROM unnest($1::text::text[]) AS value", array(values))
    assert [row["value"] for row in rows] == ([] if values == [None, None] else values)


async def test_an_array_as_text_holds_numbers_and_times(database: Database) -> None:
    moment = datetime(2026, 11, 26, 17, 30, 1, 123456, tzinfo=UTC)
    (row,) = await database.fetch(
        "SELECT $1::text::bigint[] AS ints, $2::text::float8[] AS floats, $3::text::bool[] AS bools,"
        " $4::text::timestamptz[] AS times",
        array([1, -(2**60), None]),
        array([0.1, 1e300, None]),
        array([True, None, False]),
        array([moment, None]),
    )
    assert row["ints"] == [1, -(2**60), None]
    assert row["floats"] == [0.1, 1e300, None]
    assert row["bools"] == [True, None, False]
    assert row["times"] == [moment, None]
