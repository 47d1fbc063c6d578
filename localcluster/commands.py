"""Running other programs: one way to call them and one way to say that they failed.

Output is captured and only its end is shown when something went wrong; programs
that talk for minutes are read line by line so that a step can show progress.
"""

import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localcluster.errors import ClusterError

# Lines of a failed program's output worth repeating.
TAIL_LINES = 15
# Seconds between two looks at something that is being waited for.
POLL_INTERVAL = 0.1


def tail(output: str) -> str:
    return "\n".join(output.strip().splitlines()[-TAIL_LINES:])


def failure(argv: Sequence[str], code: int, output: str) -> ClusterError:
    return ClusterError(f"`{shlex.join(argv)}` failed with exit code {code}:\n{tail(output)}")


def run(
    argv: Sequence[str],
    *,
    given: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Standard output of a program that must succeed."""
    try:
        done = subprocess.run(argv, input=given, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ClusterError(f"`{argv[0]}` is not installed, install it and try again.") from None
    if done.returncode:
        raise failure(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout


def succeeds(argv: Sequence[str]) -> bool:
    """Whether a program exists and exits with 0; for questions, not for work."""
    try:
        return subprocess.run(argv, capture_output=True, check=False, stdin=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def follow(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Runs a program that must succeed and hands on each line it prints, on either stream."""
    seen: list[str] = []
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            for line in process.stdout:
                seen.append(line)
                on_line(line.rstrip("\n"))
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise failure(argv, process.returncode, "".join(seen))


def wait_for(what: str, check: Callable[[], bool], *, seconds: float) -> None:
    """Looks until `check` is true; a problem that names `what` once the time is over."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what} did not happen within {seconds:.0f} s.")
        time.sleep(POLL_INTERVAL)
