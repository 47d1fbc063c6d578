"""The worker's series: names that dashboards know, and a bound on what a label may say."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from synapse_worker.telemetry import ApiMetrics, Metrics

UPSTREAMS = {
    "synapse_runs_completed": ("tenant_id", "status"),
    "synapse_run_duration_seconds": ("tenant_id",),
    "synapse_step_duration_seconds": ("step_type",),
    "synapse_queue_depth": ("queue_name",),
    "synapse_active_workers": (),
    "synapse_active_runs": (),
}
"""Series of a main instance's dashboards that a worker of this release can observe, and their labels."""


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_upstreams_series_have_upstreams_names_and_labels() -> None:
    metrics = Metrics()
    metrics.runs_completed("acme", "completed")
    metrics.run_duration("acme", 1.0)
    metrics.step_duration("print", 0.1)
    metrics.queues({"synapse:orchestrations:default": (3, 1, 1.5)})
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        if family.name in UPSTREAMS:
            found[family.name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    assert found == {name: set(labels) for name, labels in UPSTREAMS.items()}


def test_beyond_two_hundred_values_a_label_says_other() -> None:
    metrics = Metrics()
    for number in range(205):
        metrics.runs_completed(f"tenant-{number}", "completed")
    counted = {key: value for key, value in samples(metrics).items() if key[0] == "synapse_runs_completed_total"}
    assert len(counted) == 201
    other = (("status", "completed"), ("tenant_id", "other"))
    assert counted["synapse_runs_completed_total", other] == 5


def test_queues_beyond_the_bound_are_added_up() -> None:
    metrics = Metrics()
    for _ in range(2):  # a gauge is set anew each time
        metrics.queues({f"q{number}": (2, 1, float(number)) for number in range(205)})
    found = samples(metrics)
    other = (("queue_name", "other"),)
    assert found["synapse_queue_depth", other] == 10
    assert found["synapse_parked_jobs", other] == 5
    assert found["synapse_oldest_job_seconds", other] == 204
    assert found["synapse_queue_depth", (("queue_name", "q0"),)] == 2


def test_methods_that_nobody_knows_are_one_series() -> None:
    metrics = ApiMetrics()
    for method in ("GET", *(f"X{number}" for number in range(5))):
        metrics.answered(method, "unknown", 401, 0.1)
    counted = {
        sample.labels["method"]: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == "synapse_api_request_seconds_count"
    }
    assert counted == {"GET": 1, "other": 5}
