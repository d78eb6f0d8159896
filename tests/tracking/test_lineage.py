"""Data sets and models in MLflow: one logged model an artifact, ranked by what it reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tracking.lineage import UsedDataset, UsedModel, logged_model
from tracking.registry import CHALLENGER, CHAMPION, Registry
from tracking.runs import Tracker

STATION = UsedDataset(
    name="syn-station",
    fingerprint="0123456789abcdef",
    uri="s3://key:secret@people/store/datasets/syn-station-0",
    counts={"query": {"images": 4, "identities": 2, "cameras": 2}},
)


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "muva/demo")


def used(name: str) -> UsedModel:
    return UsedModel(name=name, address=f"models/{name}-0123456789abcdef", params={"seed": "0"})


def evaluated(tracker: Tracker, model: UsedModel, mean_ap: float) -> str:
    with tracker.open(name=f"evaluate {model.name}", key=f"metrics/{model.name}") as run:
        run.log_datasets(STATION, context="evaluation")
        model_id = run.log_model(model, made=False)
        assert model_id is not None
        run.log_metrics({"syn-station/mAP": mean_ap}, model_id=model_id, dataset=STATION)
    return model_id


def test_models_are_ranked_by_their_results_on_a_target(tracker: Tracker) -> None:
    client = MlflowClient(tracker.tracking_uri)
    ids = {name: evaluated(tracker, used(name), value) for name, value in
           (("poor", 0.1), ("best", 0.3), ("fair", 0.2))}  # fmt: skip
    ranked = client.search_logged_models(
        [tracker.experiment_id],
        order_by=[{"field_name": "metrics.syn-station/mAP", "ascending": False}],
    )
    assert [one.model_id for one in ranked] == [ids["best"], ids["fair"], ids["poor"]]
    (metric,) = ranked[0].metrics or []
    assert (metric.dataset_name, metric.dataset_digest) == ("syn-station", STATION.fingerprint)


def test_a_model_artifact_has_one_logged_model(tracker: Tracker) -> None:
    client = MlflowClient(tracker.tracking_uri)
    made = []
    run = tracker.open(name="stage 2", key="models/muva")
    for _ in range(2):
        run = tracker.open(name="stage 2", key="models/muva")
        run.log_datasets(STATION, context="training")
        made.append(run.log_model(used("muva"), made=True))
    elsewhere = Tracker(tracker.tracking_uri, "muva/other")
    made.append(evaluated(elsewhere, used("muva"), 0.5))
    assert len(set(made)) == 1
    found = logged_model(client, used("muva").address)
    assert found is not None and found.source_run_id == run.ref.run_id
    stage2 = client.get_run(run.ref.run_id)
    assert stage2.outputs is not None and len(stage2.outputs.model_outputs) == 1
    assert stage2.inputs is not None
    (given,) = stage2.inputs.dataset_inputs
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}
    assert "secret" not in given.dataset.source
    assert '"identities": 2' in (given.dataset.profile or "")


def test_aliases_move_with_versions_and_a_model_is_registered_once(tracker: Tracker) -> None:
    client = MlflowClient(tracker.tracking_uri)
    registry = Registry(client, "people")
    assert registry.version_with_alias(CHAMPION) is None
    versions = [
        registry.register(
            model_id=evaluated(tracker, used(name), 0.1),
            run_id="0" * 32,
            address=used(name).address,
            value=value,
            validated_on="whom",
        )
        for name, value in (("one", 0.2), ("two", 0.3), ("one", 0.2))
    ]
    assert [version.number for version in versions] == ["1", "2", "1"]
    registry.set_alias(CHAMPION, versions[0])
    registry.set_alias(CHALLENGER, versions[1])
    assert registry.version_with_alias(CHAMPION) == versions[0]
    registry.set_alias(CHAMPION, versions[1])
    registry.set_alias(CHALLENGER, None)
    assert registry.version_with_alias(CHAMPION) == versions[1]
    assert registry.version_with_alias(CHALLENGER) is None
