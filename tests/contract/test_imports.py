"""What a start need not load: large libraries that only some commands use, and whose import would delay every pod."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEFT_OUT = {
    "synapse_worker.cli": {"fastapi", "pydantic_monty", "sqlalchemy", "uvicorn"},
    "synapse_worker.lifecycle": {"sqlalchemy"},
    "synapse_operator.__main__": {"fastapi", "sqlalchemy", "uvicorn"},
}


@pytest.mark.parametrize("module", LEFT_OUT)
def test_a_start_loads_no_library_that_it_does_not_use(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert LEFT_OUT[module] & set(done.stdout.split()) == set()
