"""`python -m synapse_worker` is the command `synapse-worker`.

The first thing it does is to take SIGTERM: the kernel ignores the default action of a signal for the first process of
a container, so a pod that is deleted while Python still imports would stay until the end of its grace period.
`lifecycle` takes the signal over once there is something to drain.
"""

import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


signal.signal(signal.SIGTERM, _end)


def main() -> None:
    """Run the command line."""
    from synapse_worker.cli import main as command

    command()


if __name__ == "__main__":
    main()
