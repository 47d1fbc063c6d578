"""`make test`: prepare what is missing, run the layers in order, say in words which ran.

A layer that this machine cannot run is named with the reason; with CI=true that is a failure. Layers named on the
command line run alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


def pytest(*folders: str) -> list[str]:
    """The command that runs the tests of folders."""
    return [sys.executable, "-m", "pytest", "-q", *folders]


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

LAYERS = (
    Layer("lint", LINT, nothing),
    Layer("unit", [pytest("tests/unit")], nothing),
    Layer("contract", [pytest("tests/contract")], nothing),
    Layer("services", [pytest("tests/services", "tests/page")], servers),
    Layer("control plane", [pytest("tests/controlplane")], control_plane),
    Layer("cluster", [pytest("tests/e2e")], cluster),
)


def run(layer: Layer) -> str:
    """Run one layer; returns how it went, in words."""
    began = time.monotonic()
    reason = layer.prepare()
    if reason:
        return f"NOT RUN ({reason})"
    codes = [subprocess.run(command, cwd=ROOT, check=False).returncode for command in layer.commands]
    seconds = f"{time.monotonic() - began:.0f} s"
    return f"FAILED in {seconds}" if any(codes) else f"passed in {seconds}"


def main(names: Sequence[str]) -> int:
    """Run the named layers, or all; returns the exit code."""
    chosen = [layer for layer in LAYERS if not names or layer.name in names]
    results: list[tuple[Layer, str]] = []
    was_up = cluster_is_up()
    try:
        for layer in chosen:
            say(f"layer {layer.name}")
            results.append((layer, run(layer)))
    finally:
        if not was_up and cluster_is_up():
            _localcluster("down")
    say("layers: " + "; ".join(f"{layer.name} {result}" for layer, result in results))
    failed = [result for _, result in results if result.startswith("FAILED")]
    left_out = [result for _, result in results if result.startswith("NOT RUN")]
    return 1 if failed or (left_out and os.environ.get("CI") == "true") else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
