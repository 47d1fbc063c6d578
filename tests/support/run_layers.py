"""`make test`: prepare what is missing, run the layers in order, say in words which ran.

A layer that this machine cannot run is named with the reason; with CI=true that is a failure. Layers named on the
command line run alone. Layers of one stage run beside each other, each in a process of its own; what the first says is
shown at once, what the others say behind it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[2]
CANNOT_RUN_A_NODE = 3
"""The exit code by which localcluster says so."""

_SERVERS = {
    "redis-server": "redis-server",
    "pg_isready": "postgresql-client",
    "pgbouncer": "pgbouncer",
    "openssl": "openssl",
    "setpriv": "util-linux",
    "faketime": "faketime",
    "prometheus": "prometheus",
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


def pytest(*words: str) -> list[str]:
    """The command that runs the tests of folders."""
    return [sys.executable, "-m", "pytest", "-q", *words]


@dataclass(frozen=True, slots=True)
class Layer:
    """Commands that must all succeed, and what has to be there first; `prepare` returns why they cannot run, or ""."""

    name: str
    commands: Sequence[Sequence[str]]
    prepare: Callable[[], str]


def say(text: str) -> None:
    """Print a line of progress, at once."""
    print(f"== {text}", flush=True)


def nothing() -> str:
    return ""


def servers() -> str:
    """Install Redis and PostgreSQL from Debian where they are missing."""
    missing = [package for name, package in _SERVERS.items() if shutil.which(name, path=_PATH) is None]
    if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        missing.append("postgresql")
    if not missing:
        return ""
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"it needs {', '.join(missing)}; run: sudo {' '.join(command)}"
    say(f"installing {', '.join(missing)}")
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "update", "-q"], check=True, **quiet)  # type: ignore[call-overload]
    # Tests start servers of their own; the package's would only hold the ports.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        subprocess.run(command, check=True, **quiet)  # type: ignore[call-overload]
    finally:
        if ours:
            policy.unlink()
    return ""


def _localcluster(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "localcluster", *words], cwd=ROOT, check=False, stdout=subprocess.DEVNULL
    )
    if done.returncode == 0:
        return ""
    reason = f"`python3 -m localcluster {' '.join(words)}` says why above"
    if done.returncode == CANNOT_RUN_A_NODE:
        return reason
    raise SystemExit(f"{reason}; exit code {done.returncode}")


def cluster_is_up() -> bool:
    """Whether the local cluster runs; one that was up before the tests stays up."""
    done = subprocess.run([sys.executable, "-m", "localcluster", "status"], cwd=ROOT, check=False, capture_output=True)
    return done.returncode == 0


def control_plane() -> str:
    return servers() or _localcluster("tools")


def cluster() -> str:
    return servers() or _localcluster("images") or _localcluster("up") or _localcluster("load-image")


LINT = (
    [sys.executable, "-m", "ruff", "check", "-q", "."],
    [sys.executable, "-m", "ruff", "format", "-q", "--check", "."],
    [sys.executable, "-m", "mypy"],
    [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
)

_ALONE = "tests/controlplane/alone"
"""Tests that start and end operators of their own, or the API server: on a control plane of their own."""

_ENGINE = "tests/unit/worker/engine"
"""Half of the unit tests' time: in a process of their own, beside the others."""

_HALVES = ("-n", "2", "--dist", "worksteal")
"""The services' tests take longer than all others and mostly wait: two processes share them, each with its servers."""

STAGES = (
    (
        Layer("engine", [pytest(_ENGINE)], nothing),
        Layer("unit", [pytest("tests/unit", f"--ignore={_ENGINE}")], nothing),
        Layer("lint", LINT, nothing),
        Layer("contract", [pytest("tests/contract")], nothing),
    ),
    (
        Layer("control plane", [pytest("tests/controlplane", f"--ignore={_ALONE}")], control_plane),
        Layer("services", [pytest(*_HALVES, "tests/services", "tests/page")], servers),
        Layer("faults", [pytest("tests/faults")], servers),
        Layer("operator", [pytest(_ALONE)], control_plane),
    ),
    (Layer("cluster", [pytest("tests/e2e")], cluster),),
)
"""Layers in order; those of one stage run beside each other, `AT_ONCE` at a time, the longest first."""

AT_ONCE = 3
"""Enough to keep two cores busy."""

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""What commands run with. Without kept bytecode each of their processes would compile all tests anew."""


def run(layer: Layer, output: BinaryIO | None) -> str:
    """Run one layer that is prepared, with its output to a file or (None) to ours; returns how it went, in words."""
    began = time.monotonic()
    codes = [
        subprocess.run(command, cwd=ROOT, check=False, env=ENVIRONMENT, stdout=output, stderr=output).returncode
        for command in layer.commands
    ]
    seconds = f"{time.monotonic() - began:.0f} s"
    return f"FAILED in {seconds}" if any(codes) else f"passed in {seconds}"


def run_stage(layers: Sequence[Layer]) -> dict[str, str]:
    """Prepare layers one after the other and run them beside each other; returns how each went, in words."""
    say("layer " + ", beside it ".join(layer.name for layer in layers))
    reasons = {layer.name: layer.prepare() for layer in layers}
    able = [layer for layer in layers if not reasons[layer.name]]
    results = {name: f"NOT RUN ({reason})" for name, reason in reasons.items()}
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) if place else None for place in range(len(able))]
        running = [pool.submit(run, layer, output) for layer, output in zip(able, outputs, strict=True)]
        for layer, output, ended in zip(able, outputs, running, strict=True):
            results[layer.name] = ended.result()
            if output is not None:
                say(f"output of layer {layer.name}")
                output.seek(0)
                shutil.copyfileobj(output, sys.stdout.buffer)
                sys.stdout.buffer.flush()
    return results


def main(names: Sequence[str]) -> int:
    """Run the named layers, or all; returns the exit code."""
    results: dict[str, str] = {}
    was_up = cluster_is_up()
    began = time.monotonic()
    try:
        for stage in STAGES:
            chosen = [layer for layer in stage if not names or layer.name in names]
            if chosen:
                results |= run_stage(chosen)
    finally:
        if not was_up and cluster_is_up():
            _localcluster("down")
    told = "; ".join(f"{name} {result}" for name, result in results.items())
    say(f"layers: {told}; together {time.monotonic() - began:.0f} s")
    failed = [result for result in results.values() if result.startswith("FAILED")]
    left_out = [result for result in results.values() if result.startswith("NOT RUN")]
    return 1 if failed or (left_out and os.environ.get("CI") == "true") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
