"""MLflow's server goes away in the midst of work, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.runs import Tracker
from workflows.ports import usable_port
from workflows.steps import Tell
from workflows.ui import mlflow_server


def test_metrics_of_an_outage_are_written_when_the_server_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    Tracker(database, "muva/demo")
    port = usable_port(0)
    with mlflow_server(database, port=port) as (address, _):
        run = Tracker(address, "muva/demo").open(name="stage 2", key="stage 2")
        tell = Tell(run)
        tell({"stage2/loss": 1.0}, 1)
    for epoch in (2, 3):
        tell({"stage2/loss": 1 / epoch}, epoch)
    assert [record.message for record in caplog.records].count(caplog.records[-1].message) == 1
    assert "they are kept and written later" in caplog.text
    with mlflow_server(database, port=port):
        tell({"stage2/loss": 0.25}, 4)
        run.finish()
    history = MlflowClient(database).get_metric_history(run.ref.run_id, "stage2/loss")
    assert [(point.step, point.value) for point in history] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)
    ]  # fmt: skip
