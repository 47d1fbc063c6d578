"""The demo's words for events and metrics."""

from localcluster.demo.lines import Progress, counted, largest, samples, timed, wrapped

METRICS = """\
# HELP synapse_runs_completed_total runs that ended here
# TYPE synapse_runs_completed_total counter
synapse_runs_completed_total{status="completed",tenant_id="default"} 3.0
synapse_runs_completed_total{status="failed",tenant_id="default"} 1.0
synapse_runs_completed_total{status="completed",tenant_id="acme"} 2.0
synapse_runs_completed_created{status="completed",tenant_id="acme"} 1.7e+09
synapse_step_duration_seconds_count{step_type="agent"} 4.0
synapse_step_duration_seconds_sum{step_type="agent"} 1.0
synapse_step_duration_seconds_count{step_type="print"} 0.0
synapse_step_duration_seconds_sum{step_type="print"} 0.0
synapse_active_workers 2.0
synapse_active_workers 1.0
"""


def squeezed(lines: object) -> list[str]:
    assert hasattr(lines, "__iter__")
    return [" ".join(line.split()) for line in lines]


def test_series_are_summed_over_what_is_not_asked_for() -> None:
    read = samples(METRICS)
    assert squeezed(counted(read, "synapse_runs_completed_total", "status")) == [
        'synapse_runs_completed_total{status="completed"} 5',
        'synapse_runs_completed_total{status="failed"} 1',
    ]
    assert squeezed(counted(read, "synapse_runs_completed_total")) == ["synapse_runs_completed_total 6"]


def test_a_histogram_is_its_number_and_mean_where_there_is_one() -> None:
    shown = squeezed(timed(samples(METRICS), "synapse_step_duration_seconds", "step_type"))
    assert shown == ['synapse_step_duration_seconds{step_type="agent"} 4, 250 ms each']


def test_what_all_tell_alike_is_told_once() -> None:
    assert squeezed(largest(samples(METRICS), "synapse_active_workers")) == ["synapse_active_workers 2"]
    assert squeezed(largest([], "synapse_active_workers")) == []


def test_a_line_breaks_between_words_below_its_text() -> None:
    assert list(wrapped("short", 4)) == ["short"]
    first, *rest = wrapped("  1.0 s " + "word " * 40, 8)
    assert len(first) <= 110
    assert all(line.startswith(" " * 8 + "word") and len(line) <= 110 for line in rest)
    assert list(wrapped("x" * 300, 8)) == ["x" * 300]


def test_a_step_that_was_done_before_is_sent_back_to() -> None:
    progress = Progress({"a": "Draft", "b": "Review"})
    shown: list[str] = []
    decided = {"type": "routing_decision", "orch_step_id": "b", "target_step_id": "a", "reasoning": "Too short."}
    for entry_id, event in (
        ("1000-0", {"type": "final", "orch_step_id": "a", "response": "Text"}),
        ("1000-1", {"type": "step_complete", "orch_step_id": "a", "duration_seconds": 0.01}),
        ("2500-0", decided),
        ("2500-1", {"type": "step_complete", "orch_step_id": "b", "duration_seconds": 1.5}),
        ("2600-0", {"type": "orchestration_error", "error": "It broke."}),
        ("2700-0", {"type": "an_event_of_tomorrow"}),
    ):
        shown += progress.lines(entry_id, event)
    assert shown == [
        "   0.0 s [##########          ] Draft: Text",
        "   1.5 s [####################] Review: sends it back to 'Draft': Too short. (1.5 s)",
        "   1.6 s [####################] It broke.",
    ]
