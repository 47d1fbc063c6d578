"""The fault scenarios in their short form: nothing lost, nothing doubled. `make chaos` plays the long one."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import play
from tests.chaos.scenarios import SCENARIOS, Play
from tests.support.servers import PostgresServer

SHORT = {name: scenario.short for name, scenario in SCENARIOS.items() if scenario.short is not None}


@pytest.mark.parametrize("scenario", SHORT.values(), ids=list(SHORT))
async def test_nothing_is_lost_and_nothing_doubled(scenario: Play, postgres_server: PostgresServer) -> None:
    verdict = await play(postgres_server, scenario, step_seconds=0.1)
    assert verdict.problems == ()
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert verdict.started == verdict.finished > 0
