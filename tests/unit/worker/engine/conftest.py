"""A sandbox of one process, so that a test sees at once whether it survived what was done to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from synapse_worker.engine.sandbox import Sandbox


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(processes=1, max_seconds=5.0) as opened:
        yield opened
