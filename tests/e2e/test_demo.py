"""What the README promises in its first command: the demo runs, a second time in under a minute, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kube import ROOT, kubectl, localcluster

ANSWERS = (
    "ada@example.com: We are on it: Everything is down!. An engineer was paged (score 10).",
    "grace@example.com: Thank you, we opened a ticket for: Error while exporting (score 2).",
    "alan@example.com: The documentation of Synapse has an answer to: How do I add a tenant?.",
)


@pytest.mark.timeout(300)
def test_the_demo_ends_with_three_answers_and_the_resources_on_the_screen(operator: None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "localcluster.demo"], cwd=ROOT, check=False, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for answer in ANSWERS:
        assert answer in done.stdout
    for shown in ("synapsescale.scale.synapseorch.com/quickstart   True", "deployment.apps/", "pod/", "completed"):
        assert shown in done.stdout
    kubectl("delete", "namespace", "synapse-quickstart", "--wait=false")


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
