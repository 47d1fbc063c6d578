"""What the README promises of its first command: the demo shows what it says, and a cluster leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.kube import ROOT, kubectl, localcluster

ANSWERS = (
    "ada@example.com: We are on it: Everything is down!. An engineer was paged (score 10).",
    "grace@example.com: Thank you, we opened a ticket for: Error while exporting (score 2).",
    "alan@example.com: The documentation of Synapse has an answer to: How do I add a tenant?.",
)


TOLD = (
    "a model server, which stands in for a provider of models",
    "$ curl $API/api/v2/orchestrations/incident-update/run -H",
    "$ curl -N $API/api/v2/orchestrations/runs/run_",
    "Look into it from two sides: 2 branches side by side",
    "Read the logs: calls error_log(service='checkout')",
    "Put both together: 2 results are one",
    "Review it: sends it back to 'Write the update'",
    "Review it: goes on to 'Ask the incident manager'",
    "Ask the incident manager: the run waits for a human",
    "A person answers it, here or anywhere, with this command, which is given now:",
    " -- synapse-worker runs resume run_",
    "was paused, queued as job resume_",
    "completed; 10 of 11 steps were on its way",
)
"""What is told of the bundle's run, in this order."""
SHOWN = (
    "What the run says in the end (3241 tokens of models):",
    "Published, approved by Ada: Between 14:05 and 14:33 UTC",
    *ANSWERS,
    "POST /api/v2/orchestrations/{orchestration_id}/run, HTTP 202",
    "run incident-update, paused",
    "queue wait, synapse:orchestrations:default",
    "model small-model, at openai_compatible, 230 tokens",
    "run incident-update, completed",
    "webhook",
    'synapse_runs_enqueued_total{orch_id="incident-update"}',
    'synapse_runs_completed_total{status="completed"}',
    "synapsescale.scale.synapseorch.com/quickstart   True",
    "deployment.apps/",
    "pod/",
    "make demo-down",
)
"""What is there at the end, in this order."""


def assert_in_order(parts: Sequence[str], text: str) -> None:
    """Each part is in the text, behind the one before."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} does not come in time in:\n{text}"
        at = found + len(part)


@pytest.mark.timeout(300)
def test_the_demo_follows_a_run_answers_it_and_shows_trace_and_metrics(operator: None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "localcluster.demo"], cwd=ROOT, check=False, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_in_order(TOLD, done.stderr)
    assert_in_order(SHOWN, done.stdout)
    keys = [*("-n", "synapse-quickstart", "exec", _worker(), "--"), *("synapse-worker", "keys", "list")]
    assert " demo " not in kubectl(*keys), "the demo's key is revoked"
    kubectl("delete", "namespace", "synapse-quickstart", "--wait=false")


def _worker() -> str:
    label = "scale.synapseorch.com/role=worker"
    return kubectl("get", "deploy", "-n", "synapse-quickstart", "-l", label, "-o", "name").split()[0]


def _traces(name: str) -> dict[str, list[str]]:
    """What a cluster of that name may leave on the machine, by where it would be seen."""

    def lines(*command: str) -> list[str]:
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines()

    state = f"/{name}/"
    processes = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it has ended meanwhile
                continue
            if state in words:
                processes.append(words)
    return {
        "processes": processes,
        "mounts": [line for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines() if state in line],
        "links": [line.split(":")[1].split("@")[0].strip() for line in lines("ip", "-o", "link")],
        "routes": lines("ip", "route"),
    }


@pytest.fixture
def second_cluster() -> Iterator[str]:
    """The name of a cluster that nobody has; gone afterwards."""
    name = f"e2e-{os.getpid()}"
    yield name
    localcluster("--name", name, "down", check=False)


@pytest.mark.timeout(180)
def test_a_cluster_beside_ours_leaves_nothing_behind(second_cluster: str) -> None:
    before = _traces(second_cluster)
    localcluster("--name", second_cluster, "up")
    during = _traces(second_cluster)
    assert during["processes"]
    assert set(during["links"]) > set(before["links"])
    assert "node" in localcluster("--name", second_cluster, "kubectl", "get", "nodes", "-o", "name")
    localcluster("--name", second_cluster, "down")
    assert _traces(second_cluster) == before
