"""MLflow's server goes away in the midst of work, and comes back."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from muva.data.store import open_store
from muva.errors import MuvaError
from tracking.runs import Tracker, has_pictures
from workflows.runtime.local import usable_port
from workflows.session import Session
from workflows.steps.step import MetricLogger
from workflows.verbs.ui import mlflow_server


def test_work_does_not_wait_for_each_failing_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = Tracker(database, "muva/demo").open(name="stage 2", key="stage 2")
    attempts: list[float] = []
    clock = [0.0]

    def locked(_: str) -> None:
        attempts.append(clock[0])
        clock[0] += 20.0
        raise OSError("database is locked")

    monkeypatch.setattr("tracking.runs.time.monotonic", lambda: clock[0])
    with monkeypatch.context() as while_locked:
        while_locked.setattr("tracking.runs.reached_client", locked)
        for epoch in range(50):
            run.log_metrics_buffered({"loss": 1.0}, epoch)
            run.log_system_metrics({"cpu_utilization_percentage": 50.0}, epoch)
            clock[0] += 5.0
    assert attempts == [0.0, 200.0]
    run.finish()
    assert len(MlflowClient(database).get_metric_history(run.ref.run_id, "loss")) == 50


def test_an_outage_loses_no_metric_and_a_step_waits_for_its_end_but_a_first_run_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker(database, "muva/demo")
    port = usable_port(0)
    with mlflow_server(database, port=port) as (address, _):
        session = Session(home=tmp_path, store=open_store(tmp_path), tracking_uri=address)
        parent = Tracker(address, "muva/demo").open(name="pipeline", key="pipeline")
        run = Tracker(address, "muva/demo").open(name="stage 2", key="stage 2")
        log_metrics = MetricLogger(run)
        log_metrics({"stage2/loss": 1.0}, 1)

    for epoch in (2, 3):
        log_metrics({"stage2/loss": 1 / epoch}, epoch)
    run.log_image_buffered("masks/epoch-003.png", np.zeros((8, 8, 3), np.uint8))
    run.log_system_metrics({"cpu_utilization_percentage": 50.0}, 30)
    away_at = time.time()
    assert [record.message for record in caplog.records].count(caplog.records[-1].message) == 1
    assert "metrics are buffered and written later" in caplog.text
    with (
        pytest.raises(MuvaError, match="No MLflow server responds"),
        session.run("another", key="another", params={}),
    ):
        pass

    with ExitStack() as stack:
        back = threading.Timer(1.0, lambda: stack.enter_context(mlflow_server(database, port=port)))
        back.start()
        with session.within(parent).run("stage 3", key="stage 3", params={}) as step:
            assert step is not None
        back.join()
        log_metrics({"stage2/loss": 0.25}, 4)
        run.finish()
        pictures = has_pictures(run.ref)

    client = MlflowClient(database)
    assert client.get_run(step.ref.run_id).info.status == "FINISHED"
    history = client.get_metric_history(run.ref.run_id, "stage2/loss")
    assert [(point.step, point.value) for point in history] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)
    ]  # fmt: skip
    (figure,) = client.get_metric_history(run.ref.run_id, "system/cpu_utilization_percentage")
    assert (figure.step, figure.value) == (30, 50.0)
    assert figure.timestamp / 1000 <= away_at, "it tells of the time when it came"
    assert pictures
