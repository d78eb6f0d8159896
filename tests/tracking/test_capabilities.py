"""MLflow servers without logged models: said before the work, and everything else is recorded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.disturbed_server import Disturber, disturbed_server
from muva.data.artifacts import open_artifact
from muva.errors import MuvaError
from tracking.capabilities import has_logged_models
from tracking.lineage import UsedModel
from tracking.names import MODEL_TAG
from tracking.runs import Tracker
from workflows.jobs.readiness import tracking_checks
from workflows.session import open_session
from workflows.steps import mlflow_records
from workflows.verbs.ui import mlflow_server

MODEL = UsedModel(name="muva", address="models/muva-0123456789abcdef")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An MLflow server, and the same one as it looks without the endpoints of logged models."""
    database = f"sqlite:///{tmp_path_factory.mktemp('home') / 'mlflow.db'}"
    Tracker(database, "muva/demo")
    with (
        mlflow_server(database, port=0) as (address, _),
        disturbed_server(address, Disturber(seed=0, share=0), missing="logged-models") as older,
    ):
        yield address, older


def test_a_run_on_an_older_server_has_everything_but_the_logged_model(
    servers: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    address, older = servers
    with caplog.at_level(logging.WARNING):
        for key in ("first", "second"):
            with Tracker(older, "muva/demo").open(name=key, key=key) as run:
                model_id = run.log_model(MODEL, made=True)
                run.log_metrics({"town/mAP": 0.5}, model_id=model_id)
    assert model_id is None
    assert caplog.text.count("the server has no logged models") == 1
    data = MlflowClient(address).get_run(run.ref.run_id).data
    assert data.tags[MODEL_TAG] == MODEL.address
    assert data.metrics == {"town/mAP": 0.5}
    with Tracker(address, "muva/demo").open(name="third", key="third") as newer:
        assert newer.log_model(MODEL, made=True) is not None


def test_a_model_cannot_be_served_from_an_older_server(
    servers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_records, "model_description", lambda _: {"feature_dim": 8})
    monkeypatch.setattr(mlflow_records, "used_model", lambda _: MODEL)
    run = Tracker(servers[1], "muva/demo").open(name="promote", key="promote")
    with pytest.raises(MuvaError, match="has no logged models"):
        mlflow_records.served_model(run, open_artifact(f"/nowhere/{MODEL.address}"))


def test_the_doctor_notes_what_an_older_server_lacks(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    address, older = servers
    (whole,) = tracking_checks(open_session(home=tmp_path, tracking_uri=address), nodes=2)
    (partial,) = tracking_checks(open_session(home=tmp_path, tracking_uri=older), nodes=2)
    assert (whole.state, partial.state) == ("ok", "note")
    assert "`muva promote` and `muva models log` do not work there" in partial.said


def test_a_database_is_not_asked(tmp_path: Path) -> None:
    assert has_logged_models(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}"))
