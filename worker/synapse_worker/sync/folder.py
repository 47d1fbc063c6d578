"""The files of a folder as sources: of a main instance, or of anybody's."""

from __future__ import annotations

from pathlib import Path

from synapse_worker.errors import ConfigurationError
from synapse_worker.sync.documents import MAX_BYTES, SUFFIXES, Problem, Source


def read_folder(folder: Path) -> tuple[list[Source], list[Problem]]:
    """Return the definition files of a folder, and those that cannot be read.

    Model keys may be in any of them, and all is shown: whoever syncs a folder reads it anyway.

    Raises:
        ConfigurationError: the folder cannot be read, or holds no such file.
    """
    sources: list[Source] = []
    problems: list[Problem] = []
    for path in _files(folder):
        try:
            if path.stat().st_size > MAX_BYTES:
                problems.append(Problem("", path.name, None, f"It is larger than {MAX_BYTES} bytes."))
                continue
            data = path.read_bytes()
        except OSError as error:
            problems.append(Problem("", path.name, None, f"It cannot be read: {error.strerror}."))
            continue
        sources.append(Source("", path.name, decoded(data), takes_secrets=True, shown=True))
    return sources, problems


def decoded(data: bytes) -> str | None:
    """Return bytes as text, None = they are none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _files(folder: Path) -> list[Path]:
    try:
        found = sorted(
            path
            for path in folder.iterdir()
            # A mounted ConfigMap keeps its own bookkeeping in names that begin with two dots.
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("..") and path.is_file()
        )
    except OSError as error:
        raise ConfigurationError(f"the folder {folder} cannot be read: {error.strerror}.") from None
    if not found:
        raise ConfigurationError(f"the folder {folder} holds no .json, .yaml or .yml file.")
    return found
