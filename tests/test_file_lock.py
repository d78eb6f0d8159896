"""Locks between commands: one at a time, waiting is announced, and nothing is left behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from muva.data.store import open_store
from muva.file_lock import alone
from workflows.session import Session
from workflows.steps.step import MetricLogger, Step, run_step


def test_one_at_a_time_holds_a_file_that_is_gone_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "locks" / "step"
    inside: list[int] = []
    most: list[int] = []
    waited_for: list[str] = []

    def work(number: int) -> None:
        with alone(file, on_wait=waited_for.append):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
    assert len(waited_for) == 7
    assert f"{os.getpid()}" in waited_for
    assert not list(file.parent.iterdir())


def test_where_no_file_can_be_made_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "locks").touch()
    with alone(tmp_path / "locks" / "step", on_wait=pytest.fail):
        pass


def test_of_two_commands_that_need_a_step_one_computes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(
        home=tmp_path,
        store=open_store(tmp_path / "store"),
        tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    began, times = threading.Event(), []

    def work(_: MetricLogger) -> dict[str, int]:
        began.set()
        times.append(time.monotonic())
        time.sleep(1)
        return {"answer": 42}

    def command() -> None:
        step = Step(
            title="think",
            store=session.store,
            kind="datasets",
            name="mine",
            format_version=1,
            settings={},
        )
        found.append(run_step(step, session=session, work=work))

    found: list = []
    first, second = threading.Thread(target=command), threading.Thread(target=command)
    first.start()
    assert began.wait(60)
    second.start()
    first.join()
    second.join()
    assert len(times) == 1
    assert sorted(result.computed for result in found) == [False, True]
    assert {result.summary["answer"] for result in found} == {42}
    assert f"think: another command (process {os.getpid()}) is computing it" in (
        capsys.readouterr().err
    )
