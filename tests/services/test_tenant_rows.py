"""The rows of managed tenants in a real PostgreSQL: one statement for all of them, and nobody else's rows touched."""

from __future__ import annotations

from dataclasses import replace

from synapse_worker.store import tenants
from synapse_worker.store.database import Database
from synapse_worker.store.tenants import ManagedRow, RowChanges, Standing, Tenant

NOTHING = RowChanges(frozenset(), frozenset(), frozenset())


def row(tenant_id: str = "acme", uid: str = "uid-1") -> ManagedRow:
    """An ordinary row."""
    return ManagedRow(tenant_id, uid, None, max_concurrent_runs=100, max_queued_runs=1000, priority=0)


async def bring_to(database: Database, *wanted: ManagedRow, exclusive: bool = True) -> RowChanges:
    """Have exactly these rows wanted by the managers that are there."""
    return await tenants.bring_to(database, wanted, living=[each.managed_by for each in wanted], exclusive=exclusive)


async def versions(database: Database) -> list[tuple[str, ...]]:
    """What changes with each write to a row, a mere lock of it included."""
    rows = await database.fetch("SELECT tenant_id, xmin::text, xmax::text, ctid::text FROM tenants ORDER BY tenant_id")
    return [tuple(each) for each in rows]


async def made_by_hand(database: Database, tenant_id: str) -> None:
    """A row as a main instance's settings page writes it, which knows no column of ours."""
    await database.execute(
        "INSERT INTO tenants (tenant_id, name, max_concurrent_runs, max_queued_runs, priority, created_at)"
        " VALUES ($1, 'by hand', 1, 2, 3, now())",
        tenant_id,
    )


async def test_a_thousand_tenants_take_one_call_and_are_not_written_twice(database: Database) -> None:
    wanted = [row(f"tenant {number}", f"uid-{number}") for number in range(1000)]
    done = await bring_to(database, *wanted)
    assert done == RowChanges(frozenset(each.tenant_id for each in wanted), frozenset(), frozenset())
    before = await versions(database)
    assert len(before) == 1000
    assert await bring_to(database, *reversed(wanted)) == NOTHING
    assert await versions(database) == before


async def test_only_what_differs_is_written(database: Database) -> None:
    await bring_to(database, row("a", "1"), row("b", "2"), row("c", "3"))
    before = {tenant: rest for tenant, *rest in await versions(database)}
    changed = replace(row("b", "2"), name="Bee", max_concurrent_runs=5, max_queued_runs=7, priority=9)
    assert await bring_to(database, row("a", "1"), changed) == RowChanges(
        frozenset(), frozenset({"b"}), frozenset({"c"})
    )
    after = {tenant: rest for tenant, *rest in await versions(database)}
    assert after.keys() == {"a", "b"}
    assert after["a"] == before["a"]
    (stored,) = await database.fetch("SELECT * FROM tenants WHERE tenant_id = 'b'")
    assert {key: stored[key] for key in ("name", "max_concurrent_runs", "max_queued_runs", "priority")} == {
        "name": "Bee",
        "max_concurrent_runs": 5,
        "max_queued_runs": 7,
        "priority": 9,
    }
    assert (stored["managed_by"], stored["dedicated"], stored["deleting"]) == ("2", False, False)


async def test_the_workers_go_by_what_was_written(database: Database) -> None:
    await bring_to(database, replace(row("acme"), max_concurrent_runs=0, priority=4))
    assert await tenants.read_all(database) == {"acme": Tenant(0, 4)}


async def test_a_row_that_nobody_manages_is_neither_adopted_nor_deleted(database: Database) -> None:
    for tenant_id in ("wanted", "unwanted"):
        await made_by_hand(database, tenant_id)
    before = await versions(database)
    assert await bring_to(database, row("wanted")) == NOTHING
    assert await versions(database) == before
    assert await tenants.standing(database, ["wanted"]) == {"wanted": Standing(True, None, 0, 0)}


async def test_a_row_of_another_living_manager_is_left_alone(database: Database) -> None:
    await bring_to(database, row("a", "older"))
    before = await versions(database)
    done = await tenants.bring_to(database, [row("a", "younger")], living=["older", "younger"], exclusive=True)
    assert done == NOTHING
    assert await versions(database) == before


async def test_a_gone_managers_row_goes_over_to_who_wants_the_id_now(database: Database) -> None:
    await bring_to(database, row("a", "older"))
    assert await bring_to(database, row("a", "younger")) == RowChanges(frozenset(), frozenset({"a"}), frozenset())
    assert (await tenants.standing(database, ["a"]))["a"].managed_by == "younger"


async def test_who_is_not_alone_takes_nobody_for_gone(database: Database) -> None:
    await bring_to(database, row("a", "1"), row("b", "2"))
    before = await versions(database)
    assert await bring_to(database, row("a", "3"), exclusive=False) == NOTHING
    assert await versions(database) == before
    done = await bring_to(database, row("a", "1"), row("c", "4"), exclusive=False)
    assert done == RowChanges(frozenset({"c"}), frozenset(), frozenset())


async def test_the_last_tenant_takes_the_last_row_with_it(database: Database) -> None:
    await bring_to(database, row())
    assert (await bring_to(database)).deleted == {"acme"}
    assert await tenants.standing(database, ["acme"]) == {"acme": Standing(False, None, 0, 0)}


async def test_any_text_is_an_id(database: Database) -> None:
    ids = ["Größe: $(X) {b} / 'q'", "{}", " ", '"', "a,b", "NULL", "\\", "x" * 255]
    await bring_to(database, *(row(tenant_id, f"uid-{number}") for number, tenant_id in enumerate(ids)))
    found = await tenants.standing(database, ids)
    assert {tenant_id: each.managed_by for tenant_id, each in found.items()} == {
        tenant_id: f"uid-{number}" for number, tenant_id in enumerate(ids)
    }


async def test_runs_are_counted_by_tenant_and_status(database: Database) -> None:
    statuses = [("a", "queued"), ("a", "queued"), ("a", "running"), ("a", "completed"), ("a", "paused")]
    statuses += [("b", "running"), ("other", "queued")]
    for number, (tenant_id, status) in enumerate(statuses):
        await database.execute(
            "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
            " VALUES ($1, 'o', $2, $3, '{}', '[]')",
            f"run-{number}",
            tenant_id,
            status,
        )
    await bring_to(database, row("a", "1"))
    assert await tenants.standing(database, ["a", "b", "none"]) == {
        "a": Standing(True, "1", 2, 1),
        "b": Standing(False, None, 0, 1),
        "none": Standing(False, None, 0, 0),
    }


async def whole_scans(database: Database) -> int:
    """How often the table of runs was read from end to end."""
    await database.fetch("SELECT pg_stat_force_next_flush()")
    (row,) = await database.fetch("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'orchestration_runs'")
    return int(row["seq_scan"])


async def test_counting_does_not_read_the_finished_runs(database: Database) -> None:
    """Of which an installation has millions."""
    await database.execute(
        "INSERT INTO orchestration_runs (run_id, orchestration_id, tenant_id, status, shared_state, step_history)"
        " SELECT 'run-' || n, 'o', 'tenant-' || n % 500, 'completed', '{}', '[]' FROM generate_series(1, 20000) AS n"
    )
    await database.execute("ANALYZE orchestration_runs")
    before = await whole_scans(database)
    await tenants.standing(database, [f"tenant-{number}" for number in range(500)])
    assert await whole_scans(database) == before
