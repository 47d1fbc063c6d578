"""What an API process costs before its first request."""

from __future__ import annotations

import subprocess
import sys


def test_the_api_starts_without_what_runs_jobs() -> None:
    code = "import sys, synapse_worker.api.process; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "fastapi" in loaded
    assert not {"pydantic_monty", "pydantic_ai", "boto3", "openai", "mcp", "synapse_worker.jobs"} & set(loaded)
