from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from benchmarks.pipeline_faults import Service


def test_a_service_is_lost_with_all_that_it_has_started_and_can_be_started_again(
    tmp_path: Path,
) -> None:
    log, begun = tmp_path / "said.log", tmp_path / "begun"
    # A session of its own, as Ray's jobs have one: no signal to the service's group reaches it.
    script = f"setsid sleep 600 & echo $! >> {begun}; wait"

    def children() -> list[int]:
        return [int(line) for line in begun.read_text().split()] if begun.exists() else []

    service = Service(
        ["sh", "-c", script],
        environment=os.environ,
        log=log,
        ready=lambda: any(map(psutil.pid_exists, children())),
    )
    service.kill()
    for times in (1, 2):
        service.start()
        service.start()  # it runs already
        assert len(children()) == times
        (process,) = [psutil.Process(pid) for pid in children() if psutil.pid_exists(pid)]
        service.kill()
        assert process.wait(60) is None or not process.is_running()


def test_a_service_that_does_not_start_says_why_and_is_gone(tmp_path: Path) -> None:
    script = "echo no port is free; exit 3"
    log = tmp_path / "said.log"
    service = Service(["sh", "-c", script], environment=os.environ, log=log, ready=lambda: False)
    with pytest.raises(RuntimeError, match="no port is free"):
        service.start()
    service.kill()
