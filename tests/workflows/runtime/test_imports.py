"""What the processes of a cluster import: each pays for it when it starts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import workflows

ROOMS = ("runtime", "steps", "tuning")
"""Of the modules that have tasks and actors, or that Ray Train and Tune run in processes."""
MODULES = [
    f"workflows.{room}.{file.stem}"
    for room in ROOMS
    for file in sorted((Path(workflows.__path__[0]) / room).glob("*.py"))
]


def test_no_worker_imports_mlflow() -> None:
    """A second or two, and 80 MB; drivers alone write to it."""
    assert len(MODULES) > 30
    assert imported(MODULES, "mlflow", "ray") == [False, True]


def test_processes_that_only_coordinate_import_no_pytorch() -> None:
    """Actors that pass messages on or share steps, and the controllers of trials, start fast."""
    light = ("runtime.messages", "runtime.claims", "steps.mask_pictures", "tuning.driver")
    assert imported([f"workflows.{module}" for module in light], "torch") == [False]


def imported(modules: Sequence[str], *libraries: str) -> list[bool]:
    """Whether a process that imports the modules has each of the libraries."""
    code = "import sys; " + "; ".join(f"import {module}" for module in modules)
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*(one in sys.modules for one in {libraries!r}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [word == "True" for word in found.stdout.split()]
