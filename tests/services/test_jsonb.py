"""What a step sees of a value does not depend on whether PostgreSQL has had it meanwhile."""

from __future__ import annotations

import json
import random

from synapse_worker.engine.json_values import JsonValue, as_stored
from synapse_worker.store.database import Database, to_jsonb

SCALARS: list[JsonValue] = [
    *(0, 1, -7, 2**70, 0.0, -0.0, 1.0, 0.1, -2.5, 1e16, 1e22, 1e23, 123456789012345680.0, 1e-7, 5e-324, 1.7e308),
    *("", "text", "ä€😀", True, False, None),
]
KEYS = ["a", "b", "B", "aa", "iteration", "agent", "result", "ä", "zz", "€", "😀", "", "a b", "10", "9"]


def a_value(dice: random.Random, depth: int) -> JsonValue:
    kind = dice.random()
    if depth and kind < 0.4:
        return {dice.choice(KEYS): a_value(dice, depth - 1) for _ in range(dice.randint(0, 6))}
    if depth and kind < 0.6:
        return [a_value(dice, depth - 1) for _ in range(dice.randint(0, 4))]
    return dice.choice(SCALARS)


async def test_values_come_back_as_they_are_put_into_the_state(database: Database) -> None:
    dice = random.Random(7)
    values = [*SCALARS, *(a_value(dice, 4) for _ in range(500))]
    texts = [to_jsonb(value) for value in values]
    rows = await database.fetch(
        "SELECT t::jsonb::text AS back FROM unnest($1::text[]) WITH ORDINALITY AS u (t, n) ORDER BY n", texts
    )
    for value, row in zip(values, rows, strict=True):
        # str() shows the order of keys and the form of numbers, as a text that a step prints does.
        assert str(as_stored(value)) == str(json.loads(row["back"]))
