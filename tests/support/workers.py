"""Worker processes and definitions for tests: the real command line, as a user or a pod would start it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from synapse_worker.contract import BY_NAME
from tests.support.servers import free_port, wait_until

SLOW_CODE = "total = 0\nfor number in range({loops}):\n    total += number\nresult = total\n"
LOOPS_PER_SECOND = 6_000_000
"""What the sandbox does here in a second, roughly; tests that use it allow for three times as long."""


class WorkerProcess:
    """`synapse-worker run` as a process of its own."""

    COMMAND: Sequence[str] = (sys.executable, "-m", "synapse_worker", "run")

    def __init__(self, redis_url: str, postgres_url: str, **extra: str) -> None:
        self.port = free_port()
        self.environment = environment(redis_url, postgres_url, WORKER_HEALTH_PORT=str(self.port), **extra)
        self._log = tempfile.NamedTemporaryFile(prefix="synapse-worker-", suffix=".log", delete=False)  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> WorkerProcess:
        """Start it; does not wait until it is ready."""
        self._process = subprocess.Popen(self.COMMAND, env=self.environment, stdout=self._log, stderr=self._log)
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has been started and runs no more."""
        return self._process is not None and self._process.poll() is not None

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def get(self, path: str) -> tuple[int, str]:
        """Ask its health port; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def wait_ready(self) -> WorkerProcess:
        """Wait until /readyz says so and it is started."""

        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log
            return self.get("/health")[0] == 200 and json.loads(self.get("/health")[1])["status"] == "ok"

        wait_until("the worker is ready", ready)
        return self

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and reap it."""
        self.signal(signal.SIGKILL)
        self.wait()

    def wait(self, seconds: float = 30) -> int:
        """Wait until it has ended; returns the exit code."""
        assert self._process is not None
        return self._process.wait(timeout=seconds)

    def close(self) -> None:
        """End it if it still runs and remove its log."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self._log.close()
        Path(self._log.name).unlink(missing_ok=True)


StartWorker = Callable[..., WorkerProcess]
"""The fixture `start_worker`: starts a worker with the variables given by name."""


def environment(redis_url: str, postgres_url: str, **extra: str) -> dict[str, str]:
    """Return the environment of a worker: ours without any of its variables, and those given."""
    kept = {name: value for name, value in os.environ.items() if name not in BY_NAME}
    given = {"REDIS_URL": redis_url, "SCALE_POSTGRES_URL": postgres_url, "LOG_FORMAT": "console"}
    return {**kept, **given, "SYNAPSE_DATA_DIR": _data_dir(), **extra}


@functools.cache
def _data_dir() -> str:
    """Return a folder for vault files and run logs of all workers of this process, removed with it."""
    folder = tempfile.mkdtemp(prefix="synapse-data-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def command(redis_url: str, postgres_url: str, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a `synapse-worker` command to its end, with the variables given by name."""
    return subprocess.run(
        [sys.executable, "-m", "synapse_worker", *words],
        env=environment(redis_url, postgres_url, **extra),
        check=False,
        text=True,
        capture_output=True,
        timeout=120,
    )


def chain(orchestration_id: str, steps: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return a definition whose steps follow each other in the order given."""
    ids = [str(step["id"]) for step in steps]
    following: list[str | None] = [*ids[1:], None]
    return {
        "id": orchestration_id,
        "name": orchestration_id,
        "entry_step_id": ids[0],
        "max_total_turns": 10_000,
        "steps": [{"next_step_id": after, **step} for step, after in zip(steps, following, strict=True)],
    }


def slow_steps(count: int, seconds: float) -> list[dict[str, object]]:
    """Return steps that each keep a processor busy for about `seconds`."""
    code = SLOW_CODE.format(loops=int(LOOPS_PER_SECOND * seconds))
    return [
        {"id": f"s{number:02}", "type": "transform", "transform_code": code, "output_key": f"k{number}"}
        for number in range(count)
    ]


PRINT_IF_PRINT: dict[str, Any] = {
    "id": "three",
    "name": "Three steps",
    "entry_step_id": "hello",
    "steps": [
        {
            "id": "hello",
            "type": "print",
            "print_content": "hello {state.user_input}",
            "output_key": "a",
            "next_step_id": "if",
        },
        {"id": "if", "type": "if_else", "if_condition": "state.user_input != ''", "if_true_step_id": "end"},
        {"id": "end", "type": "print", "print_content": "bye", "output_key": "b"},
    ],
}
"""The three steps that figures are measured with."""
