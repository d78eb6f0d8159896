"""What the processes of a cluster import: each pays for it when it starts."""

from __future__ import annotations

import subprocess
import sys

WORKERS = ("data", "ground", "embedding", "ranking", "prompts", "encoder", "judging", "trial")
"""Modules with tasks and actors, and with what these call."""


def test_no_worker_imports_mlflow() -> None:
    """A second or two, and 80 MB; drivers alone write to it."""
    code = "import sys; " + "; ".join(f"import workflows.{module}" for module in WORKERS)
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('mlflow' in sys.modules, 'ray' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False", "True"]
