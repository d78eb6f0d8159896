from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from benchmarks.pipeline_faults import Service, said_of_outage


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


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("stage 2: done\nJob one: succeeded\n", ""),
        ("A node was lost: the cluster has 1.\nJob: failed", "A node was lost: the cluster has 1."),
        ("A node was lost: the cluster has 1.\nError: No node at http://a:1, repeat\nJob: failed",
         "No node at …, repeat"),
        ("(pid=3) MLflow is unavailable; later: refused\nJob: succeeded",
         "MLflow is unavailable; later"),
    ],
)  # fmt: skip
def test_what_is_said_of_an_outage_is_the_error_or_a_notice(output: str, said: str) -> None:
    assert said_of_outage(output) == said
