"""Writing generated files, and saying so when the committed ones are out of step.

The generators (`crd`, `reference`) render everything in memory; this is the command line that they share, so that
what checks a file is what writes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def out_of_step(files: Mapping[str, str], folder: Path) -> list[str]:
    """Return the names of the files in `folder` that are missing or differ from `files` (name -> content)."""
    return [
        name
        for name, content in sorted(files.items())
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != content
    ]


def command_line(module: str, files: Mapping[str, str], arguments: Sequence[str] | None = None) -> int:
    """Run `python -m <module> --out DIR | --check DIR` and return the exit code.

    Args:
        module: the generator, as the message names it.
        files: file name -> content.
        arguments: default: the process's own.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--out", metavar="DIR", type=Path, help="write the files into DIR")
    either.add_argument(
        "--check", metavar="DIR", type=Path, help="fail when the files in DIR are not what would be written"
    )
    chosen = parser.parse_args(arguments)
    if chosen.out is not None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (chosen.out / name).write_text(content, encoding="utf-8")
        return 0
    stale = out_of_step(files, chosen.check)
    for name in stale:
        sys.stderr.write(f"{chosen.check / name} is out of step; run: python -m {module} --out {chosen.check}\n")
    return 1 if stale else 0
