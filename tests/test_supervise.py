"""An interrupted test run leaves nothing running, whatever sessions its processes have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

PATIENCE_S = 60.0
RUN = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
write = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid()))"
daemon = write + "; time.sleep(600)"
{stubborn}
# As Ray's daemons: in a session of its own, and its parent has ended.
starter = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]], start_new_session=True)"
subprocess.run([sys.executable, "-c", starter, daemon, str(folder / "daemon")])
(folder / "run").write_text(str(os.getpid()))
{then}
"""
STUBBORN = """
daemon = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + daemon
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
"""


def supervised(folder: Path, script: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.supervise", sys.executable, "-c", script, str(folder)]
    return subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[1])


def wait_for(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.02)


def pid_in(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text())
    return int(file.read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_daemon(tmp_path: Path, number: signal.Signals) -> None:
    script = RUN.format(stubborn="", then="time.sleep(600)")
    process = supervised(tmp_path, script)
    pids = [pid_in(tmp_path / name) for name in ("daemon", "run")]
    os.killpg(process.pid, number)  # as a terminal does to make and all below it
    assert process.wait(PATIENCE_S) == 1 or process.returncode == 128 + signal.SIGINT
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_that_heeds_no_signal_is_killed_with_its_daemon(tmp_path: Path) -> None:
    from tests import supervise

    script = RUN.format(stubborn=STUBBORN, then="time.sleep(600)")
    patched = f"import sys; from tests import supervise; supervise.CLEAN_UP_S = 1; supervise.TERMINATE_S = 0.2; sys.exit(supervise.main({[sys.executable, '-c', script, str(tmp_path)]!r}))"
    process = subprocess.Popen([sys.executable, "-c", patched], cwd=Path(__file__).parents[1])
    pids = [pid_in(tmp_path / name) for name in ("daemon", "run")]
    assert supervise.CLEAN_UP_S > 1
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_that_ends_by_itself_gives_its_code_and_leaves_no_daemon(tmp_path: Path) -> None:
    process = supervised(tmp_path, RUN.format(stubborn="", then="sys.exit(7)"))
    assert process.wait(PATIENCE_S) == 7
    assert not psutil.pid_exists(pid_in(tmp_path / "daemon"))
