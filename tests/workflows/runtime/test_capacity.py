"""A cluster that has lost a node: it is said at once, and no command waits for ever."""

from __future__ import annotations

import pytest

from muva.errors import MuvaError, SettingsError
from workflows.runtime.autoscaling import WAIT_LIMIT_VARIABLE, wait_limit_s
from workflows.runtime.capacity import CapacityMonitor
from workflows.runtime.cluster import cpus


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.runtime.capacity.CHECK_EVERY_S", 0.0)
    monkeypatch.setenv(WAIT_LIMIT_VARIABLE, "0")


def test_room_that_does_not_come_back_ends_the_waiting_with_what_to_do(
    ray_session: None, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    room = CapacityMonitor(processes=cpus() + 1, cpus=1)
    room.check()
    found = f"room for {cpus()} of {cpus() + 1} processes of 1 cores"
    assert found in capsys.readouterr().err
    with pytest.raises(MuvaError, match=rf"{found}.*--workers {cpus()}: .*last saved epoch"):
        room.check()
    with pytest.raises(MuvaError, match="fewer --cpus-per-worker"):
        no_node = CapacityMonitor(processes=1, cpus=10_000)
        no_node.check()
        no_node.check()


def test_of_a_cluster_with_room_nothing_is_said(
    ray_session: None, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    room = CapacityMonitor(processes=cpus(), cpus=1)
    for _ in range(3):
        room.check()
    assert capsys.readouterr().err == ""


def test_the_wait_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_limit_s() == 1800.0
    monkeypatch.setenv(WAIT_LIMIT_VARIABLE, "half an hour")
    with pytest.raises(SettingsError, match="MUVA_WAIT_S=half an hour: expected seconds"):
        wait_limit_s()
