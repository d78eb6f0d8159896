"""What the processes of a cluster import: each pays for it when it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import workflows

WORKERS = sorted(
    {
        file.stem
        for file in Path(workflows.__path__[0]).glob("*.py")
        if "ray.remote" in file.read_text()
    }
    | {"encoder", "judging", "trial", "tuning"}
)
"""Modules with tasks and actors, and those that Ray Train and Tune run in processes."""


def test_no_worker_imports_mlflow() -> None:
    """A second or two, and 80 MB; drivers alone write to it."""
    assert {"data", "embedding", "expert_pool", "ranking", "prompts"} <= set(WORKERS)
    code = "import sys; " + "; ".join(f"import workflows.{module}" for module in WORKERS)
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('mlflow' in sys.modules, 'ray' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["False", "True"]
