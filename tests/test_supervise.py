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
ROOT = Path(__file__).parents[1]
LEAVES_A_DAEMON = """
import os, pathlib, signal, subprocess, sys, time
folder, role = pathlib.Path(sys.argv[1]), sys.argv[2]
if "stubborn" in sys.argv:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
again = [sys.executable, "-c", os.environ["SCRIPT"], *sys.argv[1:]]
if role == "starter":  # as Ray's daemons: a session of its own, and its parent ends
    subprocess.Popen([*again[:4], "daemon", *again[5:]], start_new_session=True)
    sys.exit()
if role != "daemon":
    subprocess.run([*again[:4], "starter", *again[5:]], check=True)
(folder / role).write_text(f"{os.getpid()}")
while role == "ends":
    if (folder / "daemon").exists():
        sys.exit(7)
    time.sleep(0.02)
time.sleep(600)
"""
SUPERVISOR = """
import sys
from tests.supervise import main
sys.exit(main(sys.argv[1:], clean_up_s=1))
"""


def supervised(folder: Path, *roles: str) -> subprocess.Popen[bytes]:
    script = [sys.executable, "-c", LEAVES_A_DAEMON, f"{folder}", *roles]
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *script],
        env={**os.environ, "SCRIPT": LEAVES_A_DAEMON},
        cwd=ROOT,
        start_new_session=True,
    )


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
    process = supervised(tmp_path, "run")
    pids = [pid_in(tmp_path / name) for name in ("daemon", "run")]
    os.killpg(process.pid, number)  # as a terminal does to make and all below it
    assert process.wait(PATIENCE_S) == 128 + signal.SIGINT
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_that_heeds_no_signal_is_killed_with_its_daemon(tmp_path: Path) -> None:
    process = supervised(tmp_path, "run", "stubborn")
    pids = [pid_in(tmp_path / name) for name in ("daemon", "run")]
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_run_that_ends_by_itself_gives_its_code_and_leaves_no_daemon(tmp_path: Path) -> None:
    process = supervised(tmp_path, "ends")
    assert process.wait(PATIENCE_S) == 7
    assert not psutil.pid_exists(pid_in(tmp_path / "daemon"))
