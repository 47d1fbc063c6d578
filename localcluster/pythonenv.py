"""A Python environment of our own in the cache: pip to fetch wheels, and the project's build backend.

The developer's environment is left alone, and the machine's Python often has no
pip. It is named after what is in it.
"""

import importlib.util
import os
import sys
import tomllib
from pathlib import Path

from localcluster import machine
from localcluster.addresses import digest
from localcluster.commands import run
from localcluster.places import REPOSITORY, cache_root, lock
from localcluster.progress import step
from localcluster.versions import PIP


def ensure() -> Path:
    """The environment's interpreter."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = [PIP, *project["build-system"]["requires"]]
    place = cache_root() / f"python-{digest(' '.join([sys.executable, *packages]))[:12]}"
    python = place / "bin" / "python"
    finished = place / "finished"
    with lock(cache_root() / "python.lock", "another command is preparing pip"):
        if finished.exists():
            return python
        if importlib.util.find_spec("ensurepip") is None:
            machine.install(["python3-venv"])
        with step(f"Python environment with {', '.join(packages)}"):
            # Made in place, since an environment cannot be moved; a half-made one is made again.
            run([sys.executable, "-m", "venv", "--clear", str(place)])
            run(
                [str(python), "-m", "pip", "install", "--quiet", *packages],
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            )
        finished.touch()
    return python
