"""The command line as a process of its own, to be waited for, interrupted and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = (sys.executable, "-m", "workflows.cli")
PATIENCE_S = 180.0


def heeding_ctrl_c() -> None:
    """Before a command starts: background jobs of a shell, as tests may be, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MUVA_HOME": str(home)}
    return subprocess.Popen(
        [*COMMAND, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=heeding_ctrl_c,
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < ends_at, "it never came that far"
        time.sleep(0.05)


def finish(process: subprocess.Popen[str], *, within_s: float = PATIENCE_S) -> str:
    output, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0, output
    return output
