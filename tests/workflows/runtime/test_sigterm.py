"""What `ray.init` does to the handler of SIGTERM."""

from __future__ import annotations

import signal
import subprocess
import sys

from workflows.runtime.quirks import sigterm_kept

DRIVER = """
import os, signal
from workflows.runtime.cluster import ray_cluster
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with ray_cluster():
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit("SIGTERM did nothing")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_handler_is_restored_whatever_the_block_sets() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_interrupts_a_command_that_is_connected_to_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], capture_output=True, text=True, timeout=200, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
