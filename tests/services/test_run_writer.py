"""Writes of many runs in one call against a real PostgreSQL: each keeps its own fence and its own fate."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import asyncpg
import pytest

from synapse_worker.store import claims, runs
from synapse_worker.store.claims import ClaimRequest, OwnedRun
from synapse_worker.store.database import Database, array
from synapse_worker.store.runs import DeadLetter, Folded, RunStatus, RunWriter, StepRow
from tests.support.runs import view

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def owned(database: Database, count: int, *, worker: str = "w") -> list[OwnedRun]:
    """Own so many new runs, as a claimed batch does."""
    requests = [
        ClaimRequest(f"run_{number:03}", f"run_{number:03}", "q", b"x", 1, "o", None, "default", None, None)
        for number in range(count)
    ]
    taken = await claims.take(database, worker, requests)
    found = sorted((answer.run for answer in taken if answer.run is not None), key=lambda run: run.run_id)
    assert len(found) == count
    return found


async def checkpoint(
    writer: RunWriter, run: OwnedRun, *, step_id: str = "s", visit: int = 1, ordinal: int | None = None
) -> bool:
    row = StepRow(step_id, visit, ordinal or visit, {"k": visit}, {"step_id": step_id}, [], NOW, NOW)
    return await writer.checkpoint(
        run, row, cursor={"at": visit}, engine_version=1, current_step_id=None, definition=None, folded=None
    )


async def steps(database: Database) -> set[tuple[str, str, int]]:
    rows = await database.fetch("SELECT run_id, step_id, visit FROM run_steps")
    return {(row["run_id"], row["step_id"], row["visit"]) for row in rows}


async def test_what_many_runs_write_at_once_goes_in_few_calls(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await owned(database, 40)
    calls: list[int] = []
    send = database.fetch

    async def counted(statement: str, run_ids: str, *arguments: object) -> list[asyncpg.Record]:
        calls.append(run_ids.count(",") + 1)
        return await send(statement, run_ids, *arguments)

    monkeypatch.setattr(database, "fetch", counted)
    writer = RunWriter(database)
    assert await asyncio.gather(*(checkpoint(writer, run) for run in mine)) == [True] * 40
    monkeypatch.undo()
    assert len(await steps(database)) == 40
    assert sum(calls) == 40
    assert len(calls) < 10


async def test_what_is_large_goes_in_calls_of_its_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MOST_CHARACTERS_TOGETHER", 2_000)
    mine = await owned(database, 6)
    calls: list[int] = []
    send = database.fetch

    async def counted(statement: str, run_ids: str, *arguments: object) -> list[asyncpg.Record]:
        calls.append(run_ids.count(",") + 1)
        return await send(statement, run_ids, *arguments)

    monkeypatch.setattr(database, "fetch", counted)
    writer, large = RunWriter(database), {"text": "x" * 2_000}
    step = StepRow("s", 1, 1, {}, {}, [], NOW, NOW)
    assert await asyncio.gather(
        *(
            writer.checkpoint(
                run, step, cursor={}, engine_version=1, current_step_id=None, definition=dict(large), folded=None
            )
            for run in mine
        )
    )
    letter, nothing = DeadLetter("f", large, "bad", 1), Folded({}, [], 1)
    assert await asyncio.gather(
        *(
            writer.finish(run, RunStatus.FAILED, folded=nothing, active_seconds=0.0, error="bad", dead_letter=letter)
            for run in mine
        )
    )
    monkeypatch.undo()
    assert calls == [1] * 12


async def test_a_run_may_write_two_steps_at_once(database: Database) -> None:
    (run,) = await owned(database, 1)
    writer = RunWriter(database)
    both = [checkpoint(writer, run, step_id="left", ordinal=1), checkpoint(writer, run, step_id="right", ordinal=2)]
    assert await asyncio.gather(*both) == [True, True]
    assert await steps(database) == {("run_000", "left", 1), ("run_000", "right", 1)}


async def test_much_that_waits_goes_in_a_call_beside_and_no_run_is_in_both(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = await owned(database, 60)
    send = database.fetch
    first, second = asyncio.Event(), asyncio.Event()
    under_way: list[set[str]] = []

    async def watched(statement: str, run_ids: str, *arguments: object) -> list[asyncpg.Record]:
        ids = set(run_ids.strip("{}").replace('"', "").split(","))
        assert not any(ids & others for others in under_way)
        under_way.append(ids)
        try:
            if not first.is_set():
                first.set()
                await asyncio.wait_for(second.wait(), 10)
            elif len(under_way) == 2:
                second.set()
            return await send(statement, run_ids, *arguments)
        finally:
            under_way.remove(ids)

    monkeypatch.setattr(database, "fetch", watched)
    writer = RunWriter(database)
    begun = [asyncio.create_task(checkpoint(writer, run, step_id="a")) for run in mine[:10]]
    await first.wait()
    begun += [asyncio.create_task(checkpoint(writer, run, step_id="b", ordinal=2)) for run in reversed(mine)]
    assert all(await asyncio.gather(*begun))
    monkeypatch.undo()
    assert second.is_set()
    assert len(await steps(database)) == 70


async def test_rows_are_found_by_their_keys_before_anything_is_known_of_the_tables(database: Database) -> None:
    (run, *_) = await owned(database, 400)
    values = [run.run_id, run.claim, "completed", "{}", "[]", 0, None, run.job_id, 0.0, None, None, None, None]
    arguments = [array([value]) for value in values]
    plan = await database.fetch(f"EXPLAIN {runs._FINISH}", *arguments)
    plan += await database.fetch(f"EXPLAIN {runs._ENDED_BEFORE}", *arguments[:3])
    text = "\n".join(row[0] for row in plan)
    assert text.count("using orchestration_runs_pkey") == 2
    assert text.count("using job_ledger_pkey") == 1
    assert "Seq Scan" not in text


async def test_a_run_that_another_claim_took_is_told_so_and_its_neighbours_are_written(database: Database) -> None:
    mine = await owned(database, 5)
    stale = mine[2]._replace(claim=mine[2].claim - 1_000)
    writer = RunWriter(database)
    answers = await asyncio.gather(*(checkpoint(writer, run) for run in (*mine[:2], stale, *mine[3:])))
    assert answers == [True, True, False, True, True]
    assert ("run_002", "s", 1) not in await steps(database)


async def test_a_write_that_is_refused_for_what_it_holds_fails_alone(database: Database) -> None:
    mine = await owned(database, 4)
    writer = RunWriter(database)
    answers = await asyncio.gather(
        *(checkpoint(writer, run, step_id="x" * 300 if number == 1 else "s") for number, run in enumerate(mine)),
        return_exceptions=True,
    )
    assert [answer for answer in answers if answer is True] == [True] * 3
    assert isinstance(answers[1], asyncpg.StringDataRightTruncationError)
    assert len(await steps(database)) == 3


async def test_a_writer_cancelled_before_its_turn_writes_nothing(database: Database) -> None:
    mine = await owned(database, 2)
    writer = RunWriter(database)
    cancelled = asyncio.create_task(checkpoint(writer, mine[0]))
    kept = asyncio.create_task(checkpoint(writer, mine[1]))
    await asyncio.sleep(0)  # both have asked, nothing is sent yet
    cancelled.cancel()
    assert await kept
    assert await steps(database) == {("run_001", "s", 1)}


async def test_an_answer_that_got_lost_may_be_asked_for_again(database: Database) -> None:
    (run,) = await owned(database, 1)
    writer = RunWriter(database)
    assert await checkpoint(writer, run)
    assert await checkpoint(writer, run)
    assert await steps(database) == {("run_000", "s", 1)}
    nothing = Folded({"k": 1}, [], 1)
    letter = runs.DeadLetter("f", {}, "it failed", 1)
    for _ in range(2):
        assert await writer.finish(
            run, RunStatus.FAILED, folded=nothing, active_seconds=1.0, error="it failed", dead_letter=letter
        )
    assert (await view(database, "run_000")).status == "failed"
    assert len(await database.fetch("SELECT 1 FROM dead_letter_queue")) == 1
    assert not await checkpoint(writer, run, visit=2)  # it has ended


async def test_after_another_claim_the_old_owner_can_end_nothing(database: Database) -> None:
    (old,) = await owned(database, 1)
    (new,) = await owned(database, 1, worker="other")
    assert new.claim > old.claim
    writer = RunWriter(database)
    nothing = Folded({}, [], 0)
    assert not await checkpoint(writer, old)
    assert not await writer.finish(old, RunStatus.COMPLETED, folded=nothing, active_seconds=0.0)
    assert not await claims.give_back(database, old, active_seconds=0.0)
    assert (await view(database, "run_000")).status == "running"
    assert await writer.finish(new, RunStatus.COMPLETED, folded=nothing, active_seconds=0.0)
