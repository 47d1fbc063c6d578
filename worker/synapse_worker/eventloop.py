"""How a worker process runs its loop: on uvloop, and with the garbage collector out of the way.

Half of a short step's cost is the event loop's; uvloop is written in C. The collector's full runs walk through all
modules, which never become garbage, and its small ones come every few jobs: together a tenth of a job's cost.
"""

from __future__ import annotations

import gc
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")

_NEW_OBJECTS = 20_000
"""Objects made before the collector looks at the young ones (Python's default: 700); a job makes a few hundred."""


def run(main: Coroutine[None, None, T]) -> T:
    """Run `main` to its end, as a worker process runs."""
    import uvloop

    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    return uvloop.run(main)
